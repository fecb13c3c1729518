"""One row per requested image, whatever became of it (`SCHEMA`, `row_of`), and the summary for a terminal (`generate_lines`)."""

import shlex
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import pyarrow as pa

from ray_app.datajobs.generate.requests import ImageRequest
from ray_app.errors import MEANING, Status
from ray_app.reports import format as wording

# `blanked`: the pipeline's own safety checker put a black picture in its place, which is not kept; `pipeline_failed`: it raised. Others
# are statuses of `ray_app.errors.Status`, of a real image that was to be altered.
OK, BLANKED, FAILED = "ok", "blanked", "pipeline_failed"
Outcome = Literal["ok", "blanked", "pipeline_failed"] | str
SCHEMA = pa.schema(
    [
        ("uri", pa.string()), ("label", pa.string()), ("generator", pa.string()), ("prompt", pa.string()), ("negative_prompt", pa.string()),
        ("mask", pa.string()), ("mask_share", pa.float32()), ("real_uri", pa.string()), ("prompt_id", pa.string()), ("group", pa.string()),
        ("split", pa.string()), ("index", pa.int64()), ("seed", pa.int64()), ("latents_sha256", pa.string()), ("pipeline", pa.string()),
        ("model", pa.string()), ("revision", pa.string()), ("lora", pa.string()), ("diffusers", pa.string()), ("precision", pa.string()),
        ("steps", pa.int32()), ("guidance", pa.float32()), ("strength", pa.float32()), ("generated_width", pa.int32()),
        ("generated_height", pa.int32()), ("width", pa.int32()), ("height", pa.int32()), ("format", pa.string()), ("quality", pa.int32()),
        ("subsampling", pa.string()), ("sha256", pa.string()), ("blanked", pa.bool_()), ("status", pa.string()), ("detail", pa.string()),
    ]
)  # fmt: skip
_WIDTH = 11
_MEANING = {
    "blanked": "the pipeline's safety checker put black in its place; no file was kept",
    "pipeline_failed": "the pipeline raised on it",
}


def row_of(order: ImageRequest, same: Mapping[str, Any], **found: Any) -> dict[str, Any]:
    """A row: what was ordered, what is the `same` for all of a job, and what was `found`; all else is null."""
    prompt, look = order.prompt, order.look
    ordered = {
        "label": "fake", "prompt": prompt.text, "negative_prompt": prompt.negative, "prompt_id": prompt.id, "group": prompt.group,
        "split": prompt.split, "real_uri": prompt.image.uri if prompt.image else None, "index": order.index, "seed": order.seed,
        "generated_width": order.size[0], "generated_height": order.size[1], "format": look.format, "quality": look.quality,
        "subsampling": look.subsampling, "blanked": False, "status": OK,
    }  # fmt: skip
    row = dict.fromkeys(SCHEMA.names) | ordered | dict(same) | found
    assert len(row) == len(SCHEMA.names), "a column that the schema does not have"
    return row


def generate_lines(summary: Mapping[str, Any]) -> list[str]:
    """What was made, what was not and where that is listed, and the commands that take it."""
    return [f"{label:{_WIDTH}}{text}".rstrip() for label, text in _summary_lines(summary)]


def _summary_lines(summary: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
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
        yield "next", shlex.join(["touchstone", "data", "index", table, "--layout", "columns", *root, "--out", "INDEX"])
        yield "", shlex.join(["touchstone", "score", table, "--out", "RUN"])
