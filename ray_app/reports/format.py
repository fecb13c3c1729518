"""Format numbers, names, and metrics in the same way on pages and on the terminal.

Numbers have four formats: `count`, `percent`, `number`, and `signed` for log-odds and differences.
`duration`, `size`, and `format_time` add units; `probability` and `format_metric` choose one of the four.
"""

import math
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from rich.cells import cell_len, chop_cells

from ray_app.errors import DETECTOR_FINDINGS, Reason, Status
from ray_app.errors import VERDICT_PHRASES as VERDICT_PHRASES
from ray_app.metrics.registry import METRICS

if TYPE_CHECKING:
    from ray_app.metrics.values import MetricValue
    from ray_app.runs.document import RunSummary, SessionSummary

C2PA_WORDS = {
    "trusted": "unchanged since it was signed, by a signer on a trust list",
    "intact": "unchanged since it was signed, by a signer unknown here",
    "invalid": "the image or the manifest was changed after it was signed",
    "unreadable": "could not be checked, or is stored elsewhere and was not fetched",
}
DEMONSTRATION = "Demonstration detector: it shows that the machinery works and is not for decisions about any image."
UNCALIBRATED = "Probability not calibrated: it is the plain sigmoid of the score."
NONE = "–"
_MAX_SETTINGS, _MAX_SETTING_WIDTH = 6, 80
_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_FORMULA = re.compile(r"\s*[=+\-@\t\r\n＝＋－＠]")
_MARKS = frozenset({"Mn", "Me"})
# Combining marks on one letter. No script needs more; more marks would cover the lines next to it.
_MAX_MARKS = 4
_SHORT_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
KEY_FIGURES = ("auc", "tpr_at_fpr_1", "balanced_accuracy", "tpr", "tnr", "ece")
METHODS: Mapping[str, str] = {
    "clopper-pearson": "Clopper–Pearson",
    "jackknife": "jackknife",
    "woodruff": "Woodruff",
    "student": "Student",
}


class Meaning(NamedTuple):
    """The name and the meaning of a metric of an evaluation, such as the AUC.

    Attributes:
        words: Name of the metric on pages and on the terminal.
        sentence: Meaning of the metric in one sentence, for glossaries.
        is_share: Whether the metric is a fraction, which is shown in per cent.
    """

    words: str
    sentence: str
    is_share: bool = True


