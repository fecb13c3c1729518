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
OUTPUT_WIDTH = 120  # Columns of output that is not a terminal.
UNLIMITED = 2**20  # Columns of lines that programs such as grep read.
_MIN_WIDTH = 10
_SHORT_VERDICTS = {"real": "no evidence"}
_MIN_FILE_WIDTH = 16
_MAX_EXAMPLE_WIDTH = 72
_MAX_GENERATOR_WIDTH, _MAX_FINDING_WIDTH = 32, 44
_MAX_REASON_WIDTH = 72
_MAX_GROUPS_WIDTH, _MAX_DETECTORS = 160, 8
_MAX_REASONS, _MAX_FINDINGS, _MAX_DAYS = 5, 8, 3


def verdict_table(rows: Iterable[Mapping[str, Any]], width: int) -> str:
    """Return a table with one line per result row: file, finding, probability, score, and status.

    A folder that all files share is shown once, above the table. Missing values are dashes.

    A finding is the conclusion on the origin of a file, which usually follows from the verdict. An
    additional column shows the verdicts on files whose finding comes from other evidence. If no
    row has a finding, the verdicts replace the findings.

    If generators were predicted, the last column names the nearest known generator of each image,
    or `unknown`. It is empty for images with the verdict `real`.

    Args:
        rows: Result rows with `uri`, `member`, `finding`, `verdict`, `probability`, `score`,
            `status`, and `calibrated`.
        width: Maximum width in columns. Lines are wider if fewer than 16 columns remain for the
            file.

    Returns:
        The table as one text; "no rows" without rows.
    """
    rows = list(rows)
    if not rows:
        return "no rows"
    names = [
        wording.escape_invisible(wording.file_name(str(row.get("uri") or ""), row.get("member")))
        for row in rows
    ]
    folder = _common_folder(names)
    uncalibrated = any(
        row.get("calibrated") is False and row.get("probability") is not None for row in rows
    )
    finding_columns = _make_finding_columns(rows)
    headers = [
        *finding_columns,
        "probability*" if uncalibrated else "probability",
        "score",
        "status",
    ]
    cells = [
        [*(column[index] for column in finding_columns.values()), *_format_cells(row)]
        for index, row in enumerate(rows)
    ]
    right = {len(finding_columns) + 1, len(finding_columns) + 2}
    generators = [_name_generator(row) for row in rows]
    if any(generators):
        headers, cells = (
            [*headers, "nearest generator"],
            [[*line, generator] for line, generator in zip(cells, generators, strict=True)],
        )
    widths = [
        max(wording.columns(line[index]) for line in [headers, *cells])
        for index in range(len(headers))
    ]
    file_width = max(_MIN_FILE_WIDTH, width - sum(widths) - len(GAP) * len(headers))
    files = [wording.truncate(name[len(folder) :], file_width) for name in names]
    lines = [f"in {wording.truncate(folder, max(width - 3, _MIN_FILE_WIDTH))}"] if folder else []
    lines += table(
        ["file", *headers],
        [[file, *line] for file, line in zip(files, cells, strict=True)],
        right=right,
    )
    if uncalibrated:
        lines.append("* the plain sigmoid of the score, not calibrated")
    return "\n".join(lines)


