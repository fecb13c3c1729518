"""Measure predicted generators by the rules of the DFLIP-3K paper, version 1 (`dflip_v1`).

Source: utils/evaluate.py of dflip3k/DFLIP-3K (arXiv 2401.02335). In DFLIP-3K, a model answers with
a sentence such as "This is an ai generated image by Midjourney.". `format_sentence` turns the
verdict and the predicted generator of an image into this sentence. Detection is right if the
sentence has "ai generated" for a fake, or "real" for a real image. Identification requires the
whole sentence. An unknown name counts as `sd`, Stable Diffusion.

This module departs from the authors' rules if a rule is unknown or clearly a mistake. An answer
that is not such a sentence, or is missing, is wrong rather than `sd`. The accuracy of a group of
generators is its hits divided by its size. The authors divide by the size plus .001, and the metric
`accuracy_by_their_formula` has their value.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

from ray_app.evaluation.generator_names import Names
from ray_app.metrics import identification, intervals, values
from ray_app.metrics.table import MetricRow, build_rows
from ray_app.reports.evaluation.result import ClassInfo, IdentificationInfo
from ray_app.reports.format import pluralize

RowCounts = Mapping[tuple[str, str, str | None, str | None], int]
"""Number of images by label (real or fake), generator, verdict, and predicted generator.

