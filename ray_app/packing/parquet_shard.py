"""A Parquet shard as the Hugging Face hub writes it: `image` {bytes, path}, `source`, then the source's own columns. Knows no storage.

Row groups are small, with a page index, so that one row of a shard is read without the others.
"""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ray_app.packing.packed import SOURCE_TYPE, Packed, free_names

# The hub's own figure for images; bytes bound it where they are large, since a row group is built in memory.
GROUP_ROWS, GROUP_BYTES = 100, 64 * 2**20
IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


class ParquetShard:
    """A file that grows by a row group at a time."""

    def __init__(self, path: Path, input_type: pa.StructType | None) -> None:
        fields = [] if input_type is None else list(input_type)
        self._names = free_names([field.name for field in fields])
        beside = [pa.field(self._names[field.name], field.type) for field in fields]
        self._schema = pa.schema([pa.field("image", IMAGE_TYPE), pa.field("source", SOURCE_TYPE), *beside])
        self._schema = self._schema.with_metadata({"huggingface": json.dumps({"info": {"features": _features(self._schema)}})})
        # Encoded images neither shrink nor repeat nor compare: all that is for the columns beside them.
        others = [leaf for field in self._schema for leaf in _leaves(field.name, field.type) if leaf != "image.bytes"]
        self._writer = pq.ParquetWriter(
            path,
            self._schema,
            compression={"image.bytes": "none"} | dict.fromkeys(others, "zstd"),
            use_dictionary=others,
            write_statistics=others,
            write_page_index=True,
        )
        self._rows: list[dict[str, Any]] = []
        self._size_bytes = 0

    def add(self, packed: Packed) -> None:
        """Append one row."""
        image = {"bytes": packed.data, "path": packed.name}
        self._rows.append({"image": image, "source": packed.source, **packed.beside(self._names)})
        self._size_bytes += len(packed.data)
        if len(self._rows) >= GROUP_ROWS or self._size_bytes >= GROUP_BYTES:
            self._flush()

    def close(self) -> None:
        """Write what is left and the footer."""
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, self._schema), row_group_size=GROUP_ROWS)
        self._rows, self._size_bytes = [], 0


def _features(schema: pa.Schema) -> dict[str, Any]:
    """What `datasets` cannot see from Arrow's types: which structs are images. It finds all other columns by itself."""
    return {field.name: {"_type": "Image"} for field in schema if field.type == IMAGE_TYPE}


def _leaves(path: str, kind: pa.DataType) -> list[str]:
    """Parquet's own paths of the leaves of a column."""
    if pa.types.is_struct(kind):
        return [leaf for field in kind for leaf in _leaves(f"{path}.{field.name}", field.type)]
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _leaves(f"{path}.list.element", kind.value_type)
    return [path]
