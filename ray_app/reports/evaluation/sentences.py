"""An evaluation in sentences, the same on the page and on the terminal: its `headline`, four
`answers`, and `warnings`.

Every name in a sentence is made visible and kept short. Sentences claim no more than the intervals
behind them.
"""

from collections.abc import Sequence
from typing import NamedTuple

from ray_app.metrics import uncertainty
from ray_app.metrics.detection import ranks_backwards
from ray_app.metrics.values import MetricValue
from ray_app.reports import format as wording
from ray_app.reports.evaluation.model import EvaluationDocument, PairedFacts
from ray_app.reports.evaluation.system_model import GeneratorFacts, SystemFacts
from ray_app.reports.format import (
    counted,
    in_words,
    named,
    p_value,
    percent,
    plain,
    rounded_area,
    rounded_share,
    span,
    written,
)

_LONGEST_NAME = 60
_SHARP_DROP = 0.02
_WIDEST = 0.5  # of an interval: one that is wider says next to nothing
_WIDE = 0.1  # one that is wider is said in the headline


class EvaluationWarning(NamedTuple):
    """Something to beware of. `is_grave`: it puts the headline in doubt."""

    heading: str
    text: str
    is_grave: bool


def short(name: str) -> str:
    """A name in a sentence."""
    return wording.shortened(name, _LONGEST_NAME) or wording.NONE


def headline(facts: EvaluationDocument) -> str:
    """The evaluation in one plain sentence, with rounded figures."""
    system = facts.leading
    if system is None:
        return "Nothing was evaluated: the document names no system."
    name = short(system.called)
    if not system.n:
        return f"{name}: no labelled image has a score."
    text = _too_few(name, facts, system) or f"{_verdict(name, system)}{_doubt(facts)}."
    return (
        text
        if any(sign in name for sign in "<>")
        else text.replace("< ", "under ").replace("> ", "over ")
    )


def answers(facts: EvaluationDocument) -> list[tuple[str, list[str]]]:
    """A reader's questions (how good, on what, how sure, where it breaks), each with its answer;
    those without an answer are left out.
    """
    system = facts.leading
    if system is None:
        return []
    found = [
        ("How good", _how_good(system)),
        ("On what", _on_what(facts, system)),
        ("How sure", _how_sure(facts, system)),
        ("Where it breaks", _where_it_breaks(system)),
    ]
    return [(question, sentences) for question, sentences in found if sentences]


def warnings(facts: EvaluationDocument) -> list[EvaluationWarning]:
    """What to beware of, the gravest first."""
    shortcut, labels = facts.data.shortcut, facts.labels
    found, names = [], ", ".join(map(short, shortcut.features))
    if shortcut.confounded:
        text = f"Without looking at a pixel, file facts{f' ({names})' if names else ''} tell fakes from real images with AUC "
        text += f"{in_words('auc', shortcut.auc)}. A detector can look as good as it does here for the same reason. "
        text += "Read the figures by format and size before the headline."
        found.append(EvaluationWarning("Confounded.", text, True))
    told_above = ", ".join(shortcut.features) if shortcut.confounded and shortcut.features else None
    texts = [
        text for text in shortcut.warnings if told_above is None or not text.startswith(told_above)
    ]
    found += [
        EvaluationWarning("Classes differ.", wording.visible(text), not shortcut.confounded)
        for text in texts
    ]
    found += [
        EvaluationWarning("About the data.", wording.visible(text), False)
        for text in facts.data.faults
    ]
    parts = (
        [f"{counted(labels.without_row, 'label')} without a row in the run"]
        if labels.without_row
        else []
    )
    parts += (
        [f"{counted(labels.rows_without_label, 'row')} without a label"]
        if labels.rows_without_label
        else []
    )
    parts += (
        [f"{counted(labels.doubled, 'label')} given twice (and equal)"] if labels.doubled else []
    )
    texts = [wording.visible(text) for text in labels.warnings] or (
        [f"{'; '.join(parts)}."] if parts else []
    )
    found += [EvaluationWarning("Labels and run differ.", text, False) for text in texts]
    if facts.localization and facts.localization.warning:
        found.append(
            EvaluationWarning(
                "Masks may be misread.", wording.visible(facts.localization.warning), True
            )
        )
    if facts.localization:
        for reason in facts.localization.unreadable:
            example = f", for example {reason.example}" if reason.example else ""
            text = f"{counted(reason.n, 'mask')} of the labels: {reason.reason}{example}."
            found.append(
                EvaluationWarning("Some masks could not be used.", wording.visible(text), True)
            )
    if backwards := [
        system
        for system in facts.systems
        if ranks_backwards(system.figure("auc"), system.n_real, system.n_fake)
    ]:
        each = ", ".join(
            f"{short(system.called)} {in_words('auc', system.figure('auc'))}"
            for system in backwards[:6]
        )
        text = (
            f"ROC AUC far below 0.5: {each}. Such a detector scores real images higher than fakes: "
        )
        found.append(
            EvaluationWarning(
                "Labels may be swapped.",
                f"{text}check which label is real and which is fake.",
                True,
            )
        )
    if late := [system for system in facts.systems if system.late]:
        each = ", ".join(f"{short(system.called)} {system.n:,}" for system in late[:6])
        words = f"Images that went on in the cascade: {each}. The figures of these detectors cover only such images, the hard ones."
        found.append(
            EvaluationWarning("Some detectors scored only part of the images.", words, True)
        )
    if unscored := [system for system in facts.systems if system.unscored and not system.late]:
        each = ", ".join(f"{short(system.called)} {system.unscored:,}" for system in unscored[:6])
        text = f"Images without one: {each}. They count in the strict figures only."
        found.append(EvaluationWarning("Not all images have a score.", text, False))
    if marked := [short(one.column) for one in facts.reference if one.mark or one.marks]:
        text = f"{', '.join(marked)}: the notes under the table say why."
        found.append(EvaluationWarning("Some published figures cannot be compared.", text, False))
    return found