The predicted generator may be a whole sentence.
"""
SentenceCounts = Counter[tuple[str, str, str | None]]
"""Number of images by label, generator, and sentence; None for no answer."""
FAMILIES = ("dalle", "mj", "sd")
GROUPS = (*FAMILIES, "sdft", "imagen", "parti", "sdftood")
# Groups that are detected, but not identified.
OUT_OF_DISTRIBUTION = ("imagen", "parti", "sdftood")
REAL = "This is a real image."
_FAKE = re.compile(r"This is an ai generated image by (.+)\.")
_REAL_WORD = re.compile(r"\breal\b")
_NAMES = {"StableDiffusion": "sd", "Midjourney": "mj", "DALLE": "dalle"}
_SPELLINGS = {family: name for name, family in _NAMES.items()}
# DFLIP-3K's groups by the families of the index of generators.
_GROUP_BY_FAMILY = {
    "dalle": "dalle",
    "midjourney": "mj",
    "sd_1.5": "sd",
    "imagen": "imagen",
    "parti": "parti",
}
_FAMILY_PATTERNS = (
    (re.compile(r"dall-?e(-?2)?", re.IGNORECASE), "dalle"),
    (re.compile(r"mj|midjourney.*", re.IGNORECASE), "mj"),
    (re.compile(r"sd|stable-?diffusion", re.IGNORECASE), "sd"),
    (re.compile(r"imagen.*", re.IGNORECASE), "imagen"),
    (re.compile(r"parti.*", re.IGNORECASE), "parti"),
    (re.compile(r"sdftood", re.IGNORECASE), "sdftood"),
)
_NO_IMAGE = "no image"


def find_class(label: str, generator: str) -> str:
    """Return the class by which DFLIP-3K counts an image with this label and generator.

    Args:
        label: `real` or `fake`.
        generator: The generator in the labels.

    Returns:
        `real` for a real image. For a fake, the family of its generator: `dalle`, `mj`, `sd`,
        `imagen`, `parti`, or `sdftood`. DFLIP-3K does not ask for the generator of fakes of the
        last three families, but only whether they are fake. If the generator is of another family,
        such as a fine-tuned model, the class is the name of the generator.
    """
    if label == "real":
        return "real"
    return next(
        (family for pattern, family in _FAMILY_PATTERNS if pattern.fullmatch(generator)), generator
    )


def parse_class(answer: str | None, classes: Collection[str]) -> str | None:
    """Return the class that a sentence of DFLIP-3K names.

    Args:
        answer: The sentence, such as "This is an ai generated image by DALLE."
        classes: The classes of the images, such as `dalle` and the names of fine-tuned models.

    Returns:
        The class. A name that is not in `classes` is treated as `sd` (Stable Diffusion), as in
        DFLIP-3K. The result is None if the answer is not one of DFLIP-3K's sentences.
    """
    if answer is None:
        return None
    if answer.strip() == REAL:
        return "real"
    match = _FAKE.fullmatch(answer.strip())
    if match is None:
        return None
    name = _NAMES.get(match[1], match[1])
    return name if name in classes else "sd"


def extract_name(answer: str | None) -> str | None:
    """Return the generator's name, or `real`, from a sentence of DFLIP-3K.

    For "This is an ai generated image by DALLE.", the name is `DALLE`. An answer that is not such a
    sentence is returned unchanged.
    """
    if answer is None or answer.strip() == REAL:
        return answer and "real"
    match = _FAKE.fullmatch(answer.strip())
    return match[1] if match else answer


def format_sentence(verdict: str | None, name: str | None) -> str | None:
    """Return the sentence with which DFLIP-3K would answer for a verdict and a predicted generator.

    For example, a fake by DALLE gives "This is an ai generated image by DALLE.". A fake without a
    name gets the name `an unknown generator`, which counts as `sd` (Stable Diffusion).

    Args:
        verdict: The verdict of the row.
        name: The predicted generator, or None. A name that already is a sentence is returned
            unchanged.

    Returns:
        The sentence; None if there is neither a sentence nor the verdict real or fake.
    """
    if name is not None and (
        "ai generated" in name or (_REAL_WORD.search(name) and len(name.split()) > 3)
    ):
        return name
    if verdict == "real":
        return REAL
    if verdict != "fake":
        return None
    group = find_class("fake", name) if name else "an unknown generator"
    return f"This is an ai generated image by {_SPELLINGS.get(group, group if group in GROUPS else name or group)}."


def is_detected(label: str, answer: str | None) -> bool:
    """Return whether a sentence of DFLIP-3K correctly calls an image real or fake.

    The sentence must contain "ai generated" for a fake, or "real" for a real image. The name of the
    generator does not matter.
    """
    return answer is not None and ("ai generated" if label == "fake" else "real") in answer


def dflip_v1(
    row_counts: RowCounts, names: Names, missing: int = 0
) -> tuple[list[IdentificationInfo], list[MetricRow]]:
    """Measure predicted generators and verdicts by the rules of DFLIP-3K v1.

    The metrics are in three scopes:

    - `identification` has DFLIP-3K's accuracy and macro F1. Fakes of `imagen`, `parti`, and
      `sdftood` are left out, because DFLIP-3K does not ask for their generators. The macro F1 is
      over all classes that are true or answered.
    - `identification, by index` has both metrics of the same images. Names are first looked up in
      the shipped index of generators, so that all spellings of a generator are one name. An
      unknown name is wrong. This macro F1 is over the true names only.
    - `identification, detection` is about real or fake, for all images and by group of generators.
      Real images are one group.

    Args:
        row_counts: Number of rows by label, generator, verdict, and predicted name.
        names: Maps spellings of generators to one name.
        missing: Number of labelled images without a row, which all count as wrong in accuracies.

    Returns:
        The facts of each scope, and the metrics of all scopes.
    """
    answers: SentenceCounts = Counter()
    for (label, generator, verdict, name), n in row_counts.items():
        answers[label, generator, format_sentence(verdict, name)] += n
    truths = {(label, generator): find_class(label, generator) for label, generator, _ in answers}
    classes = {"real", *FAMILIES, *truths.values()} - set(OUT_OF_DISTRIBUTION)
    pairs: Counter[tuple[str, str | None]] = Counter()
    plain: Counter[tuple[str, str | None]] = Counter()
    for (label, generator, answer), n in answers.items():
        if (truth := truths[label, generator]) in classes:
            pairs[truth, parse_class(answer, classes)] += n
            plain[
                _to_index_name(truth, names) or truth, _to_index_name(extract_name(answer), names)
            ] += n
    wrong = sorted(
        ((truth, predicted, n) for (truth, predicted), n in pairs.items() if truth != predicted),
        key=lambda pair: (-pair[2], pair[0], pair[1] or ""),
    )
    own_rules = IdentificationInfo(
        "identification",
        "Generators named, by DFLIP-3K’s own rules",
        pairs=tuple(wrong[:50]),
        notes=tuple(_describe_flaws(answers, classes, missing)),
    )
    by_index = IdentificationInfo("identification, by index", "Generators named, by any spelling")
    metrics = {"accuracy": _accuracy(pairs, missing), "macro_f1": _macro_f1(pairs)}
    spelled = {
        "accuracy": _accuracy(plain, missing),
        "macro_f1": identification.measure_pairs(plain).figures["macro_f1"],
    }
    detection, detection_rows = _measure_detection(answers, missing)
    rows = [
        *build_rows(metrics, scope=own_rules.scope),
        *build_rows(spelled, scope=by_index.scope),
        *detection_rows,
    ]
    return [own_rules, by_index, detection], rows


def _to_index_name(name: str | None, names: Names) -> str | None:
    """Return a class under its name in the index.

    DFLIP-3K's families replace those of the index, and a fine-tuned model has one name in any
    spelling.
    """
    key = names.predicted(name)
    return key if key is None or "/" in key else _GROUP_BY_FAMILY.get(names.family(key), key)


def _accuracy(pairs: Mapping[tuple[str, str | None], int], missing: int) -> values.MetricValue:
    right = sum(n for (truth, predicted), n in pairs.items() if truth == predicted)
    return intervals.proportion(right, sum(pairs.values()) + missing, _NO_IMAGE)


def _macro_f1(pairs: Mapping[tuple[str, str | None], int]) -> values.MetricValue:
    from sklearn.metrics import f1_score

    if not pairs:
        return values.undefined(_NO_IMAGE)
    truth, predicted = [name for name, _ in pairs], [name or "" for _, name in pairs]
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


def _measure_detection(
    answers: SentenceCounts, missing: int
) -> tuple[IdentificationInfo, list[MetricRow]]:
    info = IdentificationInfo("identification, detection", "Real or fake, by DFLIP-3K’s own rules")
    if not any(
        answer and ("ai generated" in answer or "real" in answer) for _, _, answer in answers
    ):
        missing_verdict = values.undefined("no answer is a sentence, and no image has a verdict")
        return info, list(
            build_rows({"accuracy": missing_verdict, "macro_f1": missing_verdict}, scope=info.scope)
        )
    hits: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    pairs: Counter[tuple[str, str | None]] = Counter()
    for (label, generator, answer), n in answers.items():
        truth = find_class(label, generator)
        group = truth if truth in (*GROUPS, "real") else "sdft"
        sizes[group] += n
        hits[group] += n * is_detected(label, answer)
        other = "real" if label == "fake" else "fake"
        pairs[
            label,
            label if is_detected(label, answer) else other if is_detected(other, answer) else None,
        ] += n
    accuracy = intervals.proportion(hits.total(), sizes.total() + missing, _NO_IMAGE)
    rows = list(build_rows({"accuracy": accuracy, "macro_f1": _macro_f1(pairs)}, scope=info.scope))
    for group, n in sorted(sizes.items()):
        group_metrics = {
            "accuracy": intervals.proportion(hits[group], n, _NO_IMAGE),
            "accuracy_by_their_formula": values.MetricValue(hits[group] / (n + 0.001), n=n),
        }
        rows += build_rows(group_metrics, scope=info.get_scope(group))
    classes = tuple(ClassInfo(group, n) for group, n in sorted(sizes.items()))
    return replace(info, classes=classes), rows


def _describe_flaws(
    answers: SentenceCounts, classes: Collection[str], missing: int
) -> Iterator[str]:
    """Yield the flaws of the rules, and how many answers they affect here."""
    unknown = [(truth, n) for (label, generator, answer), n in answers.items()
               if (truth := find_class(label, generator)) in classes and _is_unknown_name(answer, classes)]  # fmt: skip
    lucky = sum(n for truth, n in unknown if truth == "sd")
    total = sum(n for _, n in unknown)
    yield f"A predicted name that is not in the list counts as sd: {total:,} answers here, {lucky:,} of which are right only because of this."
    yield "The name must match exactly; by_index has both metrics by any spelling, and an unknown name is wrong there."
    yield (
        "The authors' code takes the true name from the fourth word of the answer, which in the published sentences is 'ai' or 'real'. "
        "Here it is taken from the label."
    )
    yield (
        "The authors divide a group's hits by its size plus .001 (accuracy_by_their_formula), so no "
        "group reaches 100 %. Here they are divided by its size (accuracy)."
    )
    n_unanswered = sum(n for (_, _, answer), n in answers.items() if answer is None)
    yield (
        f"An image without a prediction counts as wrong: {pluralize(missing, 'label')} without a row here, "
        f"{pluralize(n_unanswered, 'row')} without an answer. Macro F1 leaves out the former."
    )
    yield "Detection searches the whole answer for 'ai generated' and 'real', so 'surreal' is right for a real image."


def _is_unknown_name(answer: str | None, classes: Collection[str]) -> bool:
    match = _FAKE.fullmatch(answer.strip()) if answer else None
    return match is not None and _NAMES.get(match[1], match[1]) not in classes
