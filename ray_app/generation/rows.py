"""The columns of what was made: one row per order, whatever became of it. Read by `index … --layout columns` and `score` as they are."""

from collections.abc import Mapping
from typing import Any, Literal

import pyarrow as pa

from ray_app.generation.orders import Order

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


def row_of(order: Order, same: Mapping[str, Any], **found: Any) -> dict[str, Any]:
    """A row: what was ordered, what is the `same` for all of a job, and what was `found`; all that is not said is null."""
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
