"""The labelled images of a run as columns of one length: what a calibration is made of. Knows arrays; reads no run and no labels file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_app.metrics.arrays import Bools

Places = NDArray[np.int64]


@dataclass(frozen=True)
class Labelled:
    """n images with a label and a score of every detector.

    `image_id` int64 (n,) · `sha256` of the files, 64 hex digits · `fake` bool (n,) · `scores` {detector: float32 (n,)}, raw and finite, in
    the ensemble's order · `generator`, `source` (what is not independent: one scene, photographer, article), `phash` (16 hex digits) and
    `part` (fit, calibrate, choose, where the user divides the images): None where it is not told · `format` as in the run · `width`,
    `height` int (n,), px · `quality` float (n,), of JPEGs, 1 … 100; NaN where there is none.

    Raises ValueError where a column has another length.
    """

    image_id: NDArray[np.int64]
    sha256: Sequence[str]
    fake: Bools
    scores: Mapping[str, NDArray[np.float32]]
    generator: Sequence[str | None]
    source: Sequence[str | None]
    phash: Sequence[str | None]
    part: Sequence[str | None]
    format: Sequence[str | None]
    width: NDArray[np.int64]
    height: NDArray[np.int64]
    quality: NDArray[np.float64]

    def __post_init__(self) -> None:
        for name, column in self._columns():
            if len(column) != len(self.image_id):
                raise ValueError(f"{name} has {len(column):,} rows, and there are {len(self.image_id):,} images")

    def __len__(self) -> int:
        return len(self.image_id)

    @property
    def detectors(self) -> tuple[str, ...]:
        """Whose scores there are, in order."""
        return tuple(self.scores)

    @property
    def raw(self) -> NDArray[np.float64]:
        """The scores as float64 (n, detectors)."""
        return np.stack([np.asarray(scores, np.float64) for scores in self.scores.values()], axis=1)

    def take(self, places: NDArray[Any]) -> "Labelled":
        """The images at some places (m,), in that order; or those where a mask (n,) is true."""
        chosen = np.flatnonzero(places) if places.dtype == np.bool_ else places
        taken: dict[str, Any] = {"scores": {name: scores[chosen] for name, scores in self.scores.items()}}
        for one in fields(self):
            if one.name != "scores":
                column = getattr(self, one.name)
                taken[one.name] = column[chosen] if isinstance(column, np.ndarray) else [column[place] for place in chosen]
        return Labelled(**taken)

    def _columns(self) -> list[tuple[str, Any]]:
        plain = [(one.name, getattr(self, one.name)) for one in fields(self) if one.name not in ("image_id", "scores")]
        return plain + [(f"scores of {name}", scores) for name, scores in self.scores.items()]
