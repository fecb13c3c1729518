"""Which rows of two runs are of the same image (`pair`), and single columns of a run as arrays (`RunColumns`).

A run is read a column at a time, so that memory holds keys, places and two columns, however many detectors there are: about 60 bytes a row
of either run.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_app.errors import ConfigError
from ray_app.evaluation.systems import ENSEMBLE
from ray_app.runs import RunDirectory
from ray_app.runs.reader import current_tables

By = Literal["image_id", "sha256"]

Places = npt.NDArray[np.int64]
Codes = npt.NDArray[np.int8]


@dataclass(frozen=True)
class RunColumns:
    """The current rows of a run, in their order, column by column."""

    run: RunDirectory
    detectors: Sequence[str]
    columns: frozenset[str]
    counted: list[int] = field(default_factory=list, compare=False)

    @classmethod
    def open(cls, url: str) -> "RunColumns":
        """Those of the run at a URL or path. Raises ConfigError where there is none."""
        run = RunDirectory.open(url)
        if not run.exists():
            raise ConfigError(f"{run.store.url}: no run here", hint="touchstone score SOURCE --out DIR makes one")
        first = next(current_tables(run), None)
        return cls(run, run.describe()["detectors"], frozenset(() if first is None else first.column_names))

    def tables(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Some columns, a bounded table at a time; those that the run does not have are left out.

        Raises ConfigError where there are not as many rows as the time before: places would be those of others.
        """
        wanted = [one for one in dict.fromkeys(["image_id", *columns]) if one.partition(".")[0] in self.columns]
        rows = 0
        for table in current_tables(self.run, wanted):
            rows += len(table)
            yield table
        self.counted.append(rows)
        if rows != self.counted[0]:
            raise ConfigError(f"{self.run.store.url}: the run changed while it was read", hint="compare it when nothing scores into it")

    def keys(self, by: By) -> tuple[Places, npt.NDArray[np.bool_]]:
        """Per row 64 bits that name its image, int64 (n,), and whether it has such a name: one that was never read has no hash."""
        words, known = [np.empty(0, np.int64)], [np.empty(0, np.bool_)]
        for table in self.tables([by]):
            words.append(table["image_id"].to_numpy() if by == "image_id" else _first_words(table["sha256"]))
            known.append(np.asarray(pc.is_valid(table[by])))
        return np.concatenate(words), np.concatenate(known)

    def scores(self, system: str) -> npt.NDArray[Any]:
        """Log-odds of the ensemble, float64 (n,), or of a detector, float32 (n,); NaN where there is none."""
        pieces = [np.empty(0, np.float64 if system == ENSEMBLE else np.float32)]
        for table in self.tables(["score" if system == ENSEMBLE else f"scores.{system}"]):
            column = table["score"] if system == ENSEMBLE else pc.struct_field(table["scores"], [system])
            pieces.append(column.to_numpy())
        return np.concatenate(pieces)

    def codes(self, column: str, words: Sequence[str]) -> Codes:
        """Per row the place of its word among `words`, int8 (n,); -1 for none and for others."""
        known, pieces = pa.array(words), [np.empty(0, np.int8)]
        for table in self.tables([column]):
            found = pc.index_in(table[column].cast(pa.string()), known)
            pieces.append(pc.fill_null(found, -1).to_numpy().astype(np.int8))
        return np.concatenate(pieces)

    def rows_at(self, places: Places, columns: Sequence[str]) -> list[dict[str, Any]]:
        """The rows at some places, in the order of `places`."""
        found: dict[int, dict[str, Any]] = {}
        start = 0
        for table in self.tables(columns):
            here = places[(places >= start) & (places < start + len(table))]
            rows = table.take(pa.array(here - start)).to_pylist()
            found.update(zip(here.tolist(), rows, strict=True))
            start += len(table)
        return [found[place] for place in places.tolist()]


class Pairing(NamedTuple):
    """Of each image in both runs, the place of its row in either, (m,) each, in the order of their keys: a random order, but a fixed one.

    `doubled_*`: rows that were left out since an earlier one has the same key; `unnamed_*`: since they have none.
    """

    by: By
    why: str | None
    rows_a: int
    rows_b: int
    places_a: Places
    places_b: Places
    doubled_a: int = 0
    doubled_b: int = 0
    unnamed_a: int = 0
    unnamed_b: int = 0

    @property
    def counts(self) -> dict[str, Any]:
        """As plain JSON; rows of either run = both + only + doubled."""
        both = len(self.places_a)
        return {
            "by": self.by,
            "why": self.why,
            "a": self.rows_a,
            "b": self.rows_b,
            "both": both,
            "only_a": self.rows_a - both - self.doubled_a,
            "only_b": self.rows_b - both - self.doubled_b,
            **{name: getattr(self, name) for name in ("doubled_a", "doubled_b", "unnamed_a", "unnamed_b")},
        }


def pair(a: RunColumns, b: RunColumns, by: By | None = None) -> Pairing:
    """The images that both runs have a row of. `by`: None for `image_id` and, where no id is shared, `sha256`, for the reason `why`."""
    if by is not None and by not in get_args(By):
        raise ConfigError(f"--by {by}: not a key of images", hint=f"one of {', '.join(get_args(By))}")
    first = _joined(a, b, by or "image_id", None)
    if by or len(first.places_a) or not first.rows_a or not first.rows_b:
        return first
    second = _joined(a, b, "sha256", "the runs share no image_id, so images are matched by their bytes")
    return second if len(second.places_a) else first._replace(why="the runs share neither an image_id nor the bytes of an image")


def _joined(a: RunColumns, b: RunColumns, by: By, why: str | None) -> Pairing:
    (keys_a, rows_a, total_a, known_a), (keys_b, rows_b, total_b, known_b) = _distinct(a, by), _distinct(b, by)
    if not len(keys_a) or not len(keys_b):
        places_a = places_b = np.empty(0, np.int64)
    else:
        places = np.minimum(np.searchsorted(keys_b, keys_a), len(keys_b) - 1)
        same = keys_b[places] == keys_a
        places_a, places_b = rows_a[same], rows_b[places[same]]
    doubled_a, doubled_b = known_a - len(keys_a), known_b - len(keys_b)
    return Pairing(by, why, total_a, total_b, places_a, places_b, doubled_a, doubled_b, total_a - known_a, total_b - known_b)


def _distinct(run: RunColumns, by: By) -> tuple[Places, Places, int, int]:
    """Distinct keys in order, the place of the first row of each, how many rows there are, and how many have a key."""
    keys, known = run.keys(by)
    if known.all():
        return *np.unique(keys, return_index=True), len(keys), len(keys)
    places = np.flatnonzero(known)
    keys, first = np.unique(keys[places], return_index=True)
    return keys, places[first], len(known), len(places)


def _first_words(digests: pa.ChunkedArray) -> Places:
    """The first 64 bits of hexadecimal digests, 0 for none. Among 10⁷ files two share them by chance once in 400,000 runs."""
    texts = pc.fill_null(pc.utf8_slice_codeunits(digests, 0, 16), "0" * 16)
    return np.frombuffer(bytes.fromhex("".join(texts.to_pylist())), ">i8").astype(np.int64)