_OTHERS = {
    "mean_generator_auc": Meaning(
        "mean AUC of generators", "Each generator’s AUC against all real images, averaged.", False
    ),
    "worst_generator_auc": Meaning(
        "AUC of the worst generator",
        "The lowest AUC of a generator against all real images.",
        False,
    ),
    "loss": Meaning(
        "loss",
        "Mean cross-entropy of the log-odds, in nats: 0.693 is chance, lower is better.",
        False,
    ),
    "tpr_mean": Meaning(
        "fakes found, mean of generators",
        "Every generator has the same weight, regardless of its number of images.",
    ),
    "tpr_weighted": Meaning(
        "fakes found, by number of images",
        "Generators are weighted by their images: this is the fraction of all fakes.",
    ),
    "reals_named": Meaning(
        "real images given a generator’s name",
        "The fraction of real images for which a generator was named.",
    ),
    "top_1": Meaning(
        "nearest known is right",
        "The fraction of fakes by known generators whose nearest known generator is right, even if it was not named.",
    ),
    "top_3": Meaning(
        "among the first 3",
        "The fraction of fakes whose generator is among the three likeliest names.",
    ),
    "top_5": Meaning(
        "among the first 5",
        "The fraction of fakes whose generator is among the five likeliest names.",
    ),
    "unknown_named": Meaning(
        "unknown generators given a known name",
        "The fraction of fakes by unknown generators that got the name of a known one.",
    ),
    "abstained_known": Meaning(
        "known generators left unnamed",
        "The fraction of fakes by known generators for which no generator was named.",
    ),
    "abstained_unknown": Meaning(
        "unknown generators left unnamed",
        "The fraction of fakes by unknown generators for which no generator was named.",
    ),
    "abstained": Meaning(
        "no generator named",
        "The fraction of images for which the identifier named no generator.",
    ),
    "family_accuracy": Meaning(
        "family named correctly",
        "The fraction of fakes whose base architecture is named correctly, in any version.",
    ),
    "coverage": Meaning(
        "coverage",
        "The fraction of images with a verdict (fake or no evidence) instead of an abstention.",
    ),
    "accuracy_of_decided": Meaning(
        "accuracy among verdicts",
        "The fraction of images with a verdict that are judged correctly.",
    ),
    "tpr_of_decided": Meaning(
        "fakes found among verdicts", "The fraction of fakes with a verdict that are called fake."
    ),
    "tnr_of_decided": Meaning(
        "real images cleared among verdicts",
        "The fraction of real images with a verdict that are not flagged.",
    ),
    "accuracy_strict": Meaning(
        "accuracy, abstaining is wrong",
        "The fraction of all images judged correctly; no verdict and no score count as wrong.",
    ),
    "balanced_accuracy_strict": Meaning(
        "balanced accuracy, abstaining is wrong", "The mean of the two strict fractions."
    ),
    "tpr_strict": Meaning(
        "fakes found, abstaining is wrong",
        "The fraction of all fakes that are called fake, including those without a score.",
    ),
    "tnr_strict": Meaning(
        "real images cleared, abstaining is wrong",
        "The fraction of all real images that are cleared.",
    ),
    "aurc": Meaning(
        "area under risk–coverage",
        "The fraction judged wrongly, averaged over all widths of an abstain band around the threshold.",
        False,
    ),
    "pixel_f1": Meaning(
        "F1 of pixels",
        "Overlap of mask and truth, counted twice, over the size of both; mean over images.",
        False,
    ),
    "pixel_iou": Meaning(
        "IoU of pixels",
        "Overlap of mask and truth over what either covers; mean over images.",
        False,
    ),
    "pixel_auc": Meaning(
        "AUC of pixels",
        "The probability that an altered pixel scores above an unaltered pixel of the same image.",
        False,
    ),
    "pixel_accuracy": Meaning(
        "accuracy of pixels",
        "The fraction of pixels judged correctly. If edits are small, it is high even without a mask.",
    ),
    "macro_f1": Meaning(
        "macro F1",
        "F1 of each generator’s name, averaged: rare generators count as much as frequent ones.",
        False,
    ),
    "micro_f1": Meaning(
        "micro F1",
        "F1 of all images together. Images without a name lower it less than accuracy.",
        False,
    ),
    "weighted_f1": Meaning(
        "weighted F1", "F1 of each generator’s name, averaged by number of images.", False
    ),
    "macro_precision": Meaning(
        "macro precision",
        "The fraction of images given a name for which it is right, averaged over names.",
    ),
    "micro_precision": Meaning(
        "correct among named images", "The fraction of named images whose name is right."
    ),
    "recall": Meaning("recall", "The fraction of a generator’s images that are named correctly."),
    "macro_recall": Meaning(
        "macro recall",
        "The fraction of each generator’s images named correctly, averaged over names.",
    ),
    "open_set_auroc": Meaning(
        "open-set AUROC",
        "How well confidence separates known generators from those that cannot be named.",
        False,
    ),
    "clip_image": Meaning(
        "CLIP, regenerated image",
        "Cosine similarity of an image and the image that its predicted prompt generates.",
        False,
    ),
    "clip_image_chance": Meaning(
        "CLIP, image of another prompt",
        "Cosine similarity of an image and the images that prompts of other images generate.",
        False,
    ),
}
MEANINGS: Mapping[str, Meaning] = {
    name: Meaning(metric.title, metric.sentence, metric.is_share)
    for name, metric in METRICS.items()
} | _OTHERS
"""All metrics of an evaluation: those of the registry, and those that other modules compute."""