def interval_in_words(figure: MetricValue) -> str:
    """The interval of a share, rounded: "90 to 93 %"; empty where there is none."""
    if figure.interval is None:
        return ""
    low, high = map(rounded_share, figure.interval)
    return low if low == high else f"{low.removesuffix(' %')} to {high}"


def _verdict(name: str, system: SystemFacts, which: str = "the") -> str:
    """`which` images the shares are of: the, or these."""
    found, flagged, auc = system.figure("tpr"), system.flagged, system.figure("auc")
    finds = f"{name} finds {_of_all(found, which, 'fake')}"
    flags = f"wrongly flags {_of_all(flagged, which, 'real image')}"
    if found.value is not None and flagged.value is not None:
        return f"{finds} and {flags}"
    if found.value is not None:
        return f"{finds}; there was no real image to try it on"
    if flagged.value is not None:
        return f"{name} {flags}; there was no fake to try it on"
    if auc.value is not None:
        return f"{name} scores a fake above a real image with a chance of {rounded_share(auc.value)}{_between(auc)}"
    right = system.figure("balanced_accuracy")
    if right.value is not None:
        return f"{name} judges {rounded_share(right.value)}{_between(right)} of images correctly, both classes counting the same"
    return f"{name} scored {counted(system.n, 'image')}, and no figure is defined"


def _of_all(figure: MetricValue, which: str, noun: str) -> str:
    """Such a share of images: "every fake", "none of the fakes", "91 % of the fakes"; with its
    interval where that is wide.
    """
    between = _between(figure)
    if figure.value == 1 and not between:
        return f"every {noun}" if which == "the" else f"every one of {which} {noun}s"
    share = "none" if figure.value == 0 else rounded_share(figure.value)
    return f"{share}{between} of {which} {noun}s"


def _between(figure: MetricValue) -> str:
    return (
        f" ({interval_in_words(figure)})"
        if figure.interval and figure.interval[1] - figure.interval[0] > _WIDE
        else ""
    )


def _too_few(name: str, facts: EvaluationDocument, system: SystemFacts) -> str:
    """What to say where an interval is so wide that its figure says nothing of further images, or
    of further generators and sources.
    """
    drawn = facts.intervals
    measured = (("AUC", system.figure("auc"), False), ("share of fakes found", system.figure("tpr"), False),
                ("share of real images flagged", system.flagged, True))  # fmt: skip
    for what, figure, is_of_reals in measured:
        if figure.interval is None or figure.interval[1] - figure.interval[0] <= _WIDEST:
            continue
        if not drawn.of_images and not (is_of_reals and drawn.reals != "sources"):
            groups = drawn.sources if is_of_reals else drawn.generators
            few = (
                f"{counted(groups, 'source')} of real images"
                if is_of_reals
                else counted(groups, "generator")
            )
            bare = system.model_copy(
                update={
                    "figures": {
                        key: found.without_interval() for key, found in system.figures.items()
                    }
                }
            )
            are = f"{few} {_are(groups)} too few to say how it does on others"
            return f"{_verdict(name, bare, 'these')}, but {are}{_doubt(facts, 'and')}."
        low, high = map(rounded_area if what == "AUC" else rounded_share, figure.interval)
        images = f"{counted(system.n, 'image')} {_are(system.n)} too few to say how good {name} is"
        return f"{images}: its {what} could be anything from {low} to {high}."
    return ""


def _are(number: int) -> str:
    return "is" if number == 1 else "are"


