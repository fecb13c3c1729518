"""Labelled rows of a run, one table after another, as columns of labelled images; what cannot be used is counted. Knows rows and labels."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_app.calibration.labelled import Labelled
from ray_app.detectors import DetectorCard
from ray_app.evaluation.joining import LabelIndex, Labels, Truth
from ray_app.evaluation.matching import Joined
from ray_app.inference import is_blank
from ray_app.runs.reader import numbers

TOLD = ("source", "group", "part", "phash")
"""What labels, or the run's own columns, may say besides label and generator. `group` is taken for `source` where that is not told."""
ROWS = [
    "image_id",
    "uri",
    "member",
    "status",
    "sha256",
    "format",
    "width",
    "height",
    "quality",
    "flags",
    "phash",
    "decoder",
    "scores",
    "input",
]
"""What is read of a run, so far as it has it."""
_NUMBERS = {"image_id": np.int64, "fake": np.bool_, "width": np.int64, "height": np.int64, "quality": np.float64}
_KEPT = ("image_id", "sha256", "fake", "generator", "source", "phash", "part", "format", "width", "height", "quality")


@dataclass
class Tally(Joined):
    """What a pass counts. `labelled`: rows with a label; `statuses` (other than ok), `unscored`, `outside`, `blank` are left out."""

    labelled: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    unscored: int = 0
    outside: int = 0
    blank: int = 0
    decoders: set[str] = field(default_factory=set)

    @property
    def joined(self) -> int:
        """How many rows are labelled."""
        return self.labelled

    @property
    def left_out(self) -> dict[str, int]:
        """Of the labelled rows, how many cannot be used, by reason."""
        others = {"no score of every detector": self.unscored, "outside a valid range": self.outside, "one colour, or nearly": self.blank}
        return {reason: count for reason, count in {**dict(sorted(self.statuses.items())), **others}.items() if count}


@dataclass
class Collector:
    """Collects what is usable: rows that are labelled, have a score of each detector in `names`, lie in the range of every card, and show
    anything.
    """

    labels: Labels
    names: Sequence[str]
    cards: Mapping[str, DetectorCard]
    tally: Tally = field(default_factory=Tally)
    columns: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in _KEPT})
    scores: list[npt.NDArray[np.float32]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tally.begin(self.labels)
        self.texts = self.labels.texts(TOLD) if isinstance(self.labels, LabelIndex) else None

    def add(self, table: pa.Table) -> None:
        """The labelled rows of a table."""
        tally = self.tally
        rows, truth = tally.matched(self.labels, table)
        if not len(rows):
            return
        tally.labelled += len(rows)
        scores, usable = self._usable(rows)
        places = np.flatnonzero(usable)
        self.scores.append(scores[places])
        kept = rows.take(pa.array(places))
        if "decoder" in kept.column_names:
            tally.decoders |= set(pc.unique(kept["decoder"].cast(pa.string())).to_pylist()) - {None}
        self._keep(kept, Truth(truth.codes[places], truth.groups, truth.places[places]))

    def _usable(self, rows: pa.Table) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """The scores (n, detectors) of rows, and which rows have all of them and could get a verdict for them."""
        status = rows["status"].cast(pa.string())
        is_ok = np.asarray(pc.equal(status, "ok"))
        self.tally.statuses.update(pc.filter(status, pa.array(~is_ok)).to_pylist())
        struct = rows["scores"].combine_chunks()
        columns = [np.asarray(pc.fill_null(pc.struct_field(struct, name), float("nan")), np.float32) for name in self.names]
        scores = np.stack(columns, axis=1)
        has_all = is_ok & np.isfinite(scores).all(axis=1)
        inside, blank = ~self._outside(rows), _blank(rows)
        self.tally.unscored += int((is_ok & ~has_all & inside & ~blank).sum())
        self.tally.outside += int((is_ok & ~inside).sum())
        self.tally.blank += int((is_ok & inside & blank).sum())
        return scores, has_all & inside & ~blank

    def _outside(self, rows: pa.Table) -> npt.NDArray[np.bool_]:
        sizes = np.stack([_whole(rows["width"]), _whole(rows["height"])], axis=1)
        distinct, places = np.unique(sizes, axis=0, return_inverse=True)
        ranges = [card.valid_range for card in self.cards.values()]
        doubts = [width > 0 and any(one.doubt(width, height) for one in ranges) for width, height in distinct.tolist()]
        outside: npt.NDArray[np.bool_] = np.array(doubts, np.bool_)[places.reshape(-1)]
        return outside

    def _keep(self, rows: pa.Table, truth: Truth) -> None:
        kept, told = self.columns, self._told(rows, truth)
        fakes = np.array([group.label == "fake" for group in truth.groups], np.bool_)
        makers = np.array([None if group.generator in ("unknown", "real") else group.generator for group in truth.groups], object)
        kept["fake"].append(fakes[truth.codes])
        kept["generator"].extend(makers[truth.codes].tolist())
        kept["image_id"].append(rows["image_id"].to_numpy())
        for name in ("sha256", "format"):
            kept[name].extend(rows[name].cast(pa.string()).to_pylist())
        for name in ("width", "height"):
            kept[name].append(_whole(rows[name]))
        kept["quality"].append(numbers(rows["quality"]) if "quality" in rows.column_names else np.full(len(rows), np.nan))
        for name in ("source", "part", "phash"):
            kept[name].extend(told[name].to_pylist())

    def _told(self, rows: pa.Table, truth: Truth) -> dict[str, Any]:
        """`source`, `part` and `phash` of rows: what the labels say, else the run's own columns."""
        inputs = rows["input"].combine_chunks() if "input" in rows.column_names else None
        own = set() if inputs is None else {one.name for one in inputs.type}
        said = None if self.texts is None else self.texts.take(pa.array(truth.places))
        found = {}
        for name in TOLD:
            ways = [said[name].cast(pa.string())] if said is not None else []
            ways += [pc.struct_field(inputs, name).cast(pa.string())] if name in own else []
            ways += [rows[name].cast(pa.string())] if name in rows.column_names else []
            found[name] = pc.coalesce(*ways, pa.nulls(len(rows), pa.string()))
        return found | {"source": pc.coalesce(found["source"], found["group"])}

    def labelled(self) -> Labelled:
        """All that was kept."""
        columns: dict[str, Any] = dict(self.columns)
        for name, kind in _NUMBERS.items():
            columns[name] = np.concatenate([np.empty(0, kind), *self.columns[name]])
        scores = np.concatenate([np.empty((0, len(self.names)), np.float32), *self.scores])
        return Labelled(scores={name: scores[:, place].copy() for place, name in enumerate(self.names)}, **columns)


def _whole(column: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    return np.asarray(pc.fill_null(column, 0)).astype(np.int64)


def _blank(rows: pa.Table) -> npt.NDArray[np.bool_]:
    """Which rows are of images that show nothing."""
    if "flags" not in rows.column_names:
        return np.zeros(len(rows), np.bool_)
    return np.array([is_blank(flags) for flags in rows["flags"].to_pylist()], np.bool_)