def table(
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    width: int = UNLIMITED,
    *,
    right: Collection[int] = (),
) -> list[str]:
    """Return the lines of a table without borders.

    Columns of text wrap if the table is wider than `width`: between words if that is sufficient,
    else inside long words. Numbers never wrap.

    Args:
        headers: Header of each column. An empty list for no line of headers.
        rows: Cells of each row.
        width: Width of the terminal in columns.
        right: Indices of columns of numbers, which are aligned to the right.

    Returns:
        The lines; none if there are neither headers nor rows.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    columns = list(zip(*([headers] if headers else []), *rows, strict=True))
    min_widths = [
        max(map(wording.columns, cells if column in right else " ".join(cells).split()), default=0)
        for column, cells in enumerate(columns)
    ]
    words_fit = sum(min_widths) + len(GAP) * (len(columns) - 1) <= width
    grid = Table(box=None, pad_edge=False, padding=(0, len(GAP), 0, 0), show_header=bool(headers))
    for column, cells in enumerate(columns):
        is_number = column in right
        grid.add_column(
            Text(cells[0] if headers else ""),
            justify="right" if is_number else "left",
            no_wrap=is_number,
            overflow="fold",
            min_width=min_widths[column] if is_number or words_fit else None,
        )
    for row in rows:
        grid.add_row(*map(Text, row))
    if not columns:
        return []
    console = Console(color_system=None, width=width)
    rendered = "".join(segment.text for segment in console.render(grid))
    return [line.rstrip() for line in rendered.split("\n")[:-1]]


def terminal_width(default: int = OUTPUT_WIDTH) -> int:
    """Return the width of the terminal in columns, or `default` if the output is not a terminal."""
    return shutil.get_terminal_size((default, 24)).columns


def paragraph(text: str, width: int) -> list[str]:
    """Break a text at spaces into lines of at most `width` columns; one empty line for no text."""
    return textwrap.wrap(
        text, max(width, _MIN_WIDTH), break_long_words=False, break_on_hyphens=False
    ) or [""]


def summary_lines(summary: Mapping[str, Any]) -> list[str]:
    """Return the lines to print after a scoring run: results, warnings, speed, and next commands.

    Args:
        summary: The content of `summary.json` in the run directory.

    Returns:
        The lines, the first of which is the headline.

    Raises:
        pydantic.ValidationError: If the summary is invalid.
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
            f"not finished: {run.rows:,} of {wording.pluralize(run.members, 'file')} have a row; run the same command again to resume"
        )
    lines += [
        sentence.upper() if index == 0 else f"  {sentence}"
        for index, sentence in enumerate(limit_sentences(run))
    ]
    lines += _status_lines(run)
    if run.own_failures:
        lines.append(f"bug: {wording.describe_own_failures(run.own_failures)}")
    if run.linked_folders.count:
        lines.append(
            f"not listed: {wording.describe_linked_folders(run.linked_folders.count, run.linked_folders.example)}"
        )
    lines += _verdict_lines(run)
    lines += [wording.escape_invisible(run.error_rates)] if run.scored else []
    lines += [f"second stage: {sentence}" for sentence in wording.second_look(run)]
    lines += [f"guarantee: {sentence}" for sentence in guarantee_sentences(run.guarantee)]
    lines += profile_lines(run.profile)
    lines += _declaration_lines(run)
    lines += _speed_lines(run)
    lines += [f"kept settings: {sentence}" for sentence in wording.kept_settings(run.session)]
    lines += [f"unguarded: {sentence}" for sentence in wording.unguarded(run.session)]
    if run.scored and run.ensemble.demonstration:
        lines.append(wording.DEMONSTRATION)
    lines += [
        f"limits: {wording.escape_invisible(sentence)}"
        for sentence in (run.ensemble.blind_to or ())
        if run.scored
    ]
    if run.scored and not run.ensemble.calibrated:
        lines.append(wording.UNCALIBRATED)
    if run.run:
        lines.append(f"report: {wording.escape_invisible(run.run.rstrip('/'))}/report.html")
        lines.append(f"rows: touchstone results {wording.escape_invisible(shlex.quote(run.run))}")
        if any(member.masks for member in run.ensemble.members):
            lines.append(
                f"masks: touchstone runs masks {wording.escape_invisible(shlex.quote(run.run))} --out FOLDER"
            )
    return lines


