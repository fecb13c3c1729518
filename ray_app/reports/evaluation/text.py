"""An evaluation in sentences, the same on the page and on the terminal: four `answers`, `warnings`, and the tables of names and groups.

Every name in a sentence is made visible and kept short.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol, TypeVar

from ray_app.metrics import intervals
from ray_app.reports import format as wording
from ray_app.reports.evaluation.model import EvaluationDocument, GroupRow, NamedFigures, PairedFacts
from ray_app.reports.evaluation.system_model import NOT_MEASURED, FigureFacts, GeneratorFacts, SystemFacts
from ray_app.reports.format import in_words, named, p_value, span, written
from ray_app.reports.svg import plain
from ray_app.reports.text import table

_LONGEST_NAME = 60
_SHARP_DROP = 0.02
_CAPTIONS = {"fake": "Fakes that it takes for real", "real": "Real images that it takes for fake"}
_MOST_PAIRS = 30
_WIDTH = 120
_KEYS = ("accuracy", "top_3", "macro_f1", "open_set_auroc", "abstained_known", "abstained_unknown")
_PROMPTS = ("token_f1", "tag_jaccard", "bleu4", "rouge_l", "clip_text", "clip_score_ratio")
_COLUMNS = ("tpr", "auc", "accuracy", "top_3", "family_accuracy", "abstained", "token_f1", "tag_jaccard", "clip_text", "clip_score_ratio")
_CALLED = {"accuracy": "named correctly"}
_SIDES = {"in": "in", "out": "out"}


class ReaderQuestion(NamedTuple):
    """A reader's question with its answer."""

    question: str
    sentences: list[str]


class EvaluationWarning(NamedTuple):
    """Something to beware of. `is_grave`: it puts the headline in doubt."""

    heading: str
    text: str
    is_grave: bool


class MisclassifiedImage(Protocol):
    """One misclassified image."""

    @property
    def label(self) -> str:
        """What it is: real or fake."""


class GroupLine(NamedTuple):
    """One group; `cells` one for each of the table's keys."""

    row: GroupRow
    side: str
    cells: list[FigureFacts]


class GroupTable(NamedTuple):
    """Groups by figures: those of detection are of `system`."""

    system: str
    by: str
    keys: list[str]
    heads: list[str]
    lines: list[GroupLine]


M = TypeVar("M", bound=MisclassifiedImage)


def answers(facts: EvaluationDocument) -> list[ReaderQuestion]:
    """How good, on what, how sure, where it breaks; a question that the document does not answer is left out."""
    system = facts.leading
    if system is None:
        return []
    found = [
        ReaderQuestion("How good", _how_good(system)),
        ReaderQuestion("On what", _on_what(facts, system)),
        ReaderQuestion("How sure", _how_sure(facts, system)),
        ReaderQuestion("Where it breaks", _where_it_breaks(system)),
    ]
    return [answer for answer in found if answer.sentences]


def warnings(facts: EvaluationDocument) -> list[EvaluationWarning]:
    """What to beware of, the gravest first."""
    shortcut = facts.data.shortcut
    found = []
    if shortcut.confounded:
        found.append(EvaluationWarning("Confounded.", _confounded(facts), True))
    told_above = ", ".join(shortcut.features) if shortcut.confounded and shortcut.features else None
    texts = [text for text in shortcut.warnings if told_above is None or not text.startswith(told_above)]
    found += [EvaluationWarning("Classes differ.", wording.visible(text), not shortcut.confounded) for text in texts]
    found += _joining(facts)
    late = [system for system in facts.systems if system.late]
    if late:
        each = ", ".join(f"{short(system.called)} {system.n:,}" for system in late[:6])
        words = f"Images that went on in the cascade: {each}. The figures of these detectors cover only such images, the hard ones."
        found.append(EvaluationWarning("Some detectors saw only some of the images.", words, True))
    unscored = [system for system in facts.systems if system.unscored and not system.late]
    if unscored:
        each = ", ".join(f"{short(system.called)} {system.unscored:,}" for system in unscored[:6])
        found.append(
            EvaluationWarning("Not all images have a score.", f"Images without one: {each}. They count in the strict figures only.", False)
        )
    marked = [reference for reference in facts.reference if reference.mark or reference.marks]
    if marked:
        names = ", ".join(short(reference.column) for reference in marked)
        found.append(EvaluationWarning("Some published figures cannot be compared.", f"{names}: the notes under the table say why.", False))
    return found


def short(name: str) -> str:
    """A name in a sentence."""
    return wording.shortened(name, _LONGEST_NAME) or wording.NONE


