"""The end of `collect` in words, for a terminal. Knows the figures of a summary and nothing else."""

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from ray_app.collecting.statuses import MEANING, OK, PASSING
from ray_app.reports import wording

_WIDTH = 11


def collect_lines(summary: Mapping[str, Any]) -> list[str]:
    """What is there, what is not and why, and last the command to go on with."""
    return [f"{label:{_WIDTH}}{text}" for label, text in _told(summary)]


def _told(summary: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    out, records = wording.visible(summary["out"]), wording.visible(summary["records"])
    where = "/".join(part for part in (out, summary["folder"]) if part)
    yield (
        "collected",
        f"{summary['ok']:,} of {wording.counted(summary['urls'], 'image')} into {where}, {wording.size(summary['size_bytes'])}",
    )
    failed = {status: number for status, number in summary["statuses"].items() if status != OK}
    if failed:
        yield "failed", f"{sum(failed.values()):,}, listed with reasons in {records}/failed.parquet"
        for status, number in failed.items():
            yield "", f"{number:,} {status}: {MEANING.get(status, status)}"
    if passing := [status for status in PASSING if status in failed]:
        yield "again", f"--retry {','.join(passing)} asks again what another hour may give"
    for name, told in (("repeated", "rows said the same again"), ("without_url", "rows have no url")):
        if summary[name]:
            yield "left out", f"{summary[name]:,} {told}"
    if marked := summary["mended_names"] + summary["names_alike"]:
        yield "names", f"{marked:,} ids are no safe file names, or differ only in case: their files are marked, NAME~12345678"
    yield "words", f"{records}/collected.parquet: labels, generators, prompts and all else that the list says"
    if summary["ok"]:
        images = f"{summary['records']}/collected.parquet" if summary["form"] == "files" else f"{summary['out']}/data"
        yield "next", shlex.join(["touchstone", "index", images, "--layout", "columns", "--out", f"{summary['records']}/index"])
