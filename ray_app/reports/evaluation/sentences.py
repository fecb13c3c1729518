"""An evaluation in sentences, the same on the page and on the terminal: its `headline`, four
`answers`, and `warnings`.

Every name in a sentence is made visible and kept short. Sentences claim no more than the intervals
behind them.
"""

from collections.abc import Sequence
from typing import NamedTuple

from ray_app.metrics import shortcut, uncertainty
from ray_app.metrics.detection import ranks_backwards
from ray_app.metrics.values import MetricValue
from ray_app.reports import format as wording
from ray_app.reports.evaluation.result import (
    EvaluationResult,
    GeneratorInfo,
    PairedTest,
    ProtocolInfo,
    SystemResult,
    kind_scope,
)
from ray_app.reports.format import (
    counted,
    format_metric,
    format_metric_interval,
    format_metric_with_interval,
    name_metric,
    number,
    percent,
    probability,
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


def headline(result: EvaluationResult) -> str:
    """The evaluation in one plain sentence, with rounded figures."""
    system = result.leading
    if system is None:
        return "Nothing was evaluated: the document names no system."
    name = short(system.info.called)
    if not system.info.n:
        return f"{name}: no labelled image has a score."
    text = _too_few(name, result, system) or f"{_verdict(name, system)}{_doubt(result)}."
    return (
        text
        if any(sign in name for sign in "<>")
        else text.replace("< ", "under ").replace("> ", "over ")
    )


def answers(result: EvaluationResult) -> list[tuple[str, list[str]]]:
    """A reader's questions (how good, on what, how sure, where it breaks), each with its answer;
    those without an answer are left out.
    """
    system = result.leading
    if system is None:
        return []
    found = [
        ("How good", _how_good(system)),
        ("On what", _on_what(result, system)),
        ("How sure", _how_sure(result, system)),
        ("Where it breaks", _where_it_breaks(system)),
    ]
    return [(question, sentences) for question, sentences in found if sentences]


def warnings(result: EvaluationResult) -> list[EvaluationWarning]:
    """What to beware of, the gravest first."""
    meta, data, labels = result.meta, result.meta.data, result.meta.labels
    found, names = [], ", ".join(map(short, data.features))
    if data.confounded:
        text = f"Without looking at a pixel, file facts{f' ({names})' if names else ''} tell fakes from real images with AUC "
        text += f"{format_metric_with_interval('auc', result.shortcut_auc)}. A detector can look as good as it does here for the same reason. "
        text += "Read the figures by format and size before the headline."
        found.append(EvaluationWarning("Confounded.", text, True))
    found += [
        EvaluationWarning("Classes differ.", wording.visible(text), not data.confounded)
        for text in meta.data_warnings
    ]
    found += [
        EvaluationWarning("About the data.", wording.visible(text), False) for text in meta.faults
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
    texts = [wording.visible(text) for text in meta.label_warnings] or (
        [f"{'; '.join(parts)}."] if parts else []
    )
    found += [EvaluationWarning("Labels and run differ.", text, False) for text in texts]
    if meta.protocol and meta.table and not any(row.n for row in meta.table):
        found.append(_warn_of_empty_protocol(result, meta.protocol))
    if meta.localization and meta.localization.warning:
        found.append(
            EvaluationWarning(
                "Masks may be misread.", wording.visible(meta.localization.warning), True
            )
        )
    if meta.localization:
        for reason in meta.localization.unreadable:
            example = f", for example {reason.example}" if reason.example else ""
            text = f"{counted(reason.n, 'mask')} of the labels: {reason.reason}{example}."
            found.append(
                EvaluationWarning("Some masks could not be used.", wording.visible(text), True)
            )
    if backwards := [
        system
        for system in result.systems
        if ranks_backwards(system.figure("auc"), system.info.n_real, system.info.n_fake)
    ]:
        each = ", ".join(
            f"{short(system.info.called)} {format_metric_with_interval('auc', system.figure('auc'))}"
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
    if late := [system for system in result.systems if system.info.late]:
        each = ", ".join(f"{short(system.info.called)} {system.info.n:,}" for system in late[:6])
        words = f"Images that went on in the cascade: {each}. The figures of these detectors cover only such images, the hard ones."
        found.append(
            EvaluationWarning("Some detectors scored only part of the images.", words, True)
        )
    if unscored := [
        system for system in result.systems if system.info.unscored and not system.info.late
    ]:
        each = ", ".join(
            f"{short(system.info.called)} {system.info.unscored:,}" for system in unscored[:6]
        )
        text = f"Images without one: {each}. They count in the strict figures only."
        found.append(EvaluationWarning("Not all images have a score.", text, False))
    if marked := [short(one.column) for one in meta.reference if one.mark or one.marks]:
        text = f"{', '.join(marked)}: the notes under the table say why."
        found.append(EvaluationWarning("Some published figures cannot be compared.", text, False))
    return found


def _warn_of_empty_protocol(result: EvaluationResult, protocol: ProtocolInfo) -> EvaluationWarning:
    """Warn that no image of the data belongs to a row of the protocol."""
    names = [
        short(generator.name)
        for generator in result.systems[0].info.generators
        if generator.label == "fake"
    ]
    shown = ", ".join(names[:6]) + (" …" if len(names) > 6 else "")
    text = f"The rows of {short(protocol.name)} select images by the name of their generator. "
    text += f"The data has {shown or 'no fake'}. `touchstone protocols show {short(protocol.name)}` lists the names of the rows."
    return EvaluationWarning("The table of the protocol is empty.", text, True)


def interval_in_words(figure: MetricValue) -> str:
    """The interval of a share, rounded: "90 to 93 %"; empty where there is none."""
    if figure.interval is None:
        return ""
    low, high = (percent(end, 0) for end in figure.interval)
    return low if low == high else f"{low.removesuffix(' %')} to {high}"


def _verdict(
    name: str, system: SystemResult, which: str = "the", *, has_intervals: bool = True
) -> str:
    """`which` images the fractions are of: the, or these."""
    found, flagged, auc, right = (
        metric if has_intervals else metric.without_interval()
        for metric in (
            system.figure("tpr"),
            system.flagged,
            system.figure("auc"),
            system.figure("balanced_accuracy"),
        )
    )
    finds = f"{name} finds {_of_all(found, which, 'fake')}"
    flags = f"wrongly flags {_of_all(flagged, which, 'real image')}"
    if found.value is not None and flagged.value is not None:
        return f"{finds} and {flags}"
    if found.value is not None:
        return f"{finds}; there was no real image to try it on"
    if flagged.value is not None:
        return f"{name} {flags}; there was no fake to try it on"
    if auc.value is not None:
        return f"{name} scores a fake above a real image with a chance of {percent(auc.value, 0)}{_between(auc)}"
    if right.value is not None:
        return f"{name} judges {percent(right.value, 0)}{_between(right)} of images correctly, both classes counting the same"
    return f"{name} scored {counted(system.info.n, 'image')}, and no figure is defined"


def _of_all(figure: MetricValue, which: str, noun: str) -> str:
    """Such a share of images: "every fake", "none of the fakes", "91 % of the fakes"; with its
    interval where that is wide.
    """
    between = _between(figure)
    if figure.value == 1 and not between:
        return f"every {noun}" if which == "the" else f"every one of {which} {noun}s"
    share = "none" if figure.value == 0 else percent(figure.value, 0)
    return f"{share}{between} of {which} {noun}s"


def _between(figure: MetricValue) -> str:
    return (
        f" ({interval_in_words(figure)})"
        if figure.interval and figure.interval[1] - figure.interval[0] > _WIDE
        else ""
    )


def _too_few(name: str, result: EvaluationResult, system: SystemResult) -> str:
    """What to say where an interval is so wide that its figure says nothing of further images, or
    of further generators and sources.
    """
    drawn = result.meta.intervals
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
            are = f"{few} {_are(groups)} too few to say how it does on others"
            return f"{_verdict(name, system, 'these', has_intervals=False)}, but {are}{_doubt(result, 'and')}."
        low, high = (
            number(end, 1, decimals=2) if what == "AUC" else percent(end, 0)
            for end in figure.interval
        )
        images = f"{counted(system.info.n, 'image')} {_are(system.info.n)} too few to say how good {name} is"
        return f"{images}: its {what} could be anything from {low} to {high}."
    return ""


def _are(number: int) -> str:
    return "is" if number == 1 else "are"


def _doubt(result: EvaluationResult, conjunction: str = "but") -> str:
    """The end of the headline where the form of files alone gives fakes away."""
    data = result.meta.data
    names = f" ({', '.join(short(name) for name in data.features[:2])})" if data.features else ""
    return (
        f", {conjunction} the form of the files alone{names} gives many fakes away"
        if data.confounded
        else ""
    )


def _how_good(system: SystemResult) -> list[str]:
    tpr, tnr, auc = (system.figure(key) for key in ("tpr", "tnr", "auc"))
    sentences, parts = [], []
    if tpr.value is not None:
        parts.append(
            f"finds {format_metric_with_interval('tpr', tpr)} of {counted(system.info.n_fake, 'fake')}"
        )
    if tnr.value is not None:
        parts.append(
            f"clears {format_metric_with_interval('tnr', tnr)} of {counted(system.info.n_real, 'real image')}"
        )
    if parts:
        at = (
            f" at a threshold of {number(system.info.threshold, 6)}"
            if system.info.threshold is not None
            else ""
        )
        sentences.append(f"{short(system.info.called)} {' and '.join(parts)}{at}.")
    if auc.value is not None:
        sentences.append(
            f"A fake scores higher than a real image with a probability of {format_metric_with_interval('auc', auc)}: the ROC AUC."
        )
    elif auc.why:
        sentences.append(f"There is no ROC AUC: {wording.visible(auc.why)}.")
    strict, right = system.figure("tpr_at_fpr_1"), system.figure("precision_at_prior_1")
    if strict.value is not None:
        sentences.append(
            f"If 1 % of the real images may be flagged by mistake, it finds {format_metric_with_interval('tpr_at_fpr_1', strict)} of the fakes."
        )
    if right.value is not None:
        sentences.append(
            f"If one image in 100 were fake, {format_metric_with_interval('precision_at_prior_1', right)} of its flags would be right."
        )
    return sentences


def _on_what(result: EvaluationResult, system: SystemResult) -> list[str]:
    data, protocol = result.meta.data, result.meta.protocol
    fakes = [one for one in system.info.generators if one.label == "fake"]
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


def _how_sure(result: EvaluationResult, system: SystemResult) -> list[str]:
    sentences = [_chance(result, system)]
    if len(result.systems) > 1 and system.info.kind != "ensemble":
        sentences.append(
            f"It is shown first as the best of {len(result.systems)} on these very images, so its figures flatter it a little."
        )
    ours = [
        (test, difference.value)
        for test in result.meta.paired
        if system.info.name in (test.a, test.b)
        and (difference := difference_of(result, test)).value is not None
    ]
    if ours:
        test, amount = min(ours, key=lambda one: ("auc" not in one[0].test, abs(one[1])))
        sentences.append(_compared(test, amount, result, system))
    ece = system.figure("ece")
    off = (
        f"off by {format_metric_with_interval('ece', ece)} on average"
        if ece.value is not None
        else ""
    )
    if not system.info.calibrated:
        sentences.append(
            "Its scores are not calibrated"
            + (f": read as chances, they are {off}." if off else ".")
        )
    elif off:
        sentences.append(f"Its probabilities are {off}.")
    # The fullest combination of format and size that holds both classes: there neither gives a fake
    # away.
    both = [
        one
        for one in system.info.strata
        if one.n_real and one.n_fake and system.figure("auc", one.scope).value is not None
    ]
    if both:
        one = max(both, key=lambda one: min(one.n_real, one.n_fake))
        where = f"{wording.shortened(one.format, 12)} of {wording.shortened(one.size, 16)}, {one.n_real:,} real and {one.n_fake:,} fake"
        sentences.append(
            f"Within one format and size, {where}, its AUC is {format_metric_with_interval('auc', system.figure('auc', one.scope))}."
        )
    auc = result.shortcut_auc
    if auc.value is not None and not result.meta.data.confounded:
        sentences.append(
            f"File facts alone tell the classes apart with AUC {format_metric_with_interval('auc', auc)}: {shortcut.finding(auc)}."
        )
    return sentences


def _chance(result: EvaluationResult, system: SystemResult) -> str:
    """Between what ends the first figures lie, and for what."""
    found = [
        (name_metric(key), format_metric_interval(key, system.figure(key)))
        for key in ("auc", "tpr", "tnr")
    ]
    known = ", ".join(f"{name} {ends}" for name, ends in found if ends)
    if not result.meta.intervals.words:
        ends = (
            f"95 % intervals: {known}. They"
            if known
            else "Ranges in brackets are 95 % intervals. They"
        )
        return f"{ends} cover chance alone: images of another kind can lie far outside."
    beyond = (
        "other generators can lie far outside"
        if result.meta.intervals.fakes == "images"
        else "what is unlike them can lie far outside"
    )
    return f"{f'{known}. ' if known else ''}{result.meta.intervals.words} They cover chance alone: {beyond}."


def difference_of(result: EvaluationResult, test: PairedTest) -> MetricValue:
    """Return the difference that a paired test is of: b less a."""
    return result.metrics.find(test.test, test.b, scope=test.scope)


def _compared(
    test: PairedTest, difference: float, result: EvaluationResult, system: SystemResult
) -> str:
    """Against the system that is closest to it."""
    turned = test.b == system.info.name
    other = test.a if turned else test.b
    found = next((one for one in result.meta.systems if one.name == other), None)
    against = f"Against {short(found.called if found else other)}, the closest in paired tests, its"
    what = "AUC" if "auc" in test.test else "share judged correctly"
    amount = difference * (1 if turned else -1)
    if not amount:
        return f"{against} {what} is the same."
    p = test.p_holm if test.p_holm is not None else test.p
    sure = "" if p is None or p < 0.05 else ", which chance alone would explain"
    chance = probability(p) if probability(p).startswith("<") else f"= {probability(p)}"
    return f"{against} {what} is {number(abs(amount), 1, decimals=4)} {'higher' if amount > 0 else 'lower'} (p {chance}){sure}."


def _where_it_breaks(system: SystemResult) -> list[str]:
    sentences = []
    hardest, sources = (
        [one for one in system.hardest(label) if system.rate(one).value is not None]
        for label in ("fake", "real")
    )
    if len(hardest) > 1:
        worst = hardest[0]
        sentences.append(
            f"The hardest generator is {short(worst.name)}: it finds {format_metric_with_interval('tpr', system.rate(worst))} "
            f"of {counted(worst.n, 'image')}."
        )
        rates = {
            word: [system.rate(one).value or 0.0 for one in hardest if one.seen == word]
            for word in ("in-training", "unseen")
        }
        if all(rates.values()):
            trained, unseen = (percent(sum(found) / len(found)) for found in rates.values())
            sentences.append(
                f"Of generators that it was trained on it finds {trained} on average, of those that it never saw {unseen}."
            )
    if _stands_out(system, sources):
        worst = sources[0]
        flagged = percent(1 - (system.rate(worst).value or 0))
        sentences.append(
            f"Of the real images, those from {short(worst.name)} are flagged most often: {flagged} of {worst.n:,}."
        )
    whole, local = (system.figure("tpr", kind_scope(kind)) for kind in ("whole", "local"))
    if whole.value is not None and local.value is not None:
        sentences.append(
            f"Of local edits it finds {format_metric_with_interval('tpr', local)}, of whole fakes {format_metric_with_interval('tpr', whole)}."
        )
    return sentences + _under_perturbation(system)


def _stands_out(system: SystemResult, hardest: Sequence[GeneratorInfo]) -> bool:
    """Whether fewer of the first of these are judged correctly than of the others together, the
    intervals of both being apart.
    """
    n = sum(one.n for one in hardest[1:])
    worst = system.rate(hardest[0]).interval if hardest else None
    if not n or worst is None:
        return False
    right = sum(round(one.n * (system.rate(one).value or 0.0)) for one in hardest[1:])
    return worst[1] < uncertainty.proportion_interval(right, n)[0]


def _under_perturbation(system: SystemResult) -> list[str]:
    """The view that costs most, by AUC or else by balanced accuracy; attacks are not among them."""
    for key in ("auc", "balanced_accuracy"):
        clean = system.figure(key).value
        found = [
            (system.figure(key, view=view.name).value, view)
            for view in system.info.views
            if view.kind != "attack"
        ]
        known = [(value, view) for value, view in found if value is not None]
        if clean is None or not known:
            continue
        value, view = min(known, key=lambda item: item[0])
        if clean - value < _SHARP_DROP:
            return [
                f"Even under {short(view.name)}, the perturbation that costs most, its {name_metric(key)} is {format_metric(key, value)}."
            ]
        return [
            f"Under {short(view.name)} its {name_metric(key)} falls from {format_metric(key, clean)} to {format_metric(key, value)}."
        ]
    return []
