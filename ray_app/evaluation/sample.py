"""A sample of a run's rows (`RowSample`), the digest of its labelled images (`digest_of`), and its most confident mistakes (`Mistakes`).

Sample and digest are the same in whatever order the rows come: the rows whose ids hash lowest are kept.
"""

import base64
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_app.archives import ManifestMember, MemberReader, guard_of
from ray_app.ensembles import calibrate, sigmoid
from ray_app.errors import InputError
from ray_app.evaluation.join import JoinedLabels, members_of
from ray_app.evaluation.systems import Column, System
from ray_app.images import ImageLimits
from ray_app.reports.evaluation.model import MistakeFacts
from ray_app.runs import RunDirectory
from ray_app.scoring.report import SIDE_PX, thumbnail
from ray_app.storage import Fetcher

MOST = 100_000
Words = npt.NDArray[np.uint64]
MODULUS = 2**64
MOST_MISTAKES = 24
_COLUMNS = ["image_id", "uri", "member", "verdict"]


class RowSample:
    """The rows, no more than `most`, of which nothing else is lower. Tables must have `image_id` and equal columns."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._orders: list[npt.NDArray[np.uint64]] = []
        self._tables: list[pa.Table] = []
        self._count = 0
        self._limit: np.uint64 | None = None

    def wanted(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Which of some rows may belong to it, so that only of those the columns are made."""
        orders = hashed(ids)
        return np.flatnonzero(orders < self._limit) if self._limit is not None else np.arange(len(ids))

    def add(self, rows: pa.Table) -> None:
        """Offer rows."""
        if len(rows):
            self._orders.append(hashed(rows["image_id"].to_numpy()))
            self._tables.append(rows)
            self._count += len(rows)
            if self._count > 2 * self._most:
                self._settle()

    def merge(self, other: "RowSample") -> None:
        """Offer what another has kept."""
        self.add(other.rows())

    def rows(self) -> pa.Table:
        """The rows in the order of their hashes; a table without columns where none was ever offered."""
        self._settle()
        return self._tables[0] if self._tables else pa.table({})

    def _settle(self) -> None:
        if not self._tables:
            return
        orders = np.concatenate(self._orders)
        kept = np.argsort(orders, kind="stable")[: self._most]
        rows = pa.concat_tables(self._tables, promote_options="default").take(pa.array(kept)).combine_chunks()
        self._orders, self._tables, self._count = [orders[kept]], [rows], len(kept)
        if len(kept) == self._most:
            self._limit = self._orders[0][-1]


class Mistakes:
    """Images on the wrong side of a threshold, the farthest from it first; of equal ones the lower id."""

    def __init__(self) -> None:
        self._rows: list[tuple[float, int, dict[str, Any]]] = []

    def add(self, table: pa.Table, truth: JoinedLabels, is_fake: npt.NDArray[np.bool_], scores: Column, system: System) -> None:
        """Look at labelled result rows with the scores of one system, (n,) each; NaN is no mistake."""
        excess = np.abs(scores.astype(np.float64) - system.threshold)
        wrong = np.flatnonzero(np.isfinite(scores) & (system.says_fake(scores) != is_fake))
        least = self._rows[-1][0] if len(self._rows) == MOST_MISTAKES else -1.0
        wrong = wrong[excess[wrong] >= least]
        if not len(wrong):
            return
        ids = table["image_id"].to_numpy()
        wrong = wrong[np.lexsort((ids[wrong], -excess[wrong]))[:MOST_MISTAKES]]
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
        self._rows = sorted(self._rows, key=lambda one: (-one[0], one[1]))[:MOST_MISTAKES]


def hashed(ids: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """One number for each id, (n,), a different one for each."""
    return mixed(ids.view(np.uint64) + np.uint64(0x9E3779B97F4A7C15))


def digest_of(image_ids: npt.NDArray[np.int64] | Words, is_fake: npt.NDArray[np.bool_]) -> int:
    """The sum of 64-bit hashes of images (n,) with their labels, modulo 2⁶⁴: that of two parts adds up to that of both.

    Each image is hashed by SplitMix64 (Steele, Lea and Flood 2014): enough against chance, not against an adversary.
    """
    with np.errstate(over="ignore"):
        words: Words = image_ids.astype(np.uint64) + np.where(is_fake, np.uint64(0x9E3779B97F4A7C15), np.uint64(0x2545F4914F6CDD1D))
        return int(mixed(words).sum(dtype=np.uint64))


def mixed(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """SplitMix64's finaliser (Steele, Lea and Flood 2014) of words (n,), which gives no two the same."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def with_thumbnails(rows: Sequence[Mapping[str, Any]], run: RunDirectory, *, wanted: bool) -> list[MistakeFacts]:
    """The rows with `thumbnail`: a small JPEG of the picture as it is now, in base64; None where it cannot be read, or none is wanted."""
    pictures = pictures_of(run, [row["image_id"] for row in rows]) if wanted and rows else {}
    return [
        MistakeFacts(**row, thumbnail=base64.b64encode(picture).decode() if (picture := pictures.get(row["image_id"])) else None)
        for row in rows
    ]


def pictures_of(run: RunDirectory, ids: Sequence[int], *, side: int = SIDE_PX) -> dict[int, bytes]:
    """JPEG bytes by image id, no side above `side` pixels; an image that cannot be read any more has none."""
    limits = run.limits()
    reader = MemberReader(Fetcher(guard=guard_of(run.store)), max_bytes=limits.max_bytes)
    return thumbnails_of(reader, members_of(run, ids).values(), limits, side=side)


def thumbnails_of(reader: MemberReader, members: Iterable[ManifestMember], limits: ImageLimits, *, side: int = SIDE_PX) -> dict[int, bytes]:
    """JPEG bytes by image id of members that can be read, no side above `side` pixels."""
    pictures = {}
    for member, data in reader.read(list(members)):
        with suppress(InputError):
            if not isinstance(data, InputError):
                pictures[member.image_id] = thumbnail(data, limits, side)
    return pictures
