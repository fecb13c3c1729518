"""Format numbers, names, and metrics, equally on pages and on the terminal.

Numbers have four formats: `count`, `percent`, `number`, and `signed` for log-odds and differences.
`duration`, `size`, and `moment` add units; `probability` and `written` choose one of the four.
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
from ray_app.errors import VERDICT_WORDS as VERDICT_WORDS
from ray_app.metrics.registry import METRICS

if TYPE_CHECKING:
    from ray_app.metrics.values import MetricValue
    from ray_app.runs.document import RunSummary, SessionSummary

C2PA_WORDS = {
    "trusted": "unchanged since it was signed, by a signer on a trust list",
    "intact": "unchanged since it was signed, by a signer unknown here",
    "invalid": "the picture or the manifest was changed after it was signed",
    "unreadable": "could not be checked, or lies elsewhere and was not fetched",
}
DEMONSTRATION = "Demonstration detector: it shows that the machinery works and is not for decisions about any image."
UNCALIBRATED = "Probability not calibrated: it is the plain sigmoid of the score."
NONE = "–"
_MOST_SETTINGS, _LONGEST_SETTING = 6, 80
_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_FORMULA = re.compile(r"\s*[=+\-@\t\r\n＝＋－＠]")
_MARKS = frozenset({"Mn", "Me"})
_MOST_MARKS = 4  # on one letter; more is no script but a way to paint over the neighbours
_SHORT_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
KEY_FIGURES = ("auc", "tpr_at_fpr_1", "balanced_accuracy", "tpr", "tnr", "ece")
METHODS: Mapping[str, str] = {
    "clopper-pearson": "Clopper–Pearson",
    "jackknife": "jackknife",
    "woodruff": "Woodruff",
    "student": "Student",
}


class Meaning(NamedTuple):
    """The name of a figure, what it means in a sentence, and whether it is a share, written in per
    cent.
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
        "The least AUC that a generator has against all real images.",
        False,
    ),
    "loss": Meaning(
        "loss",
        "Mean cross-entropy of the log-odds, in nats: 0.693 is a coin, less is better.",
        False,
    ),
    "tpr_mean": Meaning(
        "fakes found, mean of generators",
        "Each generator counts the same, however many images it has.",
    ),
    "tpr_weighted": Meaning(
        "fakes found, by number of images",
        "Each generator counts by its images: the share of all fakes.",
    ),
    "reals_named": Meaning(
        "real images given a generator’s name",
        "The share of real images of which a generator was named all the same.",
    ),
    "top_1": Meaning(
        "nearest known is right",
        "The share of fakes by known generators of which the nearest known one is right, given up or not.",
    ),
    "top_3": Meaning(
        "among the first 3",
        "The share of fakes whose generator is among the three likeliest names.",
    ),
    "top_5": Meaning(
        "among the first 5", "The share of fakes whose generator is among the five likeliest names."
    ),
    "unknown_named": Meaning(
        "unknown ones given a known name",
        "The share of fakes by unknown generators that got a known one’s name.",
    ),
    "abstained_known": Meaning(
        "known ones left unnamed",
        "The share of fakes by known generators that were taken for none of them.",
    ),
    "abstained_unknown": Meaning(
        "unknown ones left unnamed",
        "The share of fakes by unknown generators that were taken for none.",
    ),
    "abstained": Meaning(
        "taken for none of the known",
        "The share of the images asked for which no generator was named.",
    ),
    "family_accuracy": Meaning(
        "family named correctly",
        "The share of fakes whose base architecture is named correctly, in any version.",
    ),
    "coverage": Meaning(
        "coverage",
        "The share of images that get a verdict, fake or no evidence, and no abstention.",
    ),
    "accuracy_of_decided": Meaning(
        "accuracy where it decides", "The share judged correctly of the images that get a verdict."
    ),
    "tpr_of_decided": Meaning(
        "fakes found where it decides", "The share called fake of the fakes that get a verdict."
    ),
    "tnr_of_decided": Meaning(
        "real images cleared where it decides",
        "The share not flagged of the real images that get a verdict.",
    ),
    "accuracy_strict": Meaning(
        "accuracy, abstaining is wrong",
        "The share judged correctly of all images: no verdict and no score count as wrong.",
    ),
    "balanced_accuracy_strict": Meaning(
        "balanced accuracy, abstaining is wrong", "The mean of the two strict shares."
    ),
    "tpr_strict": Meaning(
        "fakes found, abstaining is wrong",
        "The share called fake of all fakes, those without a score included.",
    ),
    "tnr_strict": Meaning(
        "real images cleared, abstaining is wrong", "The share cleared of all real images."
    ),
    "aurc": Meaning(
        "area under risk–coverage",
        "The share judged wrongly, averaged over all ways to abstain where the score is nearest the threshold.",
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
        "The chance that an altered pixel scores above an unaltered one of the same image.",
        False,
    ),
    "pixel_accuracy": Meaning(
        "accuracy of pixels",
        "The share of pixels judged correctly. Small edits make it high whatever is marked.",
    ),
    "macro_f1": Meaning(
        "macro F1",
        "F1 of each generator by name, averaged: rare ones count as much as frequent ones.",
        False,
    ),
    "micro_f1": Meaning(
        "micro F1",
        "F1 of all answers together; those that were named none lower it less than accuracy.",
        False,
    ),
    "weighted_f1": Meaning(
        "weighted F1", "F1 of each generator by name, averaged by number of images.", False
    ),
    "macro_precision": Meaning(
        "macro precision", "The share of each name’s answers that are right, averaged over names."
    ),
    "micro_precision": Meaning(
        "correct where a name was given", "The share of names given that are right."
    ),
    "recall": Meaning("recall", "The share of a generator’s images that is named correctly."),
    "macro_recall": Meaning(
        "macro recall", "The share of each generator’s images named correctly, averaged over names."
    ),
    "open_set_auroc": Meaning(
        "open-set AUROC",
        "How well confidence tells known generators from those that cannot be named.",
        False,
    ),
    "clip_image": Meaning(
        "CLIP, image made anew",
        "Cosine of an image and of what its predicted prompt gives back.",
        False,
    ),
    "clip_image_chance": Meaning(
        "CLIP, image of another prompt",
        "The same with what other images’ prompts give back.",
        False,
    ),
}
MEANINGS: Mapping[str, Meaning] = {
    name: Meaning(metric.title, metric.sentence, metric.is_share)
    for name, metric in METRICS.items()
} | _OTHERS
"""Every figure of an evaluation: the metrics of the registry, and figures that others compute."""