def escape_invisible(text: str) -> str:
    """Escape characters that would hide, reorder, or overlay other text.

    These are control characters, bidi marks, zero-width characters, lone surrogates, and more than
    four combining marks on one letter.
    """
    if text.isascii() and text.isprintable():
        return text
    characters, marks = [], 0
    for character in text:
        category = unicodedata.category(character)
        marks = marks + 1 if category in _MARKS else 0
        characters.append(
            _escape(character) if category in _INVISIBLE or marks > _MAX_MARKS else character
        )
    return "".join(characters)


def adds_to_finding(verdict: str | None, finding: str | None) -> bool:
    """Return whether a verdict has to be shown next to a finding, because it adds information.

    A finding is the conclusion on the origin of an image. Usually it only repeats the verdict of
    the detectors. It may also come from other evidence, such as a signed declaration in the file.

    Args:
        verdict: The verdict of the detectors. None if there is none.
        finding: The finding.

    Returns:
        True if there is a verdict, and the finding does not just repeat it.
    """
    return verdict is not None and finding != DETECTOR_FINDINGS.get(verdict)


def escape_formula(text: str) -> str:
    """Prepend ' to a text that a spreadsheet would run as a formula (OWASP, CSV injection)."""
    return f"'{text}" if _FORMULA.match(text) else text


def columns(text: str) -> int:
    """Return the width of a text on a terminal, in columns.

    An East Asian wide character takes two columns.
    """
    return cell_len(text)


