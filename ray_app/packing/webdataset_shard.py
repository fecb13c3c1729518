"""A WebDataset shard: a tar with KEY.jpg (or what it is) and KEY.json side by side. Knows no storage.

Keys are made here from numbers alone: a member's own name may be anything, and stands only inside the JSON.
"""

import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa

from ray_app.packing.packed import Packed, free_names, plain


class WebDatasetShard:
    """A tar that grows by a sample at a time. Equal samples give equal bytes: no times, owners or modes of a real file get in."""

    def __init__(self, path: Path, input_type: pa.StructType | None) -> None:
        self._names = free_names([] if input_type is None else [field.name for field in input_type])
        self._tar = tarfile.open(path, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115 - closed by close

    def add(self, packed: Packed) -> None:
        """Append one sample: first the bytes, then what is known of them."""
        self._put(f"{packed.key}.{packed.ending}", packed.data)
        said = {"source": packed.source, **plain(packed.beside(self._names))}
        self._put(f"{packed.key}.json", json.dumps(said, ensure_ascii=False, allow_nan=False).encode("utf-8", "surrogateescape"))

    def close(self) -> None:
        """Write the end of the tar."""
        self._tar.close()

    def _put(self, name: str, data: bytes) -> None:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        self._tar.addfile(info, io.BytesIO(data))