def visible(text: str) -> str:
    """Show as an escape what would hide, reorder or overflow text: controls, bidi marks, zero
    width, lone surrogates, piles of marks.
    """
    if text.isascii() and text.isprintable():
        return text
    shown, marks = [], 0
    for character in text:
        category = unicodedata.category(character)
        marks = marks + 1 if category in _MARKS else 0
        shown.append(
            _escaped(character) if category in _INVISIBLE or marks > _MOST_MARKS else character
        )
    return "".join(shown)


def adds_to_finding(verdict: str | None, finding: str | None) -> bool:
    """Return whether a row's verdict says more than its finding, which rests on other grounds."""
    return verdict is not None and finding != DETECTOR_FINDINGS.get(verdict)


def no_formula(text: str) -> str:
    """A cell's text with a ' before it where a spreadsheet would run it (OWASP, CSV injection)."""
    return f"'{text}" if _FORMULA.match(text) else text


def columns(text: str) -> int:
    """Return the terminal columns that a text needs: 2 for an East Asian wide character."""
    return cell_len(text)


def shortened(text: str, limit: int) -> str:
    """The visible text in at most `limit` columns; the middle goes, because the end of a path is
    the most specific.
    """
    text = visible(text)
    if columns(text) <= limit:
        return text
    if limit < 2:
        return "…"[:limit]
    tail = _leading(text[::-1], (limit - 1) * 2 // 3)[::-1]
    return _leading(text, limit - 1 - columns(tail)) + "…" + tail


def file_name(uri: str, member: str | None) -> str:
    """One name for a member: its object, and its place inside where the object is an archive."""
    return uri if member is None else f"{uri} › {member}"


def count(number: int) -> str:
    """An integer with thousands separated."""
    return f"{number:,}"


def counted(number: int, noun: str) -> str:
    """A number with its regular noun."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def second_look(run: "RunSummary") -> list[str]:
    """Of a cascade, which share of images all detectors scored, and what either stage takes;
    nothing of any other run.
    """
    found, looks = run.second_look, run.session.looks or {}
    if found is None:
        return []
    audited = f"{count(found.band)} in the uncertain band, {count(found.audit)} drawn by the audit"
    said = [f"all detectors looked at {percent(found.share)} of the images: {audited}"]
    hours = {name: look.hours_per_million for name, look in looks.items()}
    if all(hours.get(name) is not None for name in ("first", "second")):
        costs = {
            name: f" ({number(look.cost_per_million, decimals=2)})"
            if look.cost_per_million is not None
            else ""
            for name, look in looks.items()
        }
        said.append(
            f"a million such images take {number(hours['first'] or 0.0)} worker hours{costs['first']} for the first look, "
            f"{number(hours['second'] or 0.0)}{costs['second']} for the second"
        )
    return said


def listing_in_words(listed: int, new: int, blocks: int) -> str:
    """Return a sentence on a finished listing.

    Args:
        listed: How many files the listing saw.
        new: How many of them are new or changed.
        blocks: The blocks of the new files.
    """
    if not new:
        return f"listed {counted(listed, 'file')}, none of them new or changed"
    in_blocks = f"in {counted(blocks, 'block')}"
    if new == listed:
        return f"listed {counted(listed, 'file')} {in_blocks}"
    return f"listed {counted(listed, 'file')}, {new:,} of them new or changed, {in_blocks}"


def linked_folders_in_words(count: int, example: str) -> str:
    """A sentence on linked folders that a listing did not follow; nothing where there are none."""
    if not count:
        return ""
    what = f"{counted(count, 'linked folder')} {'is' if count == 1 else 'are'} not followed, e.g. {visible(example)}"
    return f"{what}: name {'it as a source of its own' if count == 1 else 'them as sources of their own'} to score the files in there"


def kept_settings(session: "SessionSummary") -> list[str]:
    """Which settings are as the run was begun and not as today, and how to move; nothing where all
    are as today.
    """
    kept = session.kept
    if not kept:
        return []
    shown = [
        [shortened(text, _LONGEST_SETTING) for text in (one.key, one.run, one.today)]
        for one in kept[:_MOST_SETTINGS]
    ]
    named = [f"{key} {run} (today {today})" for key, run, today in shown]
    more = f" and {len(kept) - len(named)} more in summary.json" if len(kept) > len(named) else ""
    return [
        f"{'; '.join(named)}{more}",
        "the command does not set them, so they stay as the run was begun; a new --out begins with those of today; to keep them on "
        "purpose, set them (--set KEY=VALUE)",
    ]


def unguarded(session: "SessionSummary") -> list[str]:
    """What was lost on a store without conditional writes; nothing on any other."""
    return [
        "nothing stops two commands from writing into this directory at once: its store has no conditional writes"
    ] * bool(session.unguarded)


def number(value: float | None, digits: int = 3, *, decimals: int = 0) -> str:
    """Format a number without an exponent; a dash for None.

    It keeps all digits before the point, and never rounds a number to 0 or from below to 1.

    Args:
        value: The number.
        digits: The number of significant digits, less zeros at the end.
        decimals: The minimum of digits after the point: 2 for an amount of money, 3 for an AUC.
    """
    if value is None or not math.isfinite(value):
        return NONE
    if 0 < abs(value) < 0.0001:
        return "< 0.0001" if value > 0 else "> −0.0001"
    exponent = math.floor(math.log10(abs(value))) if value else 0
    places = max(decimals, digits - 1 - exponent, 0)
    whole, point, fraction = f"{value:,.{places}f}".partition(".")
    if value < 1 and whole == "1":
        return f"> 0.{'9' * places}"
    fraction = fraction.rstrip("0").ljust(decimals, "0")
    return f"{whole}{point if fraction else ''}{fraction}".replace("-", "−")


def signed(value: float | None, decimals: int = 2) -> str:
    """Format a score in log-odds or a difference, with its sign; a dash for None."""
    if value is None or not math.isfinite(value):
        return NONE
    return f"{round(value, decimals) + 0.0:+.{decimals}f}".replace("-", "−")


def interval(ends: Sequence[float | None], write: Callable[[float | None], str]) -> str:
    """Format the two ends of an interval, with their unit once: "90.1 to 92.4 %".

    Args:
        ends: The lower and the upper end.
        write: Formats one end, for example `percent`.
    """
    low, high = map(write, ends)
    has_one_unit = low.endswith(" %") and high.endswith(" %") and not high.startswith("<")
    return f"{low.removesuffix(' %') if has_one_unit else low} to {high}"


def percent(fraction: float | None, digits: int | None = None) -> str:
    """Format a fraction in per cent; it is never rounded to 0 or 100.

    Args:
        fraction: A number from 0 to 1.
        digits: The maximum of significant digits, for a rate that somebody chose ("1 %"); 0 for whole
            per cent, in a sentence. By default one digit after the point, two near the ends.
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
    """Format a probability or a p-value, which is never 0 or 1 whatever a float can hold."""
    if value is None or not math.isfinite(value):
        return NONE
    return number(min(max(value, 1e-9), 1 - 1e-9), 1, decimals=4)


def duration(seconds: float | None) -> str:
    """A time span in its two largest units."""
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
    """A size in decimal units."""
    value = float(size_bytes)
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if value < 999.95:
            return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:,.1f} PB"


