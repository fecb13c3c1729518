"""The outputs of detectors and of a describer for some images: one table of columns, keyed by view, detector and kind (`DetectorOutputs`).

A new kind of output needs nothing here: a field of `detectors.detector.BatchPrediction` is kept under its name.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ray_app.attribution.captioners import Caption

Scores = dict[str, npt.NDArray[np.float32]]

CLEAN = ""  # the view of an image as it is
SCORES, MASKS, REPLIES, EMBEDDINGS = "scores", "masks", "replies", "embeddings"  # kinds: the fields of a `BatchPrediction`
FAILURES = "failures"  # a kind: why a detector gave no score, of one that says so
STABILITY = "stability"  # a kind: scores of a recompressed view, of images near a threshold
CAPTIONS = "captions"  # a kind: what a describer says
LISTS = (MASKS, REPLIES, CAPTIONS, FAILURES)  # kinds that are one object per image, None = none; all others are float32 arrays, NaN = none
OF_THE_ENSEMBLE = (SCORES, STABILITY)  # kinds that every detector of an ensemble has


class OutputKey(NamedTuple):
    """Which column: the view's name (`CLEAN`: the image as it is), the name of the detector or describer, the kind of output."""

    view: str
    detector: str
    kind: str


@dataclass(frozen=True)
class DetectorOutputs:
    """What was found of some images, in their order; every column has one entry per image.

    By kind: `scores` and `stability` (n,) float32 log-odds of fake; `embeddings` (n, d) float32; `masks` one (H, W) uint8 each, 255 =
    surely altered; `replies` one text each, of detectors that answer in words; `captions` one `Caption` each.
    """

    columns: Mapping[OutputKey, Any] = field(default_factory=dict)

    @classmethod
    def clean(cls, **kinds: Mapping[str, Any]) -> "DetectorOutputs":
        """Columns of images as they are, by kind and detector."""
        return cls({OutputKey(CLEAN, name, kind): column for kind, columns in kinds.items() for name, column in columns.items()})

    def of(self, kind: str, view: str = CLEAN) -> dict[str, Any]:
        """The columns of one kind and view, by detector."""
        found = {}
        for key, column in self.columns.items():
            if key.kind == kind and key.view == view:
                found[key.detector] = column
        return found

    def by_view(self, kind: str) -> dict[str, dict[str, Any]]:
        """The columns of one kind in every view but the clean one, by the view's name and by detector."""
        found: dict[str, dict[str, Any]] = {}
        for key, column in self.columns.items():
            if key.kind == kind and key.view != CLEAN:
                found.setdefault(key.view, {})[key.detector] = column
        return found

    @property
    def scores(self) -> Scores:
        """The scores of the images as they are, by detector."""
        return self.of(SCORES)

    @property
    def captions(self) -> Sequence[Caption | None]:
        """What a describer says, None = nothing; empty where none was asked."""
        return next(iter(self.of(CAPTIONS).values()), ())

    def joined(self, other: "DetectorOutputs") -> "DetectorOutputs":
        """Both, of the same images."""
        return DetectorOutputs({**self.columns, **other.columns})

    def among(self, names: Collection[str]) -> "DetectorOutputs":
        """The columns of some detectors, and captions."""
        return DetectorOutputs({key: column for key, column in self.columns.items() if key.detector in names or key.kind == CAPTIONS})

    def ranked(self, names: Iterable[str]) -> "DetectorOutputs":
        """Scores of these detectors alone, in this order; all else as it is. Raises KeyError where a detector has no scores."""
        columns = {}
        for key, column in self.columns.items():
            if key.kind not in OF_THE_ENSEMBLE:
                columns[key] = column
                continue
            for name in names:
                ranked = OutputKey(key.view, name, key.kind)
                columns[ranked] = self.columns[ranked]
        return DetectorOutputs(columns)

    def in_order(self, names: Iterable[str], views: Iterable[str]) -> "DetectorOutputs":
        """The columns as detectors of these names give them who are asked together: view after view, and in each by name."""
        places = {name: place for place, name in enumerate(names)}
        shown = {view: place for place, view in enumerate([CLEAN, *views])}
        ordered = sorted(self.columns.items(), key=lambda item: (shown[item[0].view], places[item[0].detector]))
        return DetectorOutputs(dict(ordered))

    def rows(self, rows: slice) -> "DetectorOutputs":
        """What was found of some of the images."""
        return DetectorOutputs({key: column[rows] for key, column in self.columns.items()})

    def spread(self, rows: Sequence[int], count: int) -> "DetectorOutputs":
        """These columns at `rows` (one per image) of `count` images; of the others nothing was found."""
        columns = {}
        for key, column in self.columns.items():
            wide = blank(key.kind, count, np.shape(column)[1:] if key.kind not in LISTS else ())
            for place, row in enumerate(rows):
                wide[row] = column[place]
            columns[key] = wide
        return DetectorOutputs(columns)

    def without(self, rows: Collection[int]) -> "DetectorOutputs":
        """The same without objects of some images; their numbers stay, since those of an image without a score stand in no row."""
        return DetectorOutputs({
            key: [None if row in rows else one for row, one in enumerate(column)] if key.kind in LISTS else column
            for key, column in self.columns.items()
        })  # fmt: skip

    @staticmethod
    def chained(parts: Sequence["DetectorOutputs"]) -> "DetectorOutputs":
        """The same columns of some images, then of others."""
        if len(parts) == 1:
            return parts[0]
        return DetectorOutputs({
            key: [one for part in parts for one in part.columns[key]]
            if key.kind in LISTS
            else np.concatenate([part.columns[key] for part in parts])
            for key in parts[0].columns
        })  # fmt: skip


def blank(kind: str, count: int, shape: Sequence[int] = ()) -> Any:
    """A column of one kind in which nothing was found; `shape`: of one image's numbers."""
    return [None] * count if kind in LISTS else np.full((count, *shape), np.nan, np.float32)
