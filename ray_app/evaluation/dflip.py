"""The scores of DFLIP-3K, version 1, of answers in words (`dflip_v1`).

Source: specs/localization.md §5.1 (utils/evaluate.py of dflip3k/DFLIP-3K). Detection: an answer is
right if it holds "ai generated" for a fake, "real" for a real. Identification: the whole sentence
counts; a name that is none of the known ones counts as `sd`. Departures, where theirs is not known
or plainly a slip: an answer that is no such sentence is wrong rather than `sd`, a missing one too,
and groups are divided by their size, not by their size and .001 (`accuracy_by_their_formula`). The
output of a detector and an identifier becomes such a sentence (`sentence_of`).
"""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

from ray_app.evaluation.generator_names import Names
from ray_app.metrics import identification, intervals, values
from ray_app.metrics.table import MetricRow, rows_of
from ray_app.reports.evaluation.result import ClassInfo, IdentificationInfo
from ray_app.reports.format import counted

Words = Mapping[tuple[str, str, str | None, str | None], int]
"""How many images have each label (real or fake), generator, verdict and predicted generator; the
last may be an answer in words.
"""
Answers = Counter[tuple[str, str, str | None]]
"""How many images have each label, generator and answer; None = no answer."""
FAMILIES = ("dalle", "mj", "sd")
GROUPS = (*FAMILIES, "sdft", "imagen", "parti", "sdftood")
OUT_OF_DISTRIBUTION = ("imagen", "parti", "sdftood")  # groups that are detected, not identified
REAL = "This is a real image."
_FAKE = re.compile(r"This is an ai generated image by (.+)\.")
_REALLY = re.compile(r"\breal\b")
_NAMES = {"StableDiffusion": "sd", "Midjourney": "mj", "DALLE": "dalle"}
_WRITTEN = {family: name for name, family in _NAMES.items()}
# Their groups by the families of our index.
_OF_OURS = {
    "dalle": "dalle",
    "midjourney": "mj",
    "sd_1.5": "sd",
    "imagen": "imagen",
    "parti": "parti",
}
_FAMILY_OF = (
    (re.compile(r"dall-?e(-?2)?", re.IGNORECASE), "dalle"),
    (re.compile(r"mj|midjourney.*", re.IGNORECASE), "mj"),
    (re.compile(r"sd|stable-?diffusion", re.IGNORECASE), "sd"),
    (re.compile(r"imagen.*", re.IGNORECASE), "imagen"),
    (re.compile(r"parti.*", re.IGNORECASE), "parti"),
    (re.compile(r"sdftood", re.IGNORECASE), "sdftood"),
)
_NO_IMAGE = "no image"


def class_of(label: str, generator: str) -> str:
    """The class that a label stands for: `real`, a family, a group out of distribution, or a
    fine-tuned model by its own name.
    """
    if label == "real":
        return "real"
    return next(
        (family for pattern, family in _FAMILY_OF if pattern.fullmatch(generator)), generator
    )


def named_in(answer: str | None, known: Collection[str]) -> str | None:
    """The class that an answer names, `sd` for an unknown one; None where it is no sentence of
    theirs.
    """
    if answer is None:
        return None
    if answer.strip() == REAL:
        return "real"
    found = _FAKE.fullmatch(answer.strip())
    if found is None:
        return None
    name = _NAMES.get(found[1], found[1])
    return name if name in known else "sd"


def name_in(answer: str | None) -> str | None:
    """The generator's name in one of their sentences, `real` in the other; anything else as it is."""
    if answer is None or answer.strip() == REAL:
        return answer and "real"
    found = _FAKE.fullmatch(answer.strip())
    return found[1] if found else answer


def sentence_of(verdict: str | None, name: str | None) -> str | None:
    """What a verdict and a generator's name are in their words; an answer in words as it is. None:
    no answer, as of an abstention.

    A fake without a name is by `an unknown generator`, which their matching takes for `sd`.
    """
    if name is not None and (
        "ai generated" in name or (_REALLY.search(name) and len(name.split()) > 3)
    ):
        return name
    if verdict == "real":
        return REAL
    if verdict != "fake":
        return None
    group = class_of("fake", name) if name else "an unknown generator"
    return f"This is an ai generated image by {_WRITTEN.get(group, group if group in GROUPS else name or group)}."


def detects(label: str, answer: str | None) -> bool:
    """Whether an answer counts as right about real or fake."""
    return answer is not None and ("ai generated" if label == "fake" else "real") in answer


