"""What a labelled table says of its rows, as plain arrays. Knows the fields of `input`; knows no file, no order and no split."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_app.errors import ConfigError

Codes = npt.NDArray[np.int32]


def texts(rows: pa.Table, field: str) -> pa.ChunkedArray:
    """One text of every row's `input`, null where there is none."""
    if "input" not in rows.schema.names:
        raise ConfigError("the images have no labels", hint="touchstone index SOURCE --layout LAYOUT --out DIR labels them")
    kind = rows.schema.field("input").type
    return (
        pc.struct_field(rows["input"], field) if kind.get_field_index(field) >= 0 else pa.chunked_array([pa.nulls(len(rows), pa.string())])
    )


def coded(rows: pa.Table, field: str) -> tuple[Codes, list[str]]:
    """(N,) the place of every row's text in the list of all different ones, in the order of their first rows; -1 where there is none."""
    encoded = texts(rows, field).dictionary_encode().combine_chunks()
    codes: Codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    return codes, encoded.dictionary.to_pylist()


def fakes(rows: pa.Table) -> npt.NDArray[np.bool_]:
    """(N,) whether a row is labelled fake. Raises ConfigError where one is neither real nor fake."""
    labels = texts(rows, "label")
    is_fake = pc.equal(labels, "fake").fill_null(False)
    if not pc.all(pc.or_(is_fake, pc.equal(labels, "real").fill_null(False)), min_count=0).as_py():
        others = [value for value in pc.unique(labels).to_pylist() if value not in ("real", "fake")]
        raise ConfigError(f"labels are real or fake, not {', '.join(map(repr, others[:5]))}", hint="touchstone index writes them so")
    return np.asarray(is_fake.to_numpy(), bool)
