"""Format plain text for the terminal: tables, paragraphs, result rows, and the end of a run."""

import shlex
import shutil
import textwrap
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ray_app.reports import format as wording

if TYPE_CHECKING:
    from ray_app.runs.document import RunSummary

GAP = "  "
OUTPUT_WIDTH = 120  # columns of output that is not a terminal
UNLIMITED = 2**20  # columns of lines that programs such as grep read
_NARROWEST = 10
_SHORT_VERDICTS = {"real": "no evidence"}
_NARROWEST_FILE = 16
_LONGEST_EXAMPLE = 72
_LONGEST_GENERATOR, _LONGEST_FINDING = 32, 44
_LONGEST_REASON = 72
_LONGEST_GROUPS, _MOST_DETECTORS = 160, 8
_MOST_REASONS, _MOST_FINDINGS, _MOST_DAYS = 5, 8, 3


def verdict_table(rows: Iterable[Mapping[str, Any]], width: int) -> str:
    """One line per row: file, finding, probability, score, status; aligned and at most `width`
    columns wide.

    Rows are result rows (`uri`, `member`, `finding`, `verdict`, `probability`, `score`, `status`,
    `calibrated`); missing values are dashes. A column has the verdicts that findings do not say,
    and all verdicts if no row has a finding. Another column names the generator that a profile
    finds nearest, of rows that are not called real. A folder that all files share is named once,
    above. Where the columns beside the file leave it fewer than 16, lines grow wider.
    """
    rows = list(rows)
    if not rows:
        return "no rows"
    names = [
        wording.visible(wording.file_name(str(row.get("uri") or ""), row.get("member")))
        for row in rows
    ]
    folder = _common_folder(names)
    uncalibrated = any(
        row.get("calibrated") is False and row.get("probability") is not None for row in rows
    )
    leading = _finding_columns(rows)
    heads = [*leading, "probability*" if uncalibrated else "probability", "score", "status"]
    cells = [
        [*(column[place] for column in leading.values()), *_cells(row)]
        for place, row in enumerate(rows)
    ]
    right = {len(leading) + 1, len(leading) + 2}
    named = [_named(row) for row in rows]
    if any(named):
        heads, cells = (
            [*heads, "nearest generator"],
            [[*line, words] for line, words in zip(cells, named, strict=True)],
        )
    widths = [
        max(wording.columns(line[index]) for line in [heads, *cells]) for index in range(len(heads))
    ]
    room = max(_NARROWEST_FILE, width - sum(widths) - len(GAP) * len(heads))
    files = [wording.shortened(name[len(folder) :], room) for name in names]
    lines = [f"in {wording.shortened(folder, max(width - 3, _NARROWEST_FILE))}"] if folder else []
    lines += table(
        ["file", *heads],
        [[file, *line] for file, line in zip(files, cells, strict=True)],
        right=right,
    )
    if uncalibrated:
        lines.append("* the plain sigmoid of the score, not calibrated")
    return "\n".join(lines)


