"""The labels of an image (`Labels`, `parse_label`), their column in an index (`INPUT`), and it as
arrays (`texts`, `coded`, `fakes`, `with_input`); and documented faults of published data sets
(`configs/datasets/known_faults.yaml`): those of a source (`faults_of`), a line for each that
labelled rows may have (`lines_of`), and labels without what these spoil (`spared`).
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import date
from fnmatch import fnmatchcase
from functools import cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from ray_app.config import Frozen, config_root, read_mapping, validate
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


Stratum = tuple[str | None, str, str]
"""Split, label and generator of some rows."""


class KnownFault(Frozen):
    """One fault; `source` says where it is documented, `looked_up` when that was read.

    The data: `layouts`, words of which one stands in the address (`at`), what the layout's argument
    `version` begins with. The rows: those of these `splits`, this `label`, and `generators` that a
    glob matches; nothing = all. `numbers`: only those whose file has a number in this range for a
    name, ends included. `leave_out`: what of such rows is better left out; None where that would
    not help.
    """

    name: str
    data: str
    layouts: tuple[str, ...] = Field(min_length=1)
    at: tuple[str, ...] = ()
    version: str = ""
    splits: tuple[str, ...] = ()
    label: Label | None = None
    generators: tuple[str, ...] = ("*",)
    numbers: tuple[int, int] | None = None
    kind: Literal["prompts", "labels", "content", "duplicates", "format", "size", "compression"]
    what: str
    leave_out: Literal["image", "prompt"] | None = None
    source: str = Field(min_length=10)
    looked_up: date

    def holds(self, stratum: Stratum) -> bool:
        """Whether rows of this split, label and generator may have it."""
        split, label, generator = stratum
        is_by = any(fnmatchcase(generator, glob) for glob in self.generators)
        return is_by and self.label in (None, label) and (not self.splits or split in self.splits)


@cache
def known_faults() -> Mapping[str, KnownFault]:
    """All of the file, by name. Raises ConfigError."""
    file = config_root() / "datasets/known_faults.yaml"
    return {
        name: validate({"name": name, **fault}, KnownFault, where=f"{file}, {name}")
        for name, fault in read_mapping(file).items()
    }


def faults_of(source: Mapping[str, Any]) -> list[KnownFault]:
    """Those of a source: its `layout`, `at` and `arguments`, as an index keeps them. Without a
    `version` of the layout, of any version.
    """
    place, version = (
        " ".join(source.get("at", ())).lower(),
        source.get("arguments", {}).get("version"),
    )
    of_layout = [
        fault for fault in known_faults().values() if source.get("layout") in fault.layouts
    ]
    there = [
        fault for fault in of_layout if not fault.at or any(word in place for word in fault.at)
    ]
    return [fault for fault in there if version is None or str(version).startswith(fault.version)]


def lines_of(
    faults: Iterable[KnownFault], strata: Mapping[Stratum, int] | None, *, left_out: bool = False
) -> list[str]:
    """One line for each fault that some rows may have. `strata`: how many there are, None =
    unknown; `left_out`: what they spoil is.
    """
    lines = []
    for fault in faults:
        rows = sum(count for stratum, count in (strata or {}).items() if fault.holds(stratum))
        if rows or strata is None:
            count = "some" if fault.numbers or strata is None else f"{rows:,}"
            option = (
                f"{fault.leave_out}s left out"
                if left_out
                else f"leave_out_faults leaves these {fault.leave_out}s out"
            )
            what = f"{fault.what}; {option}" if fault.leave_out else fault.what
            lines.append(
                f"{fault.data}, {count} rows: {what} ({fault.name}, {fault.source.partition('; ')[0]})"
            )
    return lines


def spared(labels: Labels, faults: Iterable[KnownFault]) -> Labels | None:
    """The labels without a prompt that one of these faults spoils, and without the group made of
    it; None where it spoils the image.
    """
    spoiled = {
        fault.leave_out
        for fault in faults
        if fault.holds((labels.split, labels.label, labels.generator))
    }
    if "prompt" in spoiled:
        labels = replace(
            labels,
            prompt=None,
            group=None if (labels.group or "").startswith("prompt:") else labels.group,
        )
    return None if "image" in spoiled else labels