def moment(timestamp: str) -> str:
    """An ISO time as `YYYY-MM-DD HH:MM:SS UTC`; any other text as it is, a dash for none."""
    try:
        parsed = datetime.fromisoformat(timestamp)
    except ValueError:
        return timestamp or NONE
    return f"{parsed:%Y-%m-%d %H:%M:%S} {parsed.tzname() or ''}".rstrip()


def meaning(status: str) -> str:
    """The meaning of a status; nothing for a status of a later version."""
    return Status(status).meaning if status in set(Status) else ""


def reason(word: str) -> str:
    """The reason of an abstention in words; a word of another version as it stands."""
    return Reason(word).meaning if word in set(Reason) else word


def reasons(counts: Mapping[str, int], limit: int) -> list[tuple[str, int]]:
    """Why images abstain, in words, the most frequent first; the rest as one line."""
    return largest({reason(word): number for word, number in counts.items()}, limit)


def why(word: str, detail: str | None) -> str:
    """Why one image abstains, in words, with what varies."""
    return f"{reason(word)}: {detail}" if detail else reason(word)


def own_failures(number: int) -> str:
    """A sentence on rows that failed by bugs of ours."""
    return (
        f"{counted(number, 'row')} failed in Touchstone's own code; please report it with the traceback in the log. "
        "A later version tries them again with --retry decoder_crashed"
    )


