"""The labels of one image (`Labels`, `parse_label`), and the column `input` of an index (`INPUT`)
as arrays (`texts`, `coded`, `fakes`, `with_input`).
"""

import hashlib
import re
import unicodedata
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_app.errors import ConfigError

Label = Literal["real", "fake"]

# The column `input` of an index. `sha256` is of the file's bytes, `phash` 16 hexadecimal digits,
# both null where they were not requested.
INPUT: pa.StructType = pa.struct(
    [
        (name, pa.string())
        for name in (
            "label",
            "generator",
            "mask_uri",
            "prompt",
            "split",
            "group",
            "sha256",
            "phash",
            "architecture",
        )
    ]
)

_NAMES: dict[Any, Label] = {
    "real": "real",
    "0": "real",
    "false": "real",
    "fake": "fake",
    "1": "fake",
    "true": "fake",
}

# a table with a gap in a column of 0 and 1 has 0.0 and 1.0
_NUMBER = re.compile(r"([01])(?:[.,]0*)?")

Codes = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Labels:
    """The truth about one image.

    `generator`: who made a fake; `real` or `real:<source>` for a real. `mask_uri`: where the mask
    of its altered part is; a fake without one is generated as a whole. `group`: images of one group
    (a prompt, a scene, a pair) are never divided between splits. `architecture`: the family of a
    fake's generator, in the data set's own word.
    """

    label: Label
    generator: str
    mask_uri: str | None = None
    prompt: str | None = None
    split: str | None = None
    group: str | None = None
    architecture: str | None = None

    def __str__(self) -> str:
        return ", ".join(
            f"{name} {value}" for name, value in asdict(self).items() if value is not None
        )


def parse_label(value: object, where: str) -> Label:
    """`real` or `fake` for one of these words, for 0, 0.0, and false, or 1, 1.0, and true (as
    number, truth or text, in any case).

    Raises ConfigError naming `where` (the file and row) and the value for all else, also for none:
    there is no default.
    """
    text = str(value).strip().lower()
    number = _NUMBER.fullmatch(text)
    if (label := _NAMES.get(number[1] if number else text)) is None:
        raise ConfigError(
            f"{where}: {value!r} is not a label",
            hint="labels are real or fake, or 0 (real) and 1 (fake)",
        )
    return label


def real_of(source: object) -> str:
    """The generator of a real image from `source` (a data set, a camera); plain `real` where that
    is not known.
    """
    name = "" if source is None else str(source).strip()
    if name.lower() in ("", "real", "none"):
        return "real"
    return name if name.startswith("real:") else f"real:{name}"


def names_a_real(generator: str) -> bool:
    """Whether the generator is what `real_of` gives."""
    return generator == "real" or generator.startswith("real:")


def prompt_group(prompt: str | None) -> str | None:
    """The group of all images of one prompt, whoever made them; None without a prompt. Letter case
    and spaces make no difference.
    """
    words = plain_prompt(prompt)
    return f"prompt:{hashlib.sha256(words.encode()).hexdigest()[:16]}" if words else None


def plain_prompt(prompt: str | None) -> str:
    """A prompt in one letter case, with one space between words; "" where there is none."""
    return " ".join(unicodedata.normalize("NFKC", prompt or "").casefold().split())


def texts(rows: pa.Table, field: str) -> pa.ChunkedArray:
    """One text of every row's `input`, null where there is none."""
    if "input" not in rows.schema.names:
        raise ConfigError(
            "the images have no labels",
            hint="touchstone data index SOURCE --layout LAYOUT --out DIR labels them",
        )
    kind = rows.schema.field("input").type
    return (
        pc.struct_field(rows["input"], field)
        if kind.get_field_index(field) >= 0
        else pa.chunked_array([pa.nulls(len(rows), pa.string())])
    )


def with_input(rows: pa.Table, **given: pa.Array) -> pa.Table:
    """The rows with all fields of INPUT, null in those that an older index has not; `given`: other
    values (N,) of some.
    """
    columns = [
        given[name] if name in given else texts(rows, name).combine_chunks() for name in INPUT.names
    ]
    inputs = pa.StructArray.from_arrays(columns, fields=list(INPUT))
    return rows.set_column(rows.schema.get_field_index("input"), pa.field("input", INPUT), inputs)


def coded(rows: pa.Table, field: str) -> tuple[Codes, list[str]]:
    """(N,) the place of every row's text in the list of all different ones, in the order of their
    first rows; -1 where there is none.
    """
    encoded = texts(rows, field).dictionary_encode().combine_chunks()
    codes: Codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    return codes, encoded.dictionary.to_pylist()


def fakes(rows: pa.Table) -> npt.NDArray[np.bool_]:
    """(N,) whether a row is labelled fake. Raises ConfigError where one is neither real nor fake."""
    labels = texts(rows, "label")
    is_fake = pc.equal(labels, "fake").fill_null(False)
    if not pc.all(pc.or_(is_fake, pc.equal(labels, "real").fill_null(False)), min_count=0).as_py():
        others = [value for value in pc.unique(labels).to_pylist() if value not in ("real", "fake")]
        raise ConfigError(
            f"labels are real or fake, not {', '.join(map(repr, others[:5]))}",
            hint="touchstone data index writes them so",
        )
    return np.asarray(is_fake.to_numpy(), bool)