def table(
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    width: int = UNLIMITED,
    *,
    right: Collection[int] = (),
) -> list[str]:
    """Return the lines of a table without borders.

    Columns of text wrap if the table is wider than `width`: between words if that is enough,
    otherwise inside of long words. Numbers never wrap.

    Args:
        heads: The heading of each column. An empty list leaves the line of headings out.
        rows: The cells of each row.
        width: The number of columns of the terminal.
        right: The columns that are aligned to the right, which are numbers.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    columns = list(zip(*([heads] if heads else []), *rows, strict=True))
    longest = [
        max(map(wording.columns, cells if column in right else " ".join(cells).split()), default=0)
        for column, cells in enumerate(columns)
    ]
    words_fit = sum(longest) + len(GAP) * (len(columns) - 1) <= width
    grid = Table(box=None, pad_edge=False, padding=(0, len(GAP), 0, 0), show_header=bool(heads))
    for column, cells in enumerate(columns):
        is_number = column in right
        grid.add_column(
            Text(cells[0] if heads else ""),
            justify="right" if is_number else "left",
            no_wrap=is_number,
            overflow="fold",
            min_width=longest[column] if is_number or words_fit else None,
        )
    for row in rows:
        grid.add_row(*map(Text, row))
    if not columns:
        return []
    console = Console(color_system=None, width=width)
    rendered = "".join(segment.text for segment in console.render(grid))
    return [line.rstrip() for line in rendered.split("\n")[:-1]]


def terminal_width(otherwise: int = OUTPUT_WIDTH) -> int:
    """Return the columns of the terminal, or `otherwise` if the output is not a terminal."""
    return shutil.get_terminal_size((otherwise, 24)).columns


def paragraph(text: str, width: int) -> list[str]:
    """The text in lines of at most `width` columns, broken at spaces only; one empty line for no
    text.
    """
    return textwrap.wrap(
        text, max(width, _NARROWEST), break_long_words=False, break_on_hyphens=False
    ) or [""]


def summary_lines(summary: Mapping[str, Any]) -> list[str]:
    """The end of a run in words: what became of the files, how fast, what held it up, where to read
    on.
    """
    from ray_app.reports.run import (
        guarantee_sentences,
        limit_sentences,
        profile_lines,
        unlike_sentence,
    )
    from ray_app.runs.document import RunSummary

    run = RunSummary.model_validate(dict(summary))
    lines = [wording.headline(run)]
    if unlike := unlike_sentence(run.guarantee.unlike if run.guarantee else None):
        lines.append(unlike.upper())
    if run.members and not run.complete:
        lines.append(
            f"not finished: {run.rows:,} of {wording.counted(run.members, 'file')} have a row; the same command goes on from here"
        )
    lines += [
        sentence.upper() if place == 0 else f"  {sentence}"
        for place, sentence in enumerate(limit_sentences(run))
    ]
    lines += _status_lines(run)
    if run.own_failures:
        lines.append(f"bug: {wording.own_failures(run.own_failures)}")
    if run.linked_folders.count:
        lines.append(
            f"not listed: {wording.linked_folders_in_words(run.linked_folders.count, run.linked_folders.example)}"
        )
    lines += _verdict_lines(run)
    lines += [wording.visible(run.error_rates)] if run.scored else []
    lines += [f"second look: {sentence}" for sentence in wording.second_look(run)]
    lines += [f"guarantee: {sentence}" for sentence in guarantee_sentences(run.guarantee)]
    lines += profile_lines(run.profile)
    lines += _declaration_lines(run)
    lines += _speed_lines(run)
    lines += [f"as begun: {sentence}" for sentence in wording.kept_settings(run.session)]
    lines += [f"unguarded: {sentence}" for sentence in wording.unguarded(run.session)]
    if run.scored and run.ensemble.demonstration:
        lines.append(wording.DEMONSTRATION)
    lines += [
        f"limits: {wording.visible(sentence)}"
        for sentence in (run.ensemble.blind_to or ())
        if run.scored
    ]
    if run.scored and not run.ensemble.calibrated:
        lines.append(wording.UNCALIBRATED)
    if run.run:
        lines.append(f"report: {wording.visible(run.run.rstrip('/'))}/report.html")
        lines.append(f"rows: touchstone results {wording.visible(shlex.quote(run.run))}")
        if any(member.masks for member in run.ensemble.members):
            lines.append(
                f"masks: touchstone runs masks {wording.visible(shlex.quote(run.run))} --out FOLDER"
            )
    return lines


def _finding_columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return the columns with findings and verdicts by their heads."""
    verdicts = []
    for row in rows:
        verdict = str(row.get("verdict") or wording.NONE)
        verdicts.append(wording.visible(_SHORT_VERDICTS.get(verdict, verdict)))
    if not any("finding" in row for row in rows):
        return {"verdict": verdicts}
    found = [
        wording.shortened(row.get("finding") or wording.NONE, _LONGEST_FINDING) for row in rows
    ]
    adds = [wording.adds_to_finding(row.get("verdict"), row.get("finding")) for row in rows]
    if not any(adds):
        return {"finding": found}
    differing = [verdict if add else "" for verdict, add in zip(verdicts, adds, strict=True)]
    return {"finding": found, "verdict": differing}


def _cells(row: Mapping[str, Any]) -> list[str]:
    return [
        wording.probability(row.get("probability")),
        wording.signed(row.get("score")).replace("−", "-"),
        wording.visible(str(row.get("status") or wording.NONE)),
    ]


def _named(row: Mapping[str, Any]) -> str:
    """The predicted generator of a row that is not called real; "unknown" where the image is like
    no known generator.
    """
    if row.get("verdict") == "real" or row.get("generator_confidence") is None:
        return ""
    name = row.get("predicted_generator")
    return "unknown" if name is None else wording.shortened(str(name), _LONGEST_GENERATOR)


def _common_folder(names: Sequence[str]) -> str:
    """The longest prefix of all names that ends with a slash, where there is more than one name to
    share it.
    """
    if len(names) < 2:
        return ""
    # The first and the last in order differ the earliest, so their shared start is everybody's.
    first, last = min(names), max(names)
    shared = next(
        (index for index, (a, b) in enumerate(zip(first, last, strict=False)) if a != b),
        min(len(first), len(last)),
    )
    return first[: first.rfind("/", 0, shared) + 1]


def _status_lines(run: "RunSummary") -> list[str]:
    rows = []
    for status, number in wording.ordered_statuses(run.statuses):
        rows.append([wording.visible(status), wording.count(number), wording.meaning(status)])
        examples = run.examples.get(status, [])
        if examples and status != "ok":
            name = wording.shortened(
                wording.file_name(examples[0].uri, examples[0].member), _LONGEST_EXAMPLE
            )
            detail = (
                f": {wording.shortened(examples[0].detail, _LONGEST_EXAMPLE)}"
                if examples[0].detail
                else ""
            )
            rows.append(["", "", f"e.g. {name}{detail}"])
    return [f"  {line}" for line in table([], rows, right={1})]