def ordered_statuses(statuses: Mapping[str, int]) -> list[tuple[str, int]]:
    """`ok` first, then by count; those that did not occur are left out."""
    found = [(status, number) for status, number in statuses.items() if number]
    return sorted(found, key=lambda item: (item[0] != Status.OK, -item[1], item[0]))


def largest(counts: Mapping[str, int], limit: int) -> list[tuple[str, int]]:
    """The most frequent entries, most frequent first; the rest as one line."""
    ranked = sorted(
        ((name, number) for name, number in counts.items() if number),
        key=lambda item: (-item[1], item[0]),
    )
    rest = ranked[limit:]
    return ranked[:limit] + (
        [(f"{len(rest):,} others", sum(number for _, number in rest))] if rest else []
    )


def headline(run: "RunSummary") -> str:
    """The run in one sentence."""
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
        fake, abstained, real = (run.verdict(word) for word in VERDICT_WORDS)
        parts.append(f"{count(fake) if fake else 'none'} flagged as fake")
        parts += [f"{abstained:,} abstained"] if abstained else []
        parts += [f"{real:,} with no evidence found"] if real else []
    if run.not_scored:
        parts.append(f"{run.not_scored:,} could not be scored")
    if run.members > run.rows:
        parts.append(f"{run.members - run.rows:,} not reached yet")
    return f"{counted(run.members, 'file')}: {', '.join(parts)}."


def named(key: str) -> str:
    """The name of a figure; an unknown key with spaces for underscores."""
    return MEANINGS[key].words if key in MEANINGS else shortened(key.replace("_", " "), 60)


def written(key: str, value: float | None) -> str:
    """Format a value of that metric: fractions in per cent, losses with three digits, others with
    four.
    """
    if key in MEANINGS and MEANINGS[key].is_share:
        return percent(value)
    if key in ("log_loss", "loss"):
        return number(value, decimals=3)
    return number(value, 1, decimals=4)


def span(key: str, figure: "MetricValue") -> str:
    """A figure's interval, "90.1 to 92.4 %"; nothing where there is none."""
    if figure.interval is None:
        return ""
    return interval(figure.interval, partial(written, key))


def in_words(key: str, figure: "MetricValue") -> str:
    """A figure with its interval in brackets, or a dash."""
    ends = span(key, figure)
    return written(key, figure.value) + (f" ({ends})" if ends else "")


def _escaped(character: str) -> str:
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


def _leading(text: str, limit: int) -> str:
    return chop_cells(text, limit)[0] if text and limit > 0 else ""