def _doubt(facts: EvaluationDocument, conjunction: str = "but") -> str:
    """The end of the headline where the form of files alone gives fakes away."""
    shortcut = facts.data.shortcut
    names = (
        f" ({', '.join(short(name) for name in shortcut.features[:2])})"
        if shortcut.features
        else ""
    )
    return (
        f", {conjunction} the form of the files alone{names} gives many fakes away"
        if shortcut.confounded
        else ""
    )


def _how_good(system: SystemFacts) -> list[str]:
    tpr, tnr, auc = (system.figure(key) for key in ("tpr", "tnr", "auc"))
    sentences, parts = [], []
    if tpr.value is not None:
        parts.append(f"finds {in_words('tpr', tpr)} of {counted(system.n_fake, 'fake')}")
    if tnr.value is not None:
        parts.append(f"clears {in_words('tnr', tnr)} of {counted(system.n_real, 'real image')}")
    if parts:
        at = f" at a threshold of {plain(system.threshold)}" if system.threshold is not None else ""
        sentences.append(f"{short(system.called)} {' and '.join(parts)}{at}.")
    if auc.value is not None:
        sentences.append(
            f"A fake scores higher than a real image with a probability of {in_words('auc', auc)}: the ROC AUC."
        )
    elif auc.why:
        sentences.append(f"There is no ROC AUC: {wording.visible(auc.why)}.")
    strict, right = system.figure("tpr_at_fpr_1"), system.figure("precision_at_prior_1")
    if strict.value is not None:
        sentences.append(
            f"If 1 % of the real images may be flagged by mistake, it finds {in_words('tpr_at_fpr_1', strict)} of the fakes."
        )
    if right.value is not None:
        sentences.append(
            f"If one image in 100 were fake, {in_words('precision_at_prior_1', right)} of its flags would be right."
        )
    return sentences


def _on_what(facts: EvaluationDocument, system: SystemFacts) -> list[str]:
    data, protocol = facts.data, facts.protocol
    fakes = [one for one in system.generators if one.label == "fake"]
    text = f"{counted(data.n_real, 'real image')} and {counted(data.n_fake, 'fake')}"
    text += f" of {counted(len(fakes), 'generator')}" if fakes else ""
    text += f"; {data.n_local:,} of the fakes are local edits" if data.n_local else ""
    sentences = [f"{text}."] if data.n_real + data.n_fake else []
    if protocol:
        source = f" ({short(protocol.source)})" if protocol.source else ""
        sentences.append(f"Protocol: {short(protocol.title or protocol.name)}{source}.")
    else:
        sentences.append("No published protocol was followed.")
    if not fakes:
        return sentences
    seen, unseen = (sum(one.seen == word for one in fakes) for word in ("in-training", "unseen"))
    if not seen and not unseen:
        return [
            *sentences,
            "It is not known whether any of the generators was in its training data.",
        ]
    unknown = len(fakes) - seen - unseen
    rest = f"; of {unknown:,} it is not known" if unknown else ""
    was, others_were = ("was" if number == 1 else "were" for number in (seen, unseen))
    return [
        *sentences,
        f"Of the generators, {seen or 'none'} {was} in its training data and {unseen:,} {others_were} not{rest}.",
    ]


def _how_sure(facts: EvaluationDocument, system: SystemFacts) -> list[str]:
    sentences = [_chance(facts, system)]
    if len(facts.systems) > 1 and system.kind != "ensemble":
        sentences.append(
            f"It is shown first as the best of {len(facts.systems)} on these very images, so its figures flatter it a little."
        )
    ours = [
        one
        for one in facts.paired
        if system.name in (one.a, one.b) and one.difference.value is not None
    ]
    if ours:
        sentences.append(
            _compared(
                min(
                    ours,
                    key=lambda one: ("auc" not in one.test, abs(one.difference.value or 0)),
                ),
                facts,
                system,
            )
        )
    ece = system.figure("ece")
    off = f"off by {in_words('ece', ece)} on average" if ece.value is not None else ""
    if not system.calibrated:
        sentences.append(
            "Its scores are not calibrated"
            + (f": read as chances, they are {off}." if off else ".")
        )
    elif off:
        sentences.append(f"Its probabilities are {off}.")
    # The fullest combination of format and size that holds both classes: there neither gives a fake
    # away.
    both = [one for one in system.strata if one.n_real and one.n_fake and one.auc.value is not None]
    if both:
        one = max(both, key=lambda one: min(one.n_real, one.n_fake))
        where = f"{wording.shortened(one.format, 12)} of {wording.shortened(one.size, 16)}, {one.n_real:,} real and {one.n_fake:,} fake"
        sentences.append(
            f"Within one format and size, {where}, its AUC is {in_words('auc', one.auc)}."
        )
    shortcut = facts.data.shortcut
    if shortcut.auc.value is not None and not shortcut.confounded:
        sentences.append(
            f"File facts alone tell the classes apart with AUC {in_words('auc', shortcut.auc)}: {shortcut.finding}."
        )
    return sentences


