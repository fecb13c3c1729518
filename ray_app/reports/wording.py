"""Numbers, names and results in words, the same on the page and on the terminal. Knows no HTML."""

import math
import unicodedata
from collections.abc import Mapping, Sequence
from datetime import datetime

from ray_app.errors import MEANING, REASON_MEANING, Reason, Status
from ray_app.reports.run_summary import RunSummary, Session, StabilitySummary

VERDICT_WORDS = {"fake": "flagged as fake", "abstain": "abstained", "real": "no evidence found"}
C2PA_WORDS = {
    "trusted": "unchanged since it was signed, by a signer on the trust list",
    "intact": "unchanged since it was signed, by a signer who is not on the trust list",
    "invalid": "the picture or the manifest was changed after it was signed",
    "unreadable": "could not be checked, or lies elsewhere and was not fetched",
}
FIGURE_WORDS = {
    "auc": "AUC",
    "average_precision": "average precision",
    "mean_generator_auc": "mean AUC of generators",
    "worst_generator_auc": "AUC of the worst generator",
    "tpr_at_fpr_1": "fakes found at 1 % false flags",
    "balanced_accuracy": "balanced accuracy at even odds",
    "f1": "F1 at even odds",
    "loss": "loss",
    "pixel_f1": "F1 of pixels",
    "pixel_iou": "IoU of pixels",
}
DEMONSTRATION = "Demonstration detector: it shows that the machinery works and is not for decisions about any image."
UNCALIBRATED = "Probability not calibrated: it is the plain sigmoid of the score."
NONE = "–"

_MOST_SETTINGS, _LONGEST_SETTING = 6, 80
_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_MARKS = frozenset({"Mn", "Me"})
_MOST_MARKS = 4  # on one letter; more is no script but a way to paint over the neighbours
_SHORT_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def visible(text: str) -> str:
    """Show as an escape what would hide, reorder or overflow text: controls, bidi marks, zero width, lone surrogates, piles of marks."""
    if text.isascii() and text.isprintable():
        return text
    shown, marks = [], 0
    for character in text:
        category = unicodedata.category(character)
        marks = marks + 1 if category in _MARKS else 0
        shown.append(_escaped(character) if category in _INVISIBLE or marks > _MOST_MARKS else character)
    return "".join(shown)


def _escaped(character: str) -> str:
    if character in _SHORT_ESCAPES:
        return _SHORT_ESCAPES[character]
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def columns(text: str) -> int:
    """Terminal columns that a text takes: wide East Asian characters count two, combining marks none."""
    return len(text) if text.isascii() else sum(map(_character_columns, text))