def truncate(text: str, limit: int) -> str:
    """Escape a text and cut it to `limit` columns.

    It is cut in the middle, because the end of a path is the most specific part.
    """
    text = escape_invisible(text)
    if columns(text) <= limit:
        return text
    if limit < 2:
        return "…"[:limit]
    tail = _take_columns(text[::-1], (limit - 1) * 2 // 3)[::-1]
    return _take_columns(text, limit - 1 - columns(tail)) + "…" + tail


def file_name(uri: str, member: str | None) -> str:
    """Return one name for a file of an archive, such as `photos.tar › 2024/cat.jpg`.

    `uri` is the file itself or its container, such as a tar file. `member` is the path in the
    container, or None for a file that is not in a container.
    """
    return uri if member is None else f"{uri} › {member}"


def count(number: int) -> str:
    """Format an integer with thousands separators, such as "12,345"."""
    return f"{number:,}"


def pluralize(number: int, noun: str) -> str:
    """Format a number with a noun, which gets an "s" unless the number is 1."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def second_look(run: "RunSummary") -> list[str]:
    """Return sentences on how much work the second stage of a cascade was; none for other runs.

    A cascade runs its costly detectors, the second stage, only on doubtful images and on a random
    sample. The sentences state the fraction of images that all detectors scored, and the worker
    hours and the cost of each stage per million images.
    """
    second_stage, looks = run.second_look, run.session.looks or {}
    if second_stage is None:
        return []
    reasons_text = f"{count(second_stage.band)} in the uncertain band, {count(second_stage.audit)} drawn by the audit"
    sentences = [
        f"all detectors scored {percent(second_stage.share)} of the images: {reasons_text}"
    ]
    hours = {name: look.hours_per_million for name, look in looks.items()}
    if all(hours.get(name) is not None for name in ("first", "second")):
        costs = {
            name: f" ({number(look.cost_per_million, decimals=2)})"
            if look.cost_per_million is not None
            else ""
            for name, look in looks.items()
        }
        sentences.append(
            f"a million such images take {number(hours['first'] or 0.0)} worker hours{costs['first']} for the first stage, "
            f"{number(hours['second'] or 0.0)}{costs['second']} for the second"
        )
    return sentences


def describe_listing(listed: int, new: int, blocks: int) -> str:
    """Return a sentence on a finished listing of an archive, such as how many files are new.

    Args:
        listed: Number of files in the listing.
        new: Number of new or changed files.
        blocks: Number of blocks of new or changed files. A block is a fixed range of files that is
            scored and stored together.
    """
    if not new:
        return f"listed {pluralize(listed, 'file')}, none of them new or changed"
    in_blocks = f"in {pluralize(blocks, 'block')}"
    if new == listed:
        return f"listed {pluralize(listed, 'file')} {in_blocks}"
    return f"listed {pluralize(listed, 'file')}, {new:,} of them new or changed, {in_blocks}"


def describe_linked_folders(count: int, example: str) -> str:
    """Return a sentence on links to folders that a listing did not follow; "" if `count` is 0."""
    if not count:
        return ""
    links = f"{pluralize(count, 'linked folder')} {'is' if count == 1 else 'are'} not followed, e.g. {escape_invisible(example)}"
    return f"{links}: name {'it as a separate source' if count == 1 else 'them as separate sources'} to score the files in there"


def kept_settings(session: "SessionSummary") -> list[str]:
    """Return sentences on settings of a resumed run whose defaults have changed since its start.

    The run keeps the values with which it started. The list is empty if no such default changed.
    """
    settings = session.kept
    if not settings:
        return []
    shown = [
        [truncate(text, _MAX_SETTING_WIDTH) for text in (setting.key, setting.run, setting.today)]
        for setting in settings[:_MAX_SETTINGS]
    ]
    texts = [f"{key} {run} (today {today})" for key, run, today in shown]
    more = (
        f" and {len(settings) - len(texts)} more in summary.json"
        if len(settings) > len(texts)
        else ""
    )
    return [
        f"{'; '.join(texts)}{more}",
        "the command does not set them, so they keep the values with which the run was started; a new --out starts with today's values; "
        "to keep them on purpose, set them (--set KEY=VALUE)",
    ]


def unguarded(session: "SessionSummary") -> list[str]:
    """Return a warning in a list if nothing stops two commands from writing into a run at once.

    This is the case if the store of the run has no conditional writes. Otherwise the list is empty.
    """
    return [
        "two commands can write into this directory at the same time: its store has no conditional writes"
    ] * bool(session.unguarded)


def number(value: float | None, digits: int = 3, *, decimals: int = 0) -> str:
    """Format a number without an exponent; a dash for None.

    All digits before the point are kept. A number is never rounded to 0, nor a number below 1 to 1:
    the result is then, for example, "< 0.0001" or "> 0.999".

    Args:
        value: The number.
        digits: Number of significant digits. Zeros at the end are dropped.
        decimals: Minimum number of digits after the point: 2 for money, 3 for an AUC.
    """
    if value is None or not math.isfinite(value):
        return NONE
    if 0 < abs(value) < 0.0001:
        return "< 0.0001" if value > 0 else "> −0.0001"
    exponent = math.floor(math.log10(abs(value))) if value else 0
    places = max(decimals, digits - 1 - exponent, 0)
    integer, point, fraction = f"{value:,.{places}f}".partition(".")
    if value < 1 and integer == "1":
        return f"> 0.{'9' * places}"
    fraction = fraction.rstrip("0").ljust(decimals, "0")
    return f"{integer}{point if fraction else ''}{fraction}".replace("-", "−")


def signed(value: float | None, decimals: int = 2) -> str:
    """Format a score in log-odds, or a difference, with its sign; a dash for None.

    `decimals` is the number of digits after the point.
    """
    if value is None or not math.isfinite(value):
        return NONE
    return f"{round(value, decimals) + 0.0:+.{decimals}f}".replace("-", "−")


def interval(bounds: Sequence[float | None], format_value: Callable[[float | None], str]) -> str:
    """Format an interval, with the unit once: "90.1 to 92.4 %".

    Args:
        bounds: The lower and the upper bound.
        format_value: Formats one bound, for example `percent`.
    """
    low, high = map(format_value, bounds)
    has_one_unit = low.endswith(" %") and high.endswith(" %") and not high.startswith("<")
    return f"{low.removesuffix(' %') if has_one_unit else low} to {high}"


def percent(fraction: float | None, digits: int | None = None) -> str:
    """Format a fraction in per cent, which is never rounded to 0 or 100; a dash for None.

    Args:
        fraction: A number from 0 to 1.
        digits: Maximum number of significant digits: 3 formats 0.01 as "1 %". If 0, the result is
            in whole per cent. If None, it has one digit after the point ("12.3 %"), or two below
            1 % and above 99 %.
    """
    if fraction is None or not math.isfinite(fraction):
        return NONE
    value = 100 * fraction
    if value in (0, 100):
        return f"{value:.0f} %"
    if digits == 0:
        return "< 1 %" if value < 1 else "> 99 %" if value > 99 else f"{value:.0f} %"
    if digits:
        text = number(value, digits)
        return f"> {100 - 10.0 ** (2 - digits):g} %" if text == "100" else f"{text} %"
    if value < 0.01:
        return "< 0.01 %"
    if 99.99 < value < 100:
        return "> 99.99 %"
    return f"{value:.1f} %" if 1 <= value <= 99 else f"{value:.2f} %"


def probability(value: float | None) -> str:
    """Format a probability or a p-value; a dash for None.

    It is never shown as 0 or 1, but as "< 0.0001" or "> 0.9999".
    """
    if value is None or not math.isfinite(value):
        return NONE
    return number(min(max(value, 1e-9), 1 - 1e-9), 1, decimals=4)


def duration(seconds: float | None) -> str:
    """Format a duration in seconds, such as "8.2 s", "3 min 05 s", or "12 h 30 min".

    The result is a dash for None.
    """
    if seconds is None or not math.isfinite(seconds):
        return NONE
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return (
        f"{minutes} min {rest:02d} s"
        if minutes < 60
        else f"{minutes // 60:,} h {minutes % 60:02d} min"
    )


def size(size_bytes: int) -> str:
    """Format a size in bytes in decimal units, such as "1.5 MB"."""
    value = float(size_bytes)
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if value < 999.95:
            return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:,.1f} PB"


def format_time(timestamp: str) -> str:
    """Format an ISO time with its time zone, such as "2026-11-26 08:30:00 UTC".

    Other text is returned unchanged, and "" as a dash.
    """
    try:
        parsed = datetime.fromisoformat(timestamp)
    except ValueError:
        return timestamp or NONE
    return f"{parsed:%Y-%m-%d %H:%M:%S} {parsed.tzname() or ''}".rstrip()


def describe_status(status: str) -> str:
    """Return the meaning of a row's status, such as `corrupt_image`.

    The result is "" for a status that only a later version of Touchstone knows.
    """
    return Status(status).meaning if status in set(Status) else ""


def describe_reason(word: str) -> str:
    """Return the text that explains why a verdict is `abstain`.

    `word` is the reason as in a result row, such as `inside_band`. A reason that only another
    version of Touchstone knows is returned unchanged.
    """
    return Reason(word).meaning if word in set(Reason) else word


def reasons(counts: Mapping[str, int], limit: int) -> list[tuple[str, int]]:
    """Return the most frequent reasons for the verdict `abstain`, as texts with their counts.

    Args:
        counts: Number of images by reason, such as `inside_band`.
        limit: Maximum number of reasons. One more entry sums up the other reasons.

    Returns:
        (text, number of images) pairs in descending order.
    """
    return largest({describe_reason(word): number for word, number in counts.items()}, limit)


def explain_abstention(word: str, detail: str | None) -> str:
    """Return the text that explains why the verdict of one image is `abstain`.

    Args:
        word: The reason as in a result row, such as `inside_band`.
        detail: Part of the explanation that differs between images, such as a value. None without
            such a part.

    Returns:
        The text, such as "the score is between the two thresholds".
    """
    return f"{describe_reason(word)}: {detail}" if detail else describe_reason(word)


def describe_own_failures(number: int) -> str:
    """Return a sentence on the number of files that have no score because of a bug in Touchstone.

    The sentence asks the user to report the bug, and names the option to score the files again.
    """
    return (
        f"{pluralize(number, 'row')} failed in Touchstone's own code; please report it with the traceback in the log. "
        "A later version can score them again with --retry decoder_crashed"
    )


def ordered_statuses(statuses: Mapping[str, int]) -> list[tuple[str, int]]:
    """Return statuses with their counts: `ok` first, then the others in descending order.

    Statuses that did not occur are left out.
    """
    present = [(status, number) for status, number in statuses.items() if number]
    return sorted(present, key=lambda item: (item[0] != Status.OK, -item[1], item[0]))


def largest(counts: Mapping[str, int], limit: int) -> list[tuple[str, int]]:
    """Return the `limit` highest counts with their names, in descending order.

    One more entry, such as ("3 others", 12), sums up the rest. Zeros are left out.
    """
    ranked = sorted(
        ((name, number) for name, number in counts.items() if number),
        key=lambda item: (-item[1], item[0]),
    )
    others = ranked[limit:]
    return ranked[:limit] + (
        [(f"{len(others):,} others", sum(number for _, number in others))] if others else []
    )


def headline(run: "RunSummary") -> str:
    """Describe the result of a run in one sentence: the number of files by verdict.

    The sentence also has the number of files that could not be scored.
    """
    if not run.members:
        return "No files: there was nothing to score."
    if run.members == run.statuses.get(Status.UNSUPPORTED_FORMAT, 0):
        none = (
            "The file is not an image"
            if run.members == 1
            else f"None of the {run.members:,} files is an image"
        )
        return f"{none} that Touchstone reads: nothing was scored."
    parts = []
    if run.scored:
        fake, left_open, real = (run.verdict(verdict) for verdict in VERDICT_PHRASES)
        parts.append(f"{count(fake) if fake else 'none'} flagged as fake")
        parts += [f"{left_open:,} left open"] if left_open else []
        parts += [f"{real:,} with no evidence found"] if real else []
    if run.not_scored:
        parts.append(f"{run.not_scored:,} could not be scored")
    if run.members > run.rows:
        parts.append(f"{run.members - run.rows:,} not reached yet")
    return f"{pluralize(run.members, 'file')}: {', '.join(parts)}."


def name_metric(key: str) -> str:
    """Return the name to show for the key of a metric, such as `tpr_at_fpr_1`.

    An unknown key is returned with spaces for underscores.
    """
    return MEANINGS[key].words if key in MEANINGS else truncate(key.replace("_", " "), 60)


def format_metric(key: str, value: float | None) -> str:
    """Format a value of the metric with this key; a dash for None.

    Fractions are in per cent. Losses have at least three decimals, other values have four.
    """
    if key in MEANINGS and MEANINGS[key].is_share:
        return percent(value)
    if key in ("log_loss", "loss"):
        return number(value, decimals=3)
    return number(value, 1, decimals=4)


def format_metric_interval(key: str, metric: "MetricValue") -> str:
    """Format the interval of a metric, such as "90.1 to 92.4 %"; "" if it has none."""
    if metric.interval is None:
        return ""
    return interval(metric.interval, partial(format_metric, key))


def format_metric_with_interval(key: str, metric: "MetricValue") -> str:
    """Format a metric with its interval in parentheses, such as "91.3 % (90.1 to 92.4 %)".

    `key` is the key of the metric, such as `auc`. The result is a dash if `metric` has no value.
    """
    bounds = format_metric_interval(key, metric)
    return format_metric(key, metric.value) + (f" ({bounds})" if bounds else "")


def _escape(character: str) -> str:
    if character in _SHORT_ESCAPES:
        return _SHORT_ESCAPES[character]
    code = ord(character)
    return (
        f"\\x{code:02x}"
        if code < 0x100
        else f"\\u{code:04x}"
        if code < 0x10000
        else f"\\U{code:08x}"
    )


def _take_columns(text: str, limit: int) -> str:
    return chop_cells(text, limit)[0] if text and limit > 0 else ""