def _make_finding_columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return the columns with findings and verdicts by their headers."""
    verdicts = []
    for row in rows:
        verdict = str(row.get("verdict") or wording.NONE)
        verdicts.append(wording.escape_invisible(_SHORT_VERDICTS.get(verdict, verdict)))
    if not any("finding" in row for row in rows):
        return {"verdict": verdicts}
    findings = [
        wording.truncate(row.get("finding") or wording.NONE, _MAX_FINDING_WIDTH) for row in rows
    ]
    adds = [wording.adds_to_finding(row.get("verdict"), row.get("finding")) for row in rows]
    if not any(adds):
        return {"finding": findings}
    differing = [verdict if add else "" for verdict, add in zip(verdicts, adds, strict=True)]
    return {"finding": findings, "verdict": differing}


def _format_cells(row: Mapping[str, Any]) -> list[str]:
    return [
        wording.probability(row.get("probability")),
        wording.signed(row.get("score")).replace("−", "-"),
        wording.escape_invisible(str(row.get("status") or wording.NONE)),
    ]


def _name_generator(row: Mapping[str, Any]) -> str:
    """Return the predicted generator of a row; "" if it is called real or was not identified.

    It is "unknown" if the image resembles no known generator.
    """
    if row.get("verdict") == "real" or row.get("generator_confidence") is None:
        return ""
    name = row.get("predicted_generator")
    return "unknown" if name is None else wording.truncate(str(name), _MAX_GENERATOR_WIDTH)


def _common_folder(names: Sequence[str]) -> str:
    """Return the longest common prefix that ends with a slash; "" for fewer than two names."""
    if len(names) < 2:
        return ""
    # The common prefix of the first and the last name in order is a prefix of all names.
    first, last = min(names), max(names)
    shared = next(
        (index for index, (a, b) in enumerate(zip(first, last, strict=False)) if a != b),
        min(len(first), len(last)),
    )
    return first[: first.rfind("/", 0, shared) + 1]


def _status_lines(run: "RunSummary") -> list[str]:
    rows = []
    for status, count in wording.ordered_statuses(run.statuses):
        rows.append(
            [
                wording.escape_invisible(status),
                wording.count(count),
                wording.describe_status(status),
            ]
        )
        examples = run.examples.get(status, [])
        if examples and status != "ok":
            name = wording.truncate(
                wording.file_name(examples[0].uri, examples[0].member), _MAX_EXAMPLE_WIDTH
            )
            detail = (
                f": {wording.truncate(examples[0].detail, _MAX_EXAMPLE_WIDTH)}"
                if examples[0].detail
                else ""
            )
            rows.append(["", "", f"e.g. {name}{detail}"])
    return [f"  {line}" for line in table([], rows, right={1})]


def _verdict_lines(run: "RunSummary") -> list[str]:
    if not run.scored:
        return []
    findings = [
        f"{wording.truncate(finding, _MAX_REASON_WIDTH)} {number:,}"
        for finding, number in wording.largest(run.findings, _MAX_FINDINGS)
    ]
    lines = [f"findings: {', '.join(findings)}"] if run.has_other_findings else []
    days = [
        f"{wording.escape_invisible(day)} {wording.pluralize(counts.get('files', 0), 'file')}, {counts.get('fake', 0):,} flagged"
        for day, counts in run.days.items()
    ]
    lines += [f"by day: {'; '.join(days[-_MAX_DAYS:])}"] if len(days) > 1 else []
    reasons = wording.reasons(run.verdict_reasons, _MAX_REASONS)
    if reasons:
        lines.append(
            "no verdict because: "
            + "; ".join(
                f"{wording.truncate(reason, _MAX_REASON_WIDTH)} ({number:,})"
                for reason, number in reasons
            )
        )
    return lines


def _declaration_lines(run: "RunSummary") -> list[str]:
    provenance = run.provenance
    signers = [
        f"C2PA: {wording.pluralize(number, 'signer')} {state}"
        for state, number in provenance.signers.items()
    ]
    if not provenance.declaring:
        return signers
    parts = [
        f"{number:,} {phrase}"
        for verdict, phrase in wording.VERDICT_PHRASES.items()
        if (number := provenance.declared.get(verdict, 0))
    ]
    parts += (
        [f"{number:,} without a verdict"] if (number := provenance.declared.get("none", 0)) else []
    )
    subject = (
        "1 file declares itself"
        if provenance.declaring == 1
        else f"{provenance.declaring:,} files declare themselves"
    )
    return [f"declarations: {subject} AI-generated: {', '.join(parts)}", *signers]


def _speed_lines(run: "RunSummary") -> list[str]:
    session = run.session
    if not session.rows:
        return ["no file was scored: none is new or changed"] if run.rows else []
    rate = (
        "the run was too short to measure it"
        if session.images_per_s is None
        else f"{wording.number(session.images_per_s)} images/s"
    )
    lines = [
        f"speed: {rate}, first result after {wording.duration(session.first_result_s)}, "
        f"{wording.pluralize(session.rows, 'row')} and {wording.size(session.bytes_read)} in {wording.duration(session.wall_s)}"
    ]
    cost = session.cost
    if cost is not None:
        parts = f"machines {wording.number(cost.compute or 0.0, decimals=2)}, egress {wording.number(cost.egress, decimals=2)}"
        lines.append(
            f"cost: {wording.number(cost.total, decimals=2)} at the configured prices: {parts}"
        )
    if session.peak_worker_bytes:
        node_bytes = session.memory and session.memory.total_bytes
        of_node = f" of at most {wording.size(node_bytes)} on a node" if node_bytes else ""
        lines.append(
            f"memory: at most {wording.size(session.peak_worker_bytes)} in one worker{of_node}"
        )
    for name, sharing in session.backbones.items():
        if sharing.asked > sharing.runs:
            requests = wording.pluralize(sharing.asked, "request")
            lines.append(
                f"shared: {wording.escape_invisible(name)} ran {wording.pluralize(sharing.runs, 'time')} for {requests} of detectors"
            )
    if session.groups:
        names = " | ".join(", ".join(group) for group in session.groups)
        groups = wording.escape_invisible(wording.truncate(names, _MAX_GROUPS_WIDTH))
        busy_s = sum(session.seconds.values()) - session.seconds.get("list", 0.0)
        loading = wording.percent(session.seconds.get("load", 0.0) / max(busy_s, 1e-9))
        lines.append(
            f"turns: {wording.pluralize(len(session.groups), 'group')} of detectors took turns in "
            f"each worker, {loading} of the time to load them: {groups}"
        )
    costly = sorted((session.detectors or {}).items(), key=lambda item: -item[1].seconds)
    if len(costly) > 1:
        times = (
            f"{wording.escape_invisible(name)} {wording.number(detector.ms_per_image)} ms"
            for name, detector in costly[:_MAX_DETECTORS]
            if detector.ms_per_image
        )
        others = len(costly) - _MAX_DETECTORS
        remaining = f", {others} others less" if others > 0 else ""
        lines.append(f"detectors: per image on one worker {', '.join(times)}{remaining}")
    if session.throttled or session.retried:
        retries = wording.pluralize(session.retried, "read")
        lines.append(
            f"storage: it asked {wording.pluralize(session.throttled, 'time')} to slow down; {retries} repeated"
        )
    if run.scored and run.bottleneck and run.bottleneck.stage:
        fraction = (
            f" ({wording.percent(run.bottleneck.share)} of the workers' time)"
            if run.bottleneck.share is not None
            else ""
        )
        advice = (
            f": {wording.escape_invisible(run.bottleneck.advice)}" if run.bottleneck.advice else ""
        )
        lines.append(
            f"bottleneck: {wording.escape_invisible(run.bottleneck.stage)}{fraction}{advice}"
        )
    return lines