def _character_columns(character: str) -> int:
    if unicodedata.category(character) in _MARKS:
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def shortened(text: str, limit: int) -> str:
    """The visible text in at most `limit` columns; the middle goes, because the end of a path says most."""
    text = visible(text)
    if columns(text) <= limit:
        return text
    if limit < 2:
        return "…"[:limit]
    tail = _leading(text[::-1], (limit - 1) * 2 // 3)[::-1]
    return _leading(text, limit - 1 - columns(tail)) + "…" + tail


def _leading(text: str, limit: int) -> str:
    used = 0
    for index, character in enumerate(text):
        used += _character_columns(character)
        if used > limit:
            return text[:index]
    return text


def file_name(uri: str, member: str | None) -> str:
    """One name for a member: its object, and its place inside where the object is an archive."""
    return uri if member is None else f"{uri} › {member}"


def count(number: int) -> str:
    """An integer with thousands separated."""
    return f"{number:,}"


def counted(number: int, noun: str) -> str:
    """A number with its regular noun."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def second_look(run: RunSummary) -> list[str]:
    """Of a cascade, which share of images all detectors looked at, and what either look takes; nothing of any other run."""
    found, looks = run.second_look, run.session.looks
    if found is None:
        return []
    audited = f"{count(found.band)} in the uncertain band, {count(found.audit)} drawn by the audit"
    said = [f"all detectors looked at {percent(found.share)} of the images: {audited}"]
    hours = {name: look.hours_per_million for name, look in looks.items()}
    if all(hours.get(name) is not None for name in ("first", "second")):
        costs = {name: f" ({money(look.cost_per_million)})" if look.cost_per_million is not None else "" for name, look in looks.items()}
        said.append(
            f"a million such images take {measured(hours['first'] or 0.0)} worker hours{costs['first']} for the first look, "
            f"{measured(hours['second'] or 0.0)}{costs['second']} for the second"
        )
    return said


def stability(found: StabilitySummary) -> list[str]:
    """What became of verdicts near a threshold when their images were recompressed; nothing where that was not asked for."""
    if not found.views:
        return []
    asked = f"{counted(found.asked, 'image')} within {found.margin:g} log-odds of a threshold"
    views = f"looked at in {counted(found.views, 'recompressed view')} each"
    said = [f"{asked}, {views}; {count(found.unstable)} of these verdicts changed and abstain"]
    if found.unasked:
        said.append(
            f"{counted(found.unasked, 'verdict')} near the threshold of today without such views: it was another when they were scored"
        )
    return said


def linked_words(count: int, example: str) -> str:
    """What to say of linked folders that a listing did not follow; nothing where there are none."""
    if not count:
        return ""
    what = f"{counted(count, 'linked folder')} {'is' if count == 1 else 'are'} not followed, e.g. {visible(example)}"
    return f"{what}: name {'it as a source of its own' if count == 1 else 'them as sources of their own'} to score what is in there"


def kept_settings(session: Session) -> list[str]:
    """Which settings are as the run was begun and not as today, and how to move; nothing where all are as today."""
    kept = session.kept
    if not kept:
        return []
    shown = [[shortened(text, _LONGEST_SETTING) for text in (one.key, one.run, one.today)] for one in kept[:_MOST_SETTINGS]]
    named = [f"{key} {run} (today {today})" for key, run, today in shown]
    more = f" and {len(kept) - len(named)} more in summary.json" if len(kept) > len(named) else ""
    return [
        f"{'; '.join(named)}{more}",
        "the command leaves them open, so they stay as the run was begun; to move, give a new --out, which begins with those of today; to "
        "stay on purpose, write the key down (--set KEY=VALUE)",
    ]


def unguarded(session: Session) -> list[str]:
    """What was lost on a store without conditional writes; nothing on any other."""
    return ["two commands that write into this directory at once are not noticed: its store has no conditional writes"] * session.unguarded


def decimal(number: float | None, digits: int = 1) -> str:
    """A number with fixed digits; a dash where there is none."""
    return NONE if number is None or not math.isfinite(number) else f"{number:,.{digits}f}"


def approximate(number: float) -> str:
    """An expected count: whole from ten on, one digit below, never a false zero."""
    if 0 < number < 0.1:
        return "< 0.1"
    return decimal(number, 0 if number >= 10 or number == 0 else 1)


def measured(number: float) -> str:
    """A measured number: three digits, all of them from a hundred on, and no exponent."""
    return f"{number:,.0f}" if number >= 99.95 else f"{number:.3g}" if number >= 0.001 else f"{number:.2g}"


def percent(share: float | None) -> str:
    """A share in per cent; more digits near 0 and 100, which it never reaches by rounding."""
    if share is None or not math.isfinite(share):
        return NONE
    value = 100 * share
    if value in (0, 100):
        return f"{value:.0f} %"
    if value < 0.01:
        return "< 0.01 %"
    if 99.99 < value < 100:
        return "> 99.99 %"
    return f"{value:.1f} %" if 1 <= value <= 99 else f"{value:.2f} %"


def stated(share: float) -> str:
    """A share that somebody chose or measured, in per cent with three digits at most."""
    return f"{100 * share:.3g} %"


def probability(value: float | None) -> str:
    """A probability with four digits; never 0 or 1 by rounding."""
    if value is None or not math.isfinite(value):
        return NONE
    if value < 0.0001:
        return "< 0.0001"
    return "> 0.9999" if value > 0.9999 else f"{value:.4f}"


def score(value: float | None) -> str:
    """A score in log-odds with its sign."""
    return NONE if value is None or not math.isfinite(value) else f"{value:+.2f}"


def duration(seconds: float | None) -> str:
    """A time span in its two largest units."""
    if seconds is None or not math.isfinite(seconds):
        return NONE
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60:02d} min"


def size(size_bytes: int) -> str:
    """A size in decimal units."""
    value = float(size_bytes)
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if value < 999.95:
            return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:,.1f} PB"


def money(amount: float) -> str:
    """An amount in whatever currency the prices are: two digits, more below one, never a false zero."""
    if 0 < amount < 0.0001:
        return "< 0.0001"
    return f"{amount:,.2f}" if amount >= 1 or amount == 0 else f"{amount:.4f}"


def moment(timestamp: str) -> str:
    """An ISO time as `YYYY-MM-DD HH:MM:SS UTC`; any other text as it is, a dash for none."""
    try:
        parsed = datetime.fromisoformat(timestamp)
    except ValueError:
        return timestamp or NONE
    return f"{parsed:%Y-%m-%d %H:%M:%S} {parsed.tzname() or ''}".rstrip()


def meaning(status: str) -> str:
    """What a status says; nothing for a status of a later version."""
    return MEANING[Status(status)] if status in set(Status) else ""


def reason(word: str) -> str:
    """What the reason of an abstention says; a word of another version as it stands."""
    return REASON_MEANING[Reason(word)] if word in set(Reason) else word


def reasons(counts: Mapping[str, int], limit: int) -> list[tuple[str, int]]:
    """Why images abstain, in words, the most frequent first; the rest as one line."""
    return largest({reason(word): number for word, number in counts.items()}, limit)


def why(word: str, detail: str | None) -> str:
    """Why one image abstains, in words, with what varies."""
    return f"{reason(word)}: {detail}" if detail else reason(word)


def own_failures(number: int) -> str:
    """What to say of rows that bugs of ours have cost."""
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
    ranked = sorted(((name, number) for name, number in counts.items() if number), key=lambda item: (-item[1], item[0]))
    rest = ranked[limit:]
    return ranked[:limit] + ([(f"{len(rest):,} others", sum(number for _, number in rest))] if rest else [])


def headline(run: RunSummary) -> str:
    """The run in one sentence."""
    if not run.members:
        return "No members: there was nothing to score."
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
    return f"{counted(run.members, 'member')}: {', '.join(parts)}."


def figure(name: str, value: float | None, ends: Sequence[float] = ()) -> str:
    """A figure of FIGURE_WORDS: shares in per cent, losses with three digits, areas and overlaps with four and never 1 by rounding.

    `ends`: its interval, which then follows in brackets.
    """
    if value is None or not math.isfinite(value):
        return NONE
    if len(ends) == 2:
        return f"{figure(name, value)} ({' to '.join(interval(name, ends))})"
    if name in ("tpr_at_fpr_1", "balanced_accuracy"):
        return percent(value)
    if name == "loss":
        return measured(value)
    return "> 0.9999" if 0.99995 <= value < 1 else f"{value:.4f}"


def interval(name: str, ends: Sequence[float]) -> list[str]:
    """The two ends of a figure's interval; nothing where there is none."""
    return [figure(name, end) for end in ends] if len(ends) == 2 else []
