"""Define the labels of one image (`Labels`, `parse_label`) and the column `input` of an index.

The column is a struct with the labels and hashes of each image (`INPUT`). `texts` returns a field
of it as strings, and `coded` as integer codes. `fakes` returns whether each image is fake.
`with_input` replaces fields.
"""

import hashlib
import logging
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_app.errors import ConfigError
from ray_app.identification.generators import spelling_key

_log = logging.getLogger(__name__)

Label = Literal["real", "fake"]

# The column `input` of an index. `sha256` is the hash of the file's bytes, `phash` has 16
# hexadecimal digits. Both are null if they were not requested.
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

# pandas writes a column of 0 and 1 that has a gap as 0.0 and 1.0.
_NUMBER = re.compile(r"([01])(?:[.,]0*)?")

# Texts that pandas reads as a missing value, and writes for one (`astype(str)`), and a dash.
_MISSING = ("", "nan", "none", "null", "n/a", "na", "<na>", "#n/a", "#na", "nat", "-")

Codes = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Labels:
    """The truth about one image.

    Attributes:
        label: `real` or `fake`.
        generator: The generator of a fake; `real` or `real:<source>` for a real image.
        mask_uri: The URI of the mask that marks the altered part. A fake without a mask is
            generated as a whole.
        split: The split that the data set assigns. None if there is none.
        group: Images of one group (a prompt, a scene, a pair) are never divided between splits.
            None makes the image a group of its own.
        architecture: The family of a fake's generator, in the data set's own term.
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
    """Return `real` or `fake` for a label as text, number, or truth value, in any case.

    Accepted values are real, 0, 0.0, and false, and fake, 1, 1.0, and true. There is no default.
    Raises ConfigError for any other value and for None.
    """
    text = str(value).strip().lower()
    number = _NUMBER.fullmatch(text)
    if (label := _NAMES.get(number[1] if number else text)) is None:
        raise ConfigError(
            f"{where}: {value!r} is not a label",
            hint="use real or fake, or 0 (real) and 1 (fake)",
        )
    return label


def name_real_generator(source: object) -> str:
    """Return the generator of a real image from a source, such as a data set or a camera.

    It is `real:<source>`, or `real` if the source is unknown.
    """
    name = "" if source is None else str(source).strip()
    if is_missing(name) or name.lower() == "real":
        return "real"
    return name if name.startswith("real:") else f"real:{name}"


def name_fake_generator(generator: str | None) -> str:
    """Return the generator of a fake, or `unknown` if its name is missing."""
    return "unknown" if generator is None or is_missing(generator) else generator


def is_real_generator(generator: str) -> bool:
    """Return whether the name of a generator, such as `real` or `real:coco`, means real images."""
    return generator == "real" or generator.startswith("real:")


def is_missing(name: str) -> bool:
    """Return whether a text stands for a missing name of a generator, source, split, or group."""
    return name.strip().lower() in _MISSING


def drop_missing(names: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Return names with null for each text that stands for a missing name (`is_missing`)."""
    words = pc.utf8_lower(pc.utf8_trim_whitespace(names))
    return pc.if_else(pc.is_in(words, pa.array(_MISSING)), None, names)


def describe_spellings(generators: Iterable[str]) -> list[str]:
    """Return a sentence that names generators which differ in letter case and separators only.

    They are not merged: `gan-1-11` and `gan-11-1` may be two generators. The list is empty if there
    are none.
    """
    spellings = defaultdict[str, set[str]](set)
    for name in generators:
        spellings[spelling_key(name)].add(name)
    groups = [
        ", ".join(sorted(names)) for key, names in spellings.items() if key and len(names) > 1
    ]
    if not groups:
        return []
    return [
        f"names that may mean one generator count as different generators: {'; '.join(sorted(groups))}"
    ]


def warn_of_spellings(generators: Iterable[str], where: str) -> None:
    """Log the sentence of `describe_spellings` about the labels that `where` names."""
    for sentence in describe_spellings(generators):
        _log.warning("%s: %s; write each generator in one spelling", where, sentence)


def prompt_group(prompt: str | None) -> str | None:
    """Return the group of all images of one prompt, by any generator; None without a prompt.

    Letter case and spaces make no difference.
    """
    text = plain_prompt(prompt)
    return f"prompt:{hashlib.sha256(text.encode()).hexdigest()[:16]}" if text else None


def plain_prompt(prompt: str | None) -> str:
    """Return a prompt in lower case with one space between words, to compare prompts.

    The result is "" without a prompt.
    """
    return " ".join(unicodedata.normalize("NFKC", prompt or "").casefold().split())


def texts(rows: pa.Table, field: str) -> pa.ChunkedArray:
    """Return a field of the column `input` for all rows, null if a row has no value."""
    if "input" not in rows.schema.names:
        raise ConfigError(
            "the images have no labels",
            hint="label them by touchstone data index SOURCE --layout LAYOUT --out DIR",
        )
    kind = rows.schema.field("input").type
    return (
        pc.struct_field(rows["input"], field)
        if kind.get_field_index(field) >= 0
        else pa.chunked_array([pa.nulls(len(rows), pa.string())])
    )


def with_input(rows: pa.Table, **fields: pa.Array) -> pa.Table:
    """Return rows with new values in some fields of their column `input`.

    The new column has all fields of INPUT. A field that an older index does not have is null.
    """
    columns = [
        fields[name] if name in fields else texts(rows, name).combine_chunks()
        for name in INPUT.names
    ]
    inputs = pa.StructArray.from_arrays(columns, fields=list(INPUT))
    return rows.set_column(rows.schema.get_field_index("input"), pa.field("input", INPUT), inputs)


def coded(rows: pa.Table, field: str) -> tuple[Codes, list[str]]:
    """Return a field of the column `input` as integer codes (N,), and the list of its values.

    The code of a row is the index of its value in that list, or -1 if the row has no value. Values
    are in the order of their first rows.
    """
    encoded = texts(rows, field).dictionary_encode().combine_chunks()
    codes: Codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    return codes, encoded.dictionary.to_pylist()


def fakes(rows: pa.Table) -> npt.NDArray[np.bool_]:
    """Return whether each row is labelled fake (N,).

    Raises ConfigError if a row is neither real nor fake.
    """
    labels = texts(rows, "label")
    is_fake = pc.equal(labels, "fake").fill_null(False)
    if not pc.all(pc.or_(is_fake, pc.equal(labels, "real").fill_null(False)), min_count=0).as_py():
        others = [value for value in pc.unique(labels).to_pylist() if value not in ("real", "fake")]
        raise ConfigError(
            f"labels must be real or fake, found {', '.join(map(repr, others[:5]))}",
            hint="make the index again: touchstone data index SOURCE --layout NAME --out DIR",
        )
    return np.asarray(is_fake.to_numpy(), bool)