def _chance(facts: EvaluationDocument, system: SystemFacts) -> str:
    """Between what ends the first figures lie, and for what."""
    found = [(named(key), span(key, system.figure(key))) for key in ("auc", "tpr", "tnr")]
    known = ", ".join(f"{name} {ends}" for name, ends in found if ends)
    if not facts.intervals.words:
        ends = (
            f"95 % intervals: {known}. They"
            if known
            else "Ranges in brackets are 95 % intervals. They"
        )
        return f"{ends} cover chance alone: images of another kind can lie far outside."
    beyond = (
        "other generators can lie far outside"
        if facts.intervals.fakes == "images"
        else "what is unlike them can lie far outside"
    )
    return (
        f"{f'{known}. ' if known else ''}{facts.intervals.words} They cover chance alone: {beyond}."
    )


def _compared(test: PairedFacts, facts: EvaluationDocument, system: SystemFacts) -> str:
    """Against the system that is closest to it."""
    turned = test.b == system.name
    other = test.a if turned else test.b
    found = next((one for one in facts.systems if one.name == other), None)
    against = f"Against {short(found.called if found else other)}, the closest in paired tests, its"
    what = "AUC" if "auc" in test.test else "share judged correctly"
    amount = (test.difference.value or 0.0) * (1 if turned else -1)
    if not amount:
        return f"{against} {what} is the same."
    p = test.p_holm if test.p_holm is not None else test.p
    sure = "" if p is None or p < 0.05 else ", which chance alone would explain"
    chance = p_value(p) if p_value(p).startswith("<") else f"= {p_value(p)}"
    return f"{against} {what} is {abs(amount):.4f} {'higher' if amount > 0 else 'lower'} (p {chance}){sure}."


def _where_it_breaks(system: SystemFacts) -> list[str]:
    sentences = []
    hardest, sources = (
        [one for one in system.hardest(label) if one.rate.value is not None]
        for label in ("fake", "real")
    )
    if len(hardest) > 1:
        worst = hardest[0]
        sentences.append(
            f"The hardest generator is {short(worst.name)}: it finds {in_words('tpr', worst.rate)} of {counted(worst.n, 'image')}."
        )
        rates = {
            word: [one.rate.value or 0.0 for one in hardest if one.seen == word]
            for word in ("in-training", "unseen")
        }
        if all(rates.values()):
            trained, unseen = (percent(sum(found) / len(found)) for found in rates.values())
            sentences.append(
                f"Of generators that it was trained on it finds {trained} on average, of those that it never saw {unseen}."
            )
    if _stands_out(sources):
        worst = sources[0]
        flagged = percent(1 - (worst.rate.value or 0))
        sentences.append(
            f"Of the real images, those from {short(worst.name)} are flagged most often: {flagged} of {worst.n:,}."
        )
    whole, local = (system.kinds.get(kind, {}).get("tpr") for kind in ("whole", "local"))
    if whole and local and whole.value is not None and local.value is not None:
        sentences.append(
            f"Of local edits it finds {in_words('tpr', local)}, of whole fakes {in_words('tpr', whole)}."
        )
    return sentences + _under_perturbation(system)


def _stands_out(hardest: Sequence[GeneratorFacts]) -> bool:
    """Whether fewer of the first of these are judged correctly than of the others together, the
    intervals of both being apart.
    """
    n = sum(one.n for one in hardest[1:])
    if not n or hardest[0].rate.interval is None:
        return False
    right = sum(round(one.n * (one.rate.value or 0.0)) for one in hardest[1:])
    return hardest[0].rate.interval[1] < uncertainty.proportion_interval(right, n)[0]


def _under_perturbation(system: SystemFacts) -> list[str]:
    """The view that costs most, by AUC or else by balanced accuracy; attacks are not among them."""
    for key in ("auc", "balanced_accuracy"):
        clean = system.figure(key).value
        found = [
            (view.figures[key].value, view)
            for view in system.views
            if key in view.figures and view.kind != "attack"
        ]
        known = [(number, view) for number, view in found if number is not None]
        if clean is None or not known:
            continue
        number, view = min(known, key=lambda item: item[0])
        if clean - number < _SHARP_DROP:
            return [
                f"Even under {short(view.name)}, the perturbation that costs most, its {named(key)} is {written(key, number)}."
            ]
        return [
            f"Under {short(view.name)} its {named(key)} falls from {written(key, clean)} to {written(key, number)}."
        ]
    return []