def captioned(mistakes: Sequence[M], picture: Callable[[M], str | None], *, most: int) -> list[tuple[str, list[tuple[M, str | None]]]]:
    """Of either label the first `most`, each with its picture's data URI or None; a label without mistakes is left out."""
    found = []
    for label, caption in _CAPTIONS.items():
        mine = [(one, picture(one)) for one in mistakes if one.label == label][:most]
        found += [(caption, mine)] if mine else []
    return found


def identified_parts(found: NamedFigures | None) -> list[tuple[str, NamedFigures]]:
    """Every table of the section, with what stands above it."""
    if found is None:
        return []
    plain = found.inner.get("plain")
    if plain is None:
        return [("Generators named", found), *_families(found)]
    theirs = [(caption, part) for key, caption in (("by_index", "The same by any spelling"), ("detection", "Real or fake, by their rules"))
              if (part := found.inner.get(key))]  # fmt: skip
    return [("Generators named, by DFLIP-3K’s own rules", found), *theirs, ("Generators named, by ours", plain), *_families(plain)]


def pairs_of(found: NamedFigures | None) -> list[tuple[str, str, int]]:
    """Generators taken for others, the most frequent first."""
    pairs = found.pairs if found else ()
    sound = [pair for pair in pairs if len(pair) == 3 and isinstance(pair[2], int)]
    named = [(str(truth), "no name" if predicted is None else str(predicted), number) for truth, predicted, number in sound]
    return sorted(named, key=lambda pair: -pair[2])[:_MOST_PAIRS]


def name_lines(facts: EvaluationDocument) -> list[str]:
    """The same for the terminal."""
    lines = [*_section("Generators named", facts.identification, _KEYS), *_section("Prompts predicted", facts.prompts, _PROMPTS)]
    if families := (facts.identification.inner.get("families") if facts.identification else None):
        lines += _section("Families named", families, _KEYS)
    groups = groups_table(facts)
    if groups:
        rows = [
            [wording.shortened(one.row.name, 40), one.side, f"{one.row.n:,}", *_written(groups.keys, one.cells)] for one in groups.lines
        ]
        lines += ["", *table(["fakes", "distribution", "n", *groups.heads], rows, _WIDTH, right=range(2, 3 + len(groups.heads)))]
    return ["", *lines] if lines else []


def groups_table(facts: EvaluationDocument) -> GroupTable | None:
    """The groups by all figures that any of them has; None without groups."""
    if facts.groups is None or not facts.groups.groups:
        return None
    leading = facts.leading
    system = leading.name if leading else ""
    cells = [{**row.detection.get(system, {}), **(row.identification or {}), **(row.prompts or {})} for row in facts.groups.groups]
    keys = [key for key in _COLUMNS if any(one[key].number is not None for one in cells if key in one)]
    lines = [GroupLine(row, _SIDES.get(row.distribution, ""), [one.get(key, NOT_MEASURED) for key in keys])
             for row, one in zip(facts.groups.groups, cells, strict=True)]  # fmt: skip
    return GroupTable(
        leading.called if leading else "", facts.groups.by, keys, [_CALLED.get(key) or wording.named(key) for key in keys], lines
    )


def _confounded(facts: EvaluationDocument) -> str:
    shortcut = facts.data.shortcut
    names = ", ".join(short(name) for name in shortcut.features)
    by = f" ({names})" if names else ""
    text = f"Without looking at a pixel, file facts{by} tell fakes from real images with AUC {in_words('auc', shortcut.auc)}."
    text += " A detector can look as good as it does here for the same reason. Read the figures by format and size before the headline."
    return text


def _joining(facts: EvaluationDocument) -> list[EvaluationWarning]:
    labels = facts.labels
    if labels.warnings:
        return [EvaluationWarning("Labels and run differ.", wording.visible(text), False) for text in labels.warnings]
    parts = [f"{wording.counted(labels.without_row, 'label')} without a row in the run"] if labels.without_row else []
    parts += [f"{wording.counted(labels.rows_without_label, 'row')} without a label"] if labels.rows_without_label else []
    parts += [f"{wording.counted(labels.doubled, 'label')} given twice (and equal)"] if labels.doubled else []
    return [EvaluationWarning("Labels and run differ.", f"{'; '.join(parts)}.", False)] if parts else []


