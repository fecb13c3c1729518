"""The end of `generate` in words, for a terminal. Knows the figures of a summary and nothing else."""

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from ray_app.errors import MEANING, Status
from ray_app.reports import wording

_WIDTH = 11
_MEANING = {
    "blanked": "the pipeline's safety checker put black in its place; no file was kept",
    "pipeline_failed": "the pipeline raised on it",
}


def generate_lines(summary: Mapping[str, Any]) -> list[str]:
    """What was made, what was not and where that is listed, and the commands that take it."""
    return [f"{label:{_WIDTH}}{text}".rstrip() for label, text in _told(summary)]


def _told(summary: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    out = wording.visible(summary["out"])
    names = ", ".join(summary["generators"])
    yield "made", f"{summary['made']:,} of {wording.counted(summary['images'], 'image')}" + (f" by {names}" if names else "")
    yield "noise", f"{summary['noises']:,} different beginnings"
    yield "files", ", ".join(f"{count:,} {name}" for name, count in summary["formats"].items()) or "none"
    if like := summary["like"]:
        yield "", f"as in {like['files']:,} real files: " + ", ".join(f"{count:,} {name}" for name, count in like["formats"].items())
    else:
        yield "", "all stored alike: --like RUN|INDEX|FOLDER draws format and quality from real ones, or the file gives the fake away"
    if summary["masks"]:
        yield "masks", f"{summary['masks']:,} in {out}/masks"
    if bad := {status: count for status, count in summary["statuses"].items() if status != "ok"}:
        yield "not made", f"{sum(bad.values()):,}, listed in {out}/failed.parquet; --retry tries again what failed"
        for status, count in bad.items():
            yield "", f"{count:,} {status}: {_MEANING.get(status) or MEANING[Status(status)]}"
    if summary["made"]:
        table, root = f"{out}/generated.parquet", ["--set", f"arguments.root={out}"] if summary["masks"] else []
        yield "next", shlex.join(["touchstone", "index", table, "--layout", "columns", *root, "--out", "INDEX"])
        yield "", shlex.join(["touchstone", "score", table, "--out", "RUN"])
