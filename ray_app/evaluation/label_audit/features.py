"""Labelled images with the facts of their files (`facts_of_index`, `facts_of_run`), and these facts as columns (`features_of`).

The tables have `image_id`, `uri`, `member`, `input` (INPUT, `prompt` and `mask_uri` as they are) and FACTS, null where nothing is known.
"""

import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from PIL import Image, JpegImagePlugin

from ray_app.archives import BlockRef, Each, MemberReader, guard_of, in_turn, iter_blocks, manifests, member_rows, read_block
from ray_app.datasets.index import is_index, read_info
from ray_app.datasets.labels import INPUT
from ray_app.errors import ConfigError, InputError
from ray_app.evaluation.join import Joined, LabelIndex, Labels, own_fields
from ray_app.images import ImageLimits, decode_image
from ray_app.images.provenance import ProvenancePolicy, ProvenanceReader
from ray_app.runs import RunDirectory
from ray_app.runs.reader import current_tables, numbers
from ray_app.storage import Fetcher, Store

FACTS = pa.schema([
    ("format", pa.string()), ("width", pa.int32()), ("height", pa.int32()), ("mode", pa.string()), ("icc", pa.bool_()),
    ("quality", pa.int32()), ("orientation", pa.int32()), ("subsampling", pa.string()), ("camera", pa.bool_()), ("origin", pa.bool_()),
    ("size_bytes", pa.int64()),
])  # fmt: skip
"""`subsampling`: of a JPEG's colour. `camera`: whether EXIF names one; `origin`: whether the file says anything of where it comes from."""
_OF_ROWS = ("format", "width", "height", "mode", "icc", "quality", "orientation")
_SAMPLING = {0: "4:4:4", 1: "4:2:2", 2: "4:2:0"}
FEATURES: Mapping[str, tuple[str, str]] = {
    "format": ("format", ""),
    "ending": ("file ending", ""),
    "mode": ("colour mode", ""),
    "subsampling": ("colour subsampling", ""),
    "icc": ("colour profile", ""),
    "camera": ("camera in EXIF", ""),
    "origin": ("statement of origin", ""),
    "orientation": ("EXIF orientation", ""),
    "quality": ("JPEG quality", ""),
    "megapixels": ("size", "MP"),
    "width": ("width", "px"),
    "height": ("height", "px"),
    "aspect": ("width to height", ""),
    "size_bytes": ("file size", "bytes"),
    "density": ("bytes per pixel", ""),
}
"""The columns, what people call each, and its unit; of differences alike the first is told."""
_TRUTHS = {"icc": ("none", "present"), "camera": ("none", "present"), "origin": ("none", "present")}


@dataclass(frozen=True)
class FileFacts:
    """Reads the files of one block of an index; picklable, as tasks need it."""

    store: Store
    limits: ImageLimits
    fetcher: Fetcher

    def __call__(self, ref: BlockRef) -> pa.Table:
        """A file that is not readable has no facts but its size."""
        table = read_block(self.store, ref)
        reader = MemberReader(self.fetcher, max_bytes=self.limits.max_bytes)
        origins = ProvenanceReader(ProvenancePolicy())
        found = [
            {} if isinstance(data, InputError) else _of_bytes(data, self.limits, origins) for _, data in reader.read(member_rows(table))
        ]
        columns = {name: pa.array([one.get(name) for one in found], FACTS.field(name).type) for name in FACTS.names if name != "size_bytes"}
        return _with_facts(table, columns)


def facts_of_index(place: str, *, read: bool = False, each: Each = in_turn) -> pa.Table:
    """All rows of an index; its files are opened only to `read` their facts, a block a task. Raises ConfigError where there is none."""
    store = Store.open(place)
    if not is_index(store) or read_info(store) is None:
        raise ConfigError(
            f"{store.url}: neither an index nor a run", hint="touchstone data index SOURCE --layout NAME --out DIR makes an index"
        )
    if read:
        return pa.concat_tables(each(FileFacts(store, ImageLimits(), Fetcher(guard=guard_of(store))), iter_blocks(store, 0)))
    return pa.concat_tables(_with_facts(read_block(store, ref), {}) for ref in iter_blocks(store, 0))


def facts_of_run(run: RunDirectory, labels: Labels) -> tuple[pa.Table, Joined]:
    """The labelled rows of a run that have an image, and how the labels were joined."""
    joined = Joined()
    joined.begin(labels)
    texts = labels.texts(["prompt", "group", "mask_uri"]) if isinstance(labels, LabelIndex) else None
    columns = ["image_id", "uri", "member", "status", "input", "sha256", "phash", "provenance", *_OF_ROWS, *labels.columns]
    made = [_joined_rows(table, labels, texts, joined) for table in current_tables(run, list(dict.fromkeys(columns)))]
    rows = pa.concat_tables(made) if made else _with_facts(pa.table({"image_id": pa.array([], pa.int64())}), {})
    sizes = _sizes_of(run, rows["image_id"].to_numpy())
    return rows.set_column(rows.schema.get_field_index("size_bytes"), "size_bytes", sizes), joined


def features_of(rows: pa.Table) -> dict[str, NDArray[Any]]:
    """Those of FEATURES that are known of any row, (n,) each: float64 with NaN, or texts with None."""
    width, height, size = (numbers(rows[name]) for name in ("width", "height", "size_bytes"))
    with np.errstate(divide="ignore", invalid="ignore"):
        made = {
            "megapixels": np.round(width * height / 1e6, 3),
            "aspect": np.round(width / height, 3),
            "density": size * 1.0 / (width * height),
        }
    made |= {"width": width, "height": height, "size_bytes": size, "quality": numbers(rows["quality"])}
    texts = {name: _texts(rows, name) for name in ("format", "mode", "subsampling", "orientation", *_TRUTHS)}
    if rows["format"].null_count == len(rows):
        texts["ending"] = _endings(rows)
    found = {name: (made | texts).get(name) for name in FEATURES}
    return {name: column for name, column in found.items() if column is not None and _is_known(column)}