def _how_good(system: SystemFacts) -> list[str]:
    tpr, tnr, auc = (system.figure(key) for key in ("tpr", "tnr", "auc"))
    sentences, parts = [], []
    if tpr.number is not None:
        parts.append(f"finds {in_words('tpr', tpr)} of {wording.counted(system.n_fake, 'fake')}")
    if tnr.number is not None:
        parts.append(f"clears {in_words('tnr', tnr)} of {wording.counted(system.n_real, 'real image')}")
    if parts:
        at = f" at a threshold of {plain(system.threshold)}" if system.threshold is not None else ""
        sentences.append(f"{short(system.called)} {' and '.join(parts)}{at}.")
    if auc.number is not None:
        sentences.append(f"A fake scores higher than a real image with a probability of {in_words('auc', auc)}: the ROC AUC.")
    elif auc.why:
        sentences.append(f"There is no ROC AUC: {wording.visible(auc.why)}.")
    strict = system.figure("tpr_at_fpr_1")
    if strict.number is not None:
        sentences.append(f"If 1 % of the real images may be flagged by mistake, it finds {in_words('tpr_at_fpr_1', strict)} of the fakes.")
    right = system.figure("precision_at_prior_1")
    if right.number is not None:
        sentences.append(f"If one image in 100 were fake, {in_words('precision_at_prior_1', right)} of its flags would be right.")
    return sentences


def _on_what(facts: EvaluationDocument, system: SystemFacts) -> list[str]:
    data = facts.data
    fakes = [one for one in system.generators if one.label == "fake"]
    text = f"{wording.counted(data.n_real, 'real image')} and {wording.counted(data.n_fake, 'fake')}"
    text += f" of {wording.counted(len(fakes), 'generator')}" if fakes else ""
    text += f"; {data.n_local:,} of the fakes are local edits" if data.n_local else ""
    sentences = [f"{text}."] if data.n_real + data.n_fake else []
    if facts.protocol:
        source = f" ({short(facts.protocol.source)})" if facts.protocol.source else ""
        sentences.append(f"Protocol: {short(facts.protocol.title or facts.protocol.name)}{source}.")
    else:
        sentences.append("No published protocol was followed.")
    return sentences + _trained_on(fakes)


def _trained_on(fakes: Sequence[GeneratorFacts]) -> list[str]:
    """How many of the generators the system learnt from."""
    if not fakes:
        return []
    seen, unseen = (sum(one.seen == word for one in fakes) for word in ("in-training", "unseen"))
    if not seen and not unseen:
        return ["It is not known whether any of the generators was in its training data."]
    unknown = len(fakes) - seen - unseen
    rest = f"; of {unknown:,} it is not known" if unknown else ""
    was, others_were = ("was" if number == 1 else "were" for number in (seen, unseen))
    return [f"Of the generators, {seen or 'none'} {was} in its training data and {unseen:,} {others_were} not{rest}."]


def _how_sure(facts: EvaluationDocument, system: SystemFacts) -> list[str]:
    sentences = [_chance(facts, system)]
    if len(facts.systems) > 1 and system.kind != "ensemble":
        sentences.append(f"It is shown first as the best of {len(facts.systems)} on these very images, so its figures flatter it a little.")
    ours = [one for one in facts.paired if system.name in (one.a, one.b) and one.difference.number is not None]
    if ours:
        sentences.append(_compared(min(ours, key=lambda one: ("delong" not in one.test, abs(one.difference.number or 0))), facts, system))
    ece = system.figure("ece")
    off = f"off by {in_words('ece', ece)} on average" if ece.number is not None else ""
    if not system.calibrated:
        sentences.append("Its scores are not calibrated" + (f": read as chances, they are {off}." if off else "."))
    elif off:
        sentences.append(f"Its probabilities are {off}.")
    return sentences + _within_stratum(system) + _no_shortcut(facts)


def _chance(facts: EvaluationDocument, system: SystemFacts) -> str:
    """Between what ends the first figures lie, and for what."""
    found = [(named(key), span(key, system.figure(key))) for key in ("auc", "tpr", "tnr")]
    known = [f"{name} {ends}" for name, ends in found if ends]
    if not facts.intervals.words:
        ends = f"95 % intervals: {', '.join(known)}. They" if known else "Ranges in brackets are 95 % intervals. They"
        return f"{ends} cover chance alone: images of another kind can lie far outside."
    ends = f"{', '.join(known)}. " if known else ""
    beyond = "other generators can lie far outside" if facts.intervals.fakes == "images" else "what is unlike them can lie far outside"
    return f"{ends}{facts.intervals.words} They cover chance alone: {beyond}."


def _within_stratum(system: SystemFacts) -> list[str]:
    """The fullest combination of format and size that holds both classes: there neither gives a fake away."""
    both = [one for one in system.strata if one.n_real and one.n_fake and one.auc.number is not None]
    if not both:
        return []
    one = max(both, key=lambda one: min(one.n_real, one.n_fake))
    where = f"{wording.shortened(one.format, 12)} of {wording.shortened(one.size, 16)}"
    return [f"Within one format and size, {where}, {one.n_real:,} real and {one.n_fake:,} fake, its AUC is {in_words('auc', one.auc)}."]