def _verdict_lines(run: "RunSummary") -> list[str]:
    if not run.scored:
        return []
    found = [
        f"{wording.shortened(words, _LONGEST_REASON)} {number:,}"
        for words, number in wording.largest(run.findings, _MOST_FINDINGS)
    ]
    lines = [f"findings: {', '.join(found)}"] if run.has_other_findings else []
    days = [
        f"{wording.visible(day)} {wording.counted(one.get('files', 0), 'file')}, {one.get('fake', 0):,} flagged"
        for day, one in run.days.items()
    ]
    lines += [f"by day: {'; '.join(days[-_MOST_DAYS:])}"] if len(days) > 1 else []
    reasons = wording.reasons(run.verdict_reasons, _MOST_REASONS)
    if reasons:
        lines.append(
            "no verdict because: "
            + "; ".join(
                f"{wording.shortened(why, _LONGEST_REASON)} ({number:,})" for why, number in reasons
            )
        )
    return lines


def _declaration_lines(run: "RunSummary") -> list[str]:
    said = run.provenance
    signers = [
        f"C2PA: {wording.counted(number, 'signer')} {where}"
        for where, number in said.signers.items()
    ]
    if not said.declaring:
        return signers
    parts = [
        f"{number:,} {words}"
        for word, words in wording.VERDICT_WORDS.items()
        if (number := said.declared.get(word, 0))
    ]
    parts += [f"{number:,} without a verdict"] if (number := said.declared.get("none", 0)) else []
    who = (
        "1 file declares itself"
        if said.declaring == 1
        else f"{said.declaring:,} files declare themselves"
    )
    return [f"beside the verdicts: {who} AI-generated: {', '.join(parts)}", *signers]


def _speed_lines(run: "RunSummary") -> list[str]:
    session = run.session
    if not session.rows:
        return ["nothing was scored this time: no file is new or changed"] if run.rows else []
    rate = (
        "too short to tell"
        if session.images_per_s is None
        else f"{wording.number(session.images_per_s)} images/s"
    )
    lines = [
        f"speed: {rate}, first result after {wording.duration(session.first_result_s)}, "
        f"{wording.counted(session.rows, 'row')} and {wording.size(session.bytes_read)} in {wording.duration(session.wall_s)}"
    ]
    cost = session.cost
    if cost is not None:
        parts = f"machines {wording.number(cost.compute or 0.0, decimals=2)}, egress {wording.number(cost.egress, decimals=2)}"
        lines.append(f"cost: {wording.number(cost.total, decimals=2)} by the prices set: {parts}")
    if session.peak_worker_bytes:
        of_all = session.memory and session.memory.total_bytes
        of_node = f" of at most {wording.size(of_all)} on a node" if of_all else ""
        lines.append(
            f"memory: at most {wording.size(session.peak_worker_bytes)} in one worker{of_node}"
        )
    for name, sharing in session.backbones.items():
        if sharing.asked > sharing.runs:
            requests = wording.counted(sharing.asked, "request")
            lines.append(
                f"shared: {wording.visible(name)} ran {wording.counted(sharing.runs, 'time')} for {requests} of detectors"
            )
    if session.groups:
        names = " | ".join(", ".join(group) for group in session.groups)
        shown = wording.visible(wording.shortened(names, _LONGEST_GROUPS))
        busy_s = sum(session.seconds.values()) - session.seconds.get("list", 0.0)
        loading = wording.percent(session.seconds.get("load", 0.0) / max(busy_s, 1e-9))
        lines.append(
            f"turns: {wording.counted(len(session.groups), 'group')} of detectors took turns in "
            f"each worker, {loading} of the time to load them: {shown}"
        )
    costly = sorted((session.detectors or {}).items(), key=lambda item: -item[1].seconds)
    if len(costly) > 1:
        spent = (
            f"{wording.visible(name)} {wording.number(one.ms_per_image)} ms"
            for name, one in costly[:_MOST_DETECTORS]
            if one.ms_per_image
        )
        others = len(costly) - _MOST_DETECTORS
        rest = f", {others} others less" if others > 0 else ""
        lines.append(f"detectors: per image on one worker {', '.join(spent)}{rest}")
    if session.throttled or session.retried:
        repeated = wording.counted(session.retried, "read")
        lines.append(
            f"storage: it asked {wording.counted(session.throttled, 'time')} to slow down; {repeated} repeated"
        )
    if run.scored and run.bottleneck and run.bottleneck.stage:
        share = (
            f" ({wording.percent(run.bottleneck.share)} of the workers' time)"
            if run.bottleneck.share is not None
            else ""
        )
        advice = f": {wording.visible(run.bottleneck.advice)}" if run.bottleneck.advice else ""
        lines.append(f"bottleneck: {wording.visible(run.bottleneck.stage)}{share}{advice}")
    return lines