def _of_bytes(data: bytes, limits: ImageLimits, origins: ProvenanceReader) -> dict[str, Any]:
    try:
        facts = decode_image(data, limits).facts
    except InputError:
        return {}
    origin = origins.read(data, facts.format, native=False)
    sampling = None
    if facts.format == "JPEG":
        with Image.open(io.BytesIO(data)) as opened:  # the header of bytes that decoded
            sampling = _SAMPLING.get(JpegImagePlugin.get_sampling(opened), "other")
    known = {name: getattr(facts, name) for name in _OF_ROWS}
    return known | {"subsampling": sampling, "camera": origin is not None and origin.camera is not None, "origin": origin is not None}


def _joined_rows(table: pa.Table, labels: Labels, texts: pa.Table | None, joined: Joined) -> pa.Table:
    table, truth = joined.matched(labels, table)
    groups = [truth.groups[code] for code in truth.codes.tolist()]
    label_texts = texts.take(pa.array(truth.places)) if texts is not None else own_fields(table)
    if texts is None and "input" in table.column_names and "group" in [field.name for field in table["input"].type]:
        label_texts = label_texts.append_column("group", pc.struct_field(table["input"], "group"))
    columns: dict[str, Any] = {
        "label": pa.array([one.label for one in groups], pa.string()),
        "generator": pa.array([one.generator for one in groups], pa.string()),
    }
    columns |= {name: _text(label_texts, name) for name in ("mask_uri", "prompt", "group")}
    columns |= {name: _text(table, name) for name in ("sha256", "phash")}
    inputs = pa.StructArray.from_arrays([columns.get(name, pa.nulls(len(table), pa.string())) for name in INPUT.names], fields=list(INPUT))
    facts = {name: table[name].cast(FACTS.field(name).type) for name in _OF_ROWS if name in table.column_names}
    facts |= _origins(table)
    given = pa.table({"image_id": table["image_id"], "uri": table["uri"], "member": table["member"], "input": inputs})
    made = _with_facts(given, facts)
    return made.filter(pc.is_valid(made["width"]))


def _with_facts(table: pa.Table, columns: dict[str, pa.Array]) -> pa.Table:
    """`image_id`, `uri`, `member`, `input` and FACTS of rows of a manifest; facts that are not given are null."""
    known = (
        {"size_bytes": pc.if_else(pc.greater(table["size_bytes"], 0), table["size_bytes"], None)}
        if "size_bytes" in table.column_names
        else {}
    )
    facts = {field.name: (known | columns).get(field.name, pa.nulls(len(table), field.type)) for field in FACTS}
    named = {field.name: table[field.name] if field.name in table.column_names else pa.nulls(len(table), field.type) for field in
             (pa.field("uri", pa.string()), pa.field("member", pa.string()), pa.field("input", INPUT))}  # fmt: skip
    return pa.table({"image_id": table["image_id"], **named, **facts})


def _text(table: pa.Table, name: str) -> pa.Array:
    if name not in table.column_names:
        return pa.nulls(len(table), pa.string())
    column = table[name].cast(pa.string())
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _origins(table: pa.Table) -> dict[str, pa.Array]:
    """Whether files have facts of their origin, which a run may not have read; then none is known."""
    if "provenance" not in table.column_names or table["provenance"].null_count == len(table):
        return {}
    known = [json.loads(text) if text else {} for text in table["provenance"].to_pylist()]
    return {"camera": pa.array(["camera" in one for one in known]), "origin": pa.array([bool(one) for one in known])}


def _sizes_of(run: RunDirectory, ids: Any) -> pa.Array:
    found: Iterator[pa.Table] = (
        read_block(run.store, ref).select(["image_id", "size_bytes"])
        for number in manifests(run.store)
        for ref in iter_blocks(run.store, number)
    )
    listed = [(one["image_id"].to_numpy(), one["size_bytes"].to_numpy()) for one in found]
    if not listed or not len(ids):
        return pa.nulls(len(ids), pa.int64())
    names, sizes = (np.concatenate(column) for column in zip(*listed, strict=True))
    order = np.argsort(names, kind="stable")
    at = order[np.minimum(np.searchsorted(names[order], ids, side="right") - 1, len(names) - 1)]
    return pa.array(sizes[at], pa.int64(), mask=(names[at] != ids) | (sizes[at] <= 0))


def _texts(rows: pa.Table, name: str) -> NDArray[Any]:
    column = rows[name]
    if name in _TRUTHS:
        none, present = _TRUTHS[name]
        column = pc.if_else(column, present, none)
    return np.array(column.cast(pa.string()).to_pylist(), dtype=object)


def _endings(rows: pa.Table) -> NDArray[Any]:
    """The endings of files' names, where formats are not known."""
    names = pc.coalesce(rows["member"], rows["uri"])
    found = pc.struct_field(pc.extract_regex(names, r"\.(?P<ending>[A-Za-z0-9]{1,5})$"), "ending")
    return np.array(pc.utf8_lower(found).to_pylist(), dtype=object)


def _is_known(column: NDArray[Any]) -> bool:
    return bool(any(value is not None for value in column)) if column.dtype == object else bool(np.isfinite(column).any())
