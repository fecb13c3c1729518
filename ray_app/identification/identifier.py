"""Embeddings → which generator made the image, how sure that is, and whether it is one of the known
ones. Plain numpy.

Family first, then the generator within it: p(generator) = p(family) p(generator | family) from one
softmax, so both levels agree.
"""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from ray_app.detectors.weights import read_arrays, resolve_part
from ray_app.errors import DetectorError
from ray_app.identification.cards import IdentifierCard

RANKED = 5  # names that a row keeps, best first
Floats = npt.NDArray[np.float32]
Reals = TypeVar("Reals", npt.NDArray[np.float32], npt.NDArray[np.float64])


@dataclass(frozen=True)
class Identified:
    """What an identifier says of n images. `codes` (n,): places in `classes`, −1 for none of the
    known; `ranking` (n, k) such places, best first, whether one was named or not. `probability`
    (n,): of the first of the ranking, among the known ones. `confidence` (n,): that it is a known
    one at all, higher = surer; NaN, and code −1, where there was no embedding.
    """

    classes: tuple[str, ...]
    families: tuple[str, ...]
    codes: npt.NDArray[np.int64]
    probability: Floats
    confidence: Floats
    ranking: npt.NDArray[np.int64]


class Identifier:
    """The head of an identifier's card, ready to name."""

    def __init__(self, card: IdentifierCard) -> None:
        self.card = card
        path = resolve_part(card.parts[0])
        tensors = read_arrays(path)
        wanted = {"weight"} | (
            {"means", "whitening"}
            if card.open_set and card.open_set.method == "distance"
            else set()
        )
        if missing := wanted - set(tensors):
            raise DetectorError(f"{card.name}: {path}: lacks {', '.join(sorted(missing))}")
        self._weight = tensors["weight"].astype(np.float32)
        self._bias = tensors.get("bias", np.zeros(len(self._weight), np.float32)).astype(np.float32)
        self._means, self._whitening = tensors.get("means"), tensors.get("whitening")
        if len(self._weight) != len(card.classes) or len(self._bias) != len(card.classes):
            raise DetectorError(
                f"{card.name}: {path}: {len(self._weight)} rows for {len(card.classes)} classes"
            )
        families = card.class_families
        self._in_family = np.array(
            [[one == other for other in families] for one in dict.fromkeys(families)], np.float32
        )

    @property
    def width(self) -> int:
        """Numbers of an embedding."""
        return int(self._weight.shape[1])

    def identify(self, vectors: Floats) -> Identified:
        """(n, d) float32; rows of NaN are images without an embedding."""
        card, there = self.card, np.asarray(np.isfinite(vectors).all(axis=1))
        logits = self.logits(np.where(there[:, None], vectors, 0))
        chances = softmax(logits)
        family = (chances @ self._in_family.T).argmax(axis=1)
        within = chances + self._in_family[family]  # its family first, then by chance
        ranking = np.argsort(-within, axis=1, kind="stable")[:, :RANKED]
        best = ranking[:, 0]
        confidence = np.where(there, self.confidence(vectors, logits), np.nan).astype(np.float32)
        known = there if card.open_set is None else there & (confidence >= card.open_set.threshold)
        probability = np.where(there, chances[np.arange(len(best)), best], np.nan).astype(
            np.float32
        )
        return Identified(
            card.classes,
            card.class_families,
            np.where(known, best, -1),
            probability,
            confidence,
            ranking,
        )

    def logits(self, vectors: Floats) -> Floats:
        """(n, C) of finite vectors (n, d). Summed in float64, so that a row's numbers do not hang
        on how many rows it came with.
        """
        rows, weight = vectors.astype(np.float64), self._weight.astype(np.float64)
        if self.card.head == "cosine":
            return np.asarray(
                self.card.scale * unit(rows) @ unit(weight).T + self._bias, np.float32
            )
        return np.asarray(rows @ weight.T + self._bias, np.float32)

    def confidence(self, vectors: Floats, logits: Floats) -> Floats:
        """(n,) how much an image is like those of known generators; see `OpenSet`."""
        if self.card.open_set is not None and self.card.open_set.method == "distance":
            assert self._means is not None
            assert self._whitening is not None
            return np.asarray(
                -mahalanobis(np.nan_to_num(vectors), self._means, self._whitening).min(axis=1),
                np.float32,
            )
        return energy(logits)


def softmax(logits: Floats) -> Floats:
    """(n, C) → chances that sum to one."""
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True), np.float32)


def energy(logits: Floats) -> Floats:
    """(n, C) → (n,) log Σ exp."""
    top = logits.max(axis=1)
    return np.asarray(top + np.log(np.exp(logits - top[:, None]).sum(axis=1)), np.float32)


def mahalanobis(vectors: Floats, means: Floats, whitening: Floats) -> Floats:
    """(n, C) distances of vectors (n, d) to means (C, d), where `whitening` (d, k) makes the
    covariance that all classes share the unit.
    """
    # squares of float32 would leave a difference of large numbers nothing but rounding
    white = whitening.astype(np.float64)
    ours, theirs = vectors @ white, means @ white
    squared = (ours**2).sum(axis=1)[:, None] + (theirs**2).sum(axis=1)[None] - 2 * ours @ theirs.T
    return np.asarray(np.sqrt(np.maximum(squared, 0)), np.float32)


def unit(rows: Reals) -> Reals:
    """(n, d) → rows of length 1, in the same precision; rows of zeros stay so."""
    found: Reals = (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)).astype(
        rows.dtype
    )
    return found