def _no_shortcut(facts: EvaluationDocument) -> list[str]:
    found = facts.data.shortcut
    if found.auc.number is None or found.confounded:
        return []
    return [f"File facts alone tell the classes apart with AUC {in_words('auc', found.auc)}: {found.finding}."]


def _compared(test: PairedFacts, facts: EvaluationDocument, system: SystemFacts) -> str:
    """Against the system that is closest to it."""
    turned = test.b == system.name
    other = facts.system(test.a if turned else test.b)
    name = short(other.called if other else (test.a if turned else test.b))
    difference = test.difference.number or 0.0
    what = "AUC" if "delong" in test.test else "share judged correctly"
    p = test.p_holm if test.p_holm is not None else test.p
    amount = difference if turned else -difference
    if not amount:
        return f"Against {name}, the closest in paired tests, its {what} is the same."
    found = "higher" if amount > 0 else "lower"
    sure = "" if p is None or p < 0.05 else ", which chance alone would explain"
    chance = p_value(p) if p_value(p).startswith("<") else f"= {p_value(p)}"
    return f"Against {name}, the closest in paired tests, its {what} is {abs(amount):.4f} {found} (p {chance}){sure}."


def _where_it_breaks(system: SystemFacts) -> list[str]:
    sentences = []
    hardest = [one for one in system.hardest() if one.rate.number is not None]
    if len(hardest) > 1:
        worst = hardest[0]
        sentences.append(
            f"The hardest generator is {short(worst.name)}: it finds {in_words('tpr', worst.rate)} of {wording.counted(worst.n, 'image')}."
        )
        sentences += _seen_and_unseen(hardest)
    sources = [one for one in system.hardest("real") if one.rate.number is not None]
    if _stands_out(sources):
        worst = sources[0]
        flagged = wording.percent(1 - (worst.rate.number or 0))
        sentences.append(f"Of the real images, those from {short(worst.name)} are flagged most often: {flagged} of {worst.n:,}.")
    whole, local = (system.kinds.get(kind, {}).get("tpr") for kind in ("whole", "local"))
    if whole and local and whole.number is not None and local.number is not None:
        sentences.append(f"Of local edits it finds {in_words('tpr', local)}, of whole fakes {in_words('tpr', whole)}.")
    return sentences + _under_perturbation(system)


def _stands_out(hardest: Sequence[GeneratorFacts]) -> bool:
    """Whether fewer of the first of these are judged correctly than of the others together, the intervals of both being apart."""
    n = sum(one.n for one in hardest[1:])
    if not n or hardest[0].rate.ends is None:
        return False
    right = sum(round(one.n * (one.rate.number or 0.0)) for one in hardest[1:])
    return hardest[0].rate.ends[1] < intervals.proportion_interval(right, n)[0]


def _seen_and_unseen(generators: Sequence[GeneratorFacts]) -> list[str]:
    rates = {word: [one.rate.number or 0.0 for one in generators if one.seen == word] for word in ("in-training", "unseen")}
    if not all(rates.values()):
        return []
    means = {word: wording.percent(sum(found) / len(found)) for word, found in rates.items()}
    on_average = f"Of generators that it was trained on it finds {means['in-training']} on average, "
    return [f"{on_average}of those that it never saw {means['unseen']}."]


def _under_perturbation(system: SystemFacts) -> list[str]:
    """The view that costs most, by AUC or else by balanced accuracy; attacks are not among them."""
    for key in ("auc", "balanced_accuracy"):
        clean = system.figure(key).number
        found = [(view.figures[key].number, view) for view in system.views if key in view.figures and view.kind != "attack"]
        known = [(number, view) for number, view in found if number is not None]
        if clean is None or not known:
            continue
        number, view = min(known, key=lambda item: item[0])
        if clean - number < _SHARP_DROP:
            return [f"Even under {short(view.name)}, the perturbation that costs most, its {named(key)} is {written(key, number)}."]
        return [f"Under {short(view.name)} its {named(key)} falls from {written(key, clean)} to {written(key, number)}."]
    return []


def _families(found: NamedFigures) -> Iterator[tuple[str, NamedFigures]]:
    if families := found.inner.get("families"):
        yield "Families named", families


def _section(caption: str, found: NamedFigures | None, keys: Sequence[str]) -> list[str]:
    if found is None:
        return []
    parts = [f"{_CALLED.get(key) or wording.named(key)} {wording.in_words(key, found.figures[key])}"
            for key in keys if key in found.figures and found.figures[key].number is not None]  # fmt: skip
    return [f"{caption}: {', '.join(parts) or 'no figure is defined'}."]


def _written(keys: Sequence[str], cells: Sequence[FigureFacts]) -> list[str]:
    return [wording.written(key, one.number) for key, one in zip(keys, cells, strict=True)]
