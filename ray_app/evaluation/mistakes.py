"""The most confident mistakes of a run, and small pictures of them. Knows rows, scores and where pictures lie."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_app.archives import MemberReader, guard_of
from ray_app.ensembles import calibrate, sigmoid
from ray_app.errors import InputError
from ray_app.evaluation.joining import Truth
from ray_app.evaluation.members import members_of
from ray_app.evaluation.systems import Column, System
from ray_app.runs import RunDirectory
from ray_app.scoring.thumbnails import SIDE_PX, thumbnail
from ray_app.storage import Fetcher

MOST = 24
_COLUMNS = ["image_id", "uri", "member", "verdict"]


class Mistakes:
    """Images on the wrong side of a threshold, the farthest from it first; of equal ones the lower id."""

    def __init__(self) -> None:
        self._rows: list[tuple[float, int, dict[str, Any]]] = []

    def add(self, table: pa.Table, truth: Truth, is_fake: npt.NDArray[np.bool_], scores: Column, system: System) -> None:
        """Look at labelled result rows with the scores of one system, (n,) each; NaN is no mistake."""
        excess = np.abs(scores.astype(np.float64) - system.threshold)
        wrong = np.flatnonzero(np.isfinite(scores) & (system.says_fake(scores) != is_fake))
        least = self._rows[-1][0] if len(self._rows) == MOST else -1.0
        wrong = wrong[excess[wrong] >= least]
        if not len(wrong):
            return
        ids = table["image_id"].to_numpy()
        wrong = wrong[np.lexsort((ids[wrong], -excess[wrong]))[:MOST]]
        chances = sigmoid(calibrate(scores[wrong].astype(np.float64), system.calibration))
        rows = table.select(_COLUMNS).take(pa.array(wrong)).to_pylist()
        for place, row, chance in zip(wrong.tolist(), rows, chances.tolist(), strict=True):
            group = truth.groups[truth.codes[place]]
            row |= {"label": group.label, "generator": group.generator, "score": float(scores[place]), "probability": chance}
            self._rows.append((float(excess[place]), row["image_id"], row))
        self._keep()

    def merge(self, other: "Mistakes") -> None:
        """Those of other rows too."""
        self._rows += other._rows
        self._keep()

    def rows(self) -> list[dict[str, Any]]:
        """As the document has them, without pictures."""
        return [row for _, _, row in self._rows]

    def _keep(self) -> None:
        self._rows = sorted(self._rows, key=lambda one: (-one[0], one[1]))[:MOST]


def with_thumbnails(rows: Sequence[Mapping[str, Any]], run: RunDirectory, *, wanted: bool) -> list[dict[str, Any]]:
    """The rows with `thumbnail`: a small JPEG of the picture as it is now, in base64; None where it cannot be read, or none is wanted."""
    pictures = pictures_of(run, [row["image_id"] for row in rows]) if wanted and rows else {}
    return [
        {**row, "thumbnail": base64.b64encode(picture).decode() if (picture := pictures.get(row["image_id"])) else None} for row in rows
    ]


def pictures_of(run: RunDirectory, ids: Sequence[int], *, side: int = SIDE_PX) -> dict[int, bytes]:
    """JPEG bytes by image id, no side above `side` pixels; an image that cannot be read any more has none."""
    limits = run.limits()
    reader, pictures = MemberReader(Fetcher(guard=guard_of(run.store)), max_bytes=limits.max_bytes), {}
    for member, data in reader.read(list(members_of(run, ids).values())):
        try:
            if isinstance(data, InputError):
                continue
            pictures[member.image_id] = thumbnail(data, limits, side)
        except InputError:
            continue
    return pictures