def dflip_v1(
    words: Words, names: Names, missing: int = 0
) -> tuple[list[IdentificationInfo], list[MetricRow]]:
    """Measure generators named by the rules of DFLIP-3K v1.

    `identification` has the accuracy by the images of its classes and all that are missing, and
    macro F1 as scikit-learn has it by default, over all classes that are true or answered. In `…,
    by index` names are compared through the index of generators, an unknown one being wrong. `…,
    detection` is of real or fake, as a whole and by group, whose real images are their own.

    Args:
        words: Rows by label, generator, verdict, and predicted name.
        names: The index of generators.
        missing: Images of the test list without any row, which are all wrong.
    """
    answers: Answers = Counter()
    for (label, generator, verdict, name), n in words.items():
        answers[label, generator, sentence_of(verdict, name)] += n
    truths = {(label, generator): class_of(label, generator) for label, generator, _ in answers}
    known = {"real", *FAMILIES, *truths.values()} - set(OUT_OF_DISTRIBUTION)
    pairs: Counter[tuple[str, str | None]] = Counter()
    plain: Counter[tuple[str, str | None]] = Counter()
    for (label, generator, answer), n in answers.items():
        if (truth := truths[label, generator]) in known:
            pairs[truth, named_in(answer, known)] += n
            plain[_ours(truth, names) or truth, _ours(name_in(answer), names)] += n
    wrong = sorted(
        ((truth, predicted, n) for (truth, predicted), n in pairs.items() if truth != predicted),
        key=lambda one: (-one[2], one[0], one[1] or ""),
    )
    theirs = IdentificationInfo(
        "identification",
        "Generators named, by DFLIP-3K’s own rules",
        pairs=tuple(wrong[:50]),
        notes=tuple(_flaws(answers, known, missing)),
    )
    by_index = IdentificationInfo("identification, by index", "The same by any spelling")
    figures = {"accuracy": _share_right(pairs, missing), "macro_f1": _macro_f1(pairs)}
    spelled = {
        "accuracy": _share_right(plain, missing),
        "macro_f1": identification.measure_pairs(plain).figures["macro_f1"],
    }
    detection, detection_rows = _detection(answers, missing)
    rows = [
        *rows_of(figures, scope=theirs.scope),
        *rows_of(spelled, scope=by_index.scope),
        *detection_rows,
    ]
    return [theirs, by_index, detection], rows


def _ours(name: str | None, names: Names) -> str | None:
    """A class as the index has it: their families for its own, a fine-tuned model by its name in
    any spelling.
    """
    key = names.predicted(name)
    return key if key is None or "/" in key else _OF_OURS.get(names.family(key), key)


def _share_right(pairs: Mapping[tuple[str, str | None], int], missing: int) -> values.MetricValue:
    right = sum(n for (truth, predicted), n in pairs.items() if truth == predicted)
    return intervals.proportion(right, sum(pairs.values()) + missing, _NO_IMAGE)


def _macro_f1(pairs: Mapping[tuple[str, str | None], int]) -> values.MetricValue:
    from sklearn.metrics import f1_score

    if not pairs:
        return values.undefined(_NO_IMAGE)
    truth, predicted = [one for one, _ in pairs], [other or "" for _, other in pairs]
    classes = sorted({*truth, *predicted} - {""})
    value = f1_score(
        truth,
        predicted,
        labels=classes,
        sample_weight=list(pairs.values()),
        average="macro",
        zero_division=0,
    )
    return values.MetricValue(value=float(value), n=sum(pairs.values()))


def _detection(answers: Answers, missing: int) -> tuple[IdentificationInfo, list[MetricRow]]:
    info = IdentificationInfo("identification, detection", "Real or fake, by their rules")
    if not any(
        answer and ("ai generated" in answer or "real" in answer) for _, _, answer in answers
    ):
        why = values.undefined("no answer is a sentence, and there is no verdict")
        return info, list(rows_of({"accuracy": why, "macro_f1": why}, scope=info.scope))
    hits: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    pairs: Counter[tuple[str, str | None]] = Counter()
    for (label, generator, answer), n in answers.items():
        truth = class_of(label, generator)
        group = truth if truth in (*GROUPS, "real") else "sdft"
        sizes[group] += n
        hits[group] += n * detects(label, answer)
        other = "real" if label == "fake" else "fake"
        pairs[
            label, label if detects(label, answer) else other if detects(other, answer) else None
        ] += n
    accuracy = intervals.proportion(hits.total(), sizes.total() + missing, _NO_IMAGE)
    rows = list(rows_of({"accuracy": accuracy, "macro_f1": _macro_f1(pairs)}, scope=info.scope))
    for group, n in sorted(sizes.items()):
        found = {
            "accuracy": intervals.proportion(hits[group], n, _NO_IMAGE),
            "accuracy_by_their_formula": values.MetricValue(hits[group] / (n + 0.001), n=n),
        }
        rows += rows_of(found, scope=info.scope_of(group))
    classes = tuple(ClassInfo(group, n) for group, n in sorted(sizes.items()))
    return replace(info, classes=classes), rows


def _flaws(answers: Answers, known: Collection[str], missing: int) -> Iterator[str]:
    """What is wrong with their rules, and how much of it there is here."""
    strange = [(truth, n) for (label, generator, answer), n in answers.items()
               if (truth := class_of(label, generator)) in known and _is_strange(answer, known)]  # fmt: skip
    lucky = sum(n for truth, n in strange if truth == "sd")
    total = sum(n for _, n in strange)
    yield f"A predicted name that is none of the list's counts as sd: {total:,} answers here, {lucky:,} of them right for that alone."
    yield "The name must be theirs letter by letter; by_index has both figures by any spelling, an unknown name being wrong."
    yield (
        "Their code takes the true name from the fourth word of the answer, which in the published sentences is 'ai' or 'real'. "
        "Here it is the label's."
    )
    yield (
        "They divide a group's hits by its size plus .001 (accuracy_by_their_formula), so that no "
        "group is ever faultless. Here by its size (accuracy)."
    )
    none = sum(n for (_, _, answer), n in answers.items() if answer is None)
    yield (
        f"An image without a prediction counts as wrong: {counted(missing, 'label')} without a row here, "
        f"{counted(none, 'row')} without an answer. Macro F1 is without the former."
    )
    yield "Detection looks for 'ai generated' and for 'real' anywhere in the answer: of a real image, 'surreal' is right."


def _is_strange(answer: str | None, known: Collection[str]) -> bool:
    found = _FAKE.fullmatch(answer.strip()) if answer else None
    return found is not None and _NAMES.get(found[1], found[1]) not in known
