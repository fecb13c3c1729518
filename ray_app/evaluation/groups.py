"""Group labelled images by kind and generator (`GroupCoder`).

The kind is `real`, `whole` (a fake generated as a whole), or `local` (a photograph that was edited
locally). Scores are compared with the label of the group, which is `real` or `fake`.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_app.datasets.labels import (
    is_real_generator,
    name_fake_generator,
    name_real_generator,
    parse_label,
)
from ray_app.errors import ConfigError

FAKE_KINDS = ("whole", "local")
"""Kinds of fake images: generated as a whole, or edited inside a photograph."""
MAX_GROUPS = 5_000
_SEPARATOR = "\x1f"
_KINDS = {
    "real": "",
    "whole": "whole",
    "full": "whole",
    "generated": "whole",
    "synthetic": "whole",
    "local": "local",
    "partial": "local",
    "edited": "local",
    "inpainted": "local",
    "inpainting": "local",
}


class EvaluationGroup(NamedTuple):
    """Images of one kind and one generator.

    Attributes:
        kind: real, whole (generated as a whole), or local (an edit inside a photograph).
        generator: The generator of a fake as in the labels. For a real image, it is the source,
            such as `real:coco`, or `real` if the source is unknown.
    """

    kind: str
    generator: str

    @property
    def label(self) -> str:
        """The label, `real` or `fake`."""
        return "real" if self.kind == "real" else "fake"


class GroupCoder:
    """Assign a number to each group of labelled rows, so that an integer column can hold labels.

    A group has the rows of one kind (`real`, `whole`, or `local`) and one generator. Numbers are in
    the order in which groups first occur, over all calls of `encode`. `source` is the name of the
    labels in messages.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self._numbers: dict[EvaluationGroup, int] = {}
        self._rows = 0

    @property
    def groups(self) -> list[EvaluationGroup]:
        """All groups found so far; the index of a group is its number."""
        return list(self._numbers)

    def encode(self, table: pa.Table, *, complete: bool) -> npt.NDArray[np.int32]:
        """Return the number (n,) of the group, an index of `groups`, that each row belongs to.

        The number is -1 for a row without a label. A fake is of the kind `local` if the column
        `kind` has this value or a synonym, such as `inpainted`. A fake with a mask and without a
        kind is also `local`. If `complete`, every row needs a label. Raises ConfigError with
        labels, row, and value if a value is invalid.
        """
        label, kind, mask, generator = (
            _read_texts(table, name) for name in ("label", "kind", "mask_uri", "generator")
        )
        has_mask = pc.if_else(pc.equal(mask, ""), "", "mask")
        encoded = pc.binary_join_element_wise(
            label, kind, has_mask, generator, _SEPARATOR
        ).dictionary_encode()
        indices = np.asarray(encoded.indices)
        numbers = [
            self._find_number(values.split(_SEPARATOR, 3), indices == code, complete)
            for code, values in enumerate(encoded.dictionary.to_pylist())
        ]
        self._rows += len(table)
        codes: npt.NDArray[np.int32] = np.array(numbers, np.int32)[indices]
        return codes

    def _find_number(self, values: list[str], rows: npt.NDArray[np.bool_], complete: bool) -> int:
        """Return the number of the group of the given rows (n,).

        `values` are their label, kind, mask ("" for no mask), and generator.
        """
        label, kind, mask, generator = values
        where = f"{self._source}, row {self._rows + int(np.argmax(rows)) + 1}"
        if not label:
            if complete:
                raise ConfigError(
                    f"{where}: the label is missing",
                    hint="label the row as real or fake, or as 0 (real) or 1 (fake)",
                )
            return -1
        is_fake = parse_label(label, where) == "fake"
        if kind and kind.lower() not in _KINDS:
            raise ConfigError(
                f"{where}: {kind!r} is not a kind of image",
                hint="use one of the kinds real, whole, and local",
            )
        if is_fake and is_real_generator(generator):
            raise ConfigError(
                f"{where}: labelled fake, but its generator is '{generator}', which means a real image",
                hint="correct the label, or write the name of the generator that made the image",
            )
        default_kind = "local" if mask else "whole"
        group = (
            EvaluationGroup(
                _KINDS.get(kind.lower()) or default_kind, name_fake_generator(generator)
            )
            if is_fake
            else EvaluationGroup("real", name_real_generator(generator))
        )
        number = self._numbers.setdefault(group, len(self._numbers))
        if number >= MAX_GROUPS:
            raise ConfigError(
                f"{self._source}: more than {MAX_GROUPS:,} generators, such as '{group.generator}'",
                hint="check that the column `generator` names generators, not images",
            )
        return number


def _read_texts(table: pa.Table, name: str) -> pa.Array:
    """Return a column without surrounding spaces, "" for a missing value or column."""
    if name not in table.column_names:
        return pa.repeat(pa.scalar(""), len(table))
    return pc.fill_null(pc.utf8_trim_whitespace(table[name].combine_chunks()), "")
