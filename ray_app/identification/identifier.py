"""Identify the generator of an image from its embedding (`Identifier`), in plain numpy.

The result is the most probable known generator, its probability, and whether the generator is known
at all. The family is selected first, then the generator in it: p(generator) = p(family) p(generator
| family) from one softmax, so both levels agree.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from ray_app.detectors.checkpoints import read_arrays
from ray_app.detectors.weights import resolve_part
from ray_app.errors import DetectorError
from ray_app.identification.cards import IdentifierCard

RANKED = 5
"""Number of generators in a ranking."""
Floats = npt.NDArray[np.float32]
Reals = TypeVar("Reals", npt.NDArray[np.float32], npt.NDArray[np.float64])


class NamedGenerator(NamedTuple):
    """The predicted generator of an image. A scoring run stores the fields as columns.

    Attributes:
        predicted_generator: The first generator in the ranking. None if the confidence is so low
            that the generator counts as unknown.
        generator_family: The family of `predicted_generator`. None if that is None.
        generator_probability: Probability of the first generator in the ranking, under the
            assumption that a known generator generated the image.
        generator_confidence: Confidence that a known generator generated the image. Higher means
            surer. The scale depends on the method of the card's `open_set`.
        generator_ranking: Names of up to five known generators. Those of the most probable family
            come first, then the others, each from most to least probable.
    """

    predicted_generator: str | None
    generator_family: str | None
    generator_probability: float
    generator_confidence: float
    generator_ranking: tuple[str, ...]


@dataclass(frozen=True)
class Identified:
    """The predicted generators of n images, as arrays.

    Attributes:
        classes: The known generators.
        families: The family of each known generator.
        codes: Index in `classes` of each image's generator (n,). −1 for an unknown generator or an
            image without an embedding.
        probability: Probability of the first generator in the ranking (n,), under the assumption
            that a known generator generated the image. NaN without an embedding.
        confidence: Confidence that a known generator generated the image (n,). NaN without an
            embedding.
        ranking: Indices in `classes` (n, k) of up to five generators, also for unknown generators.
            Those of the most probable family come first, then the others, each from most to least
            probable.
    """

    classes: tuple[str, ...]
    families: tuple[str, ...]
    codes: npt.NDArray[np.int64]
    probability: Floats
    confidence: Floats
    ranking: npt.NDArray[np.int64]

    def select(self, rows: slice) -> "Identified":
        """Return the generators of a slice of the images."""
        return replace(
            self,
            codes=self.codes[rows],
            probability=self.probability[rows],
            confidence=self.confidence[rows],
            ranking=self.ranking[rows],
        )

    def name_image(self, row: int) -> NamedGenerator | None:
        """Return the generator of an image, or None if the image has no embedding."""
        if not np.isfinite(self.confidence[row]):
            return None
        code = int(self.codes[row])
        return NamedGenerator(
            self.classes[code] if code >= 0 else None,
            self.families[code] if code >= 0 else None,
            float(self.probability[row]),
            float(self.confidence[row]),
            tuple(self.classes[other] for other in self.ranking[row].tolist()),
        )

    def to_columns(self, has_score: Sequence[bool] | npt.NDArray[np.bool_]) -> dict[str, list[Any]]:
        """Return the fields of `NamedGenerator` as columns of a scoring run, by name.

        `has_score` has one value per image. The values of the columns are None for images without a
        score or an embedding.
        """
        rows = [self.name_image(row) if scored else None for row, scored in enumerate(has_score)]
        return {
            name: [None if row is None else getattr(row, name) for row in rows]
            for name in NamedGenerator._fields
        }


class Identifier:
    """Predict the generators of images from embeddings, with the head of an identifier card.

    The head is a linear layer, or computes cosines with a vector per generator.

    Args:
        card: The identifier card.

    Raises:
        DetectorError: If its weights are missing or do not fit.
    """

    def __init__(self, card: IdentifierCard) -> None:
        self.card = card
        path = resolve_part(card.parts[0])
        tensors = read_arrays(path)
        needed = {"weight"}
        if card.open_set and card.open_set.method == "distance":
            needed |= {"means", "whitening"}
        if missing := needed - set(tensors):
            raise DetectorError(
                f"{card.name}: {path}: tensors are missing: {', '.join(sorted(missing))}",
                hint="restore the file that was written together with this card",
            )
        self._weight = tensors["weight"].astype(np.float32)
        self._bias = tensors.get("bias", np.zeros(len(self._weight), np.float32)).astype(np.float32)
        self._means, self._whitening = tensors.get("means"), tensors.get("whitening")
        if len(self._weight) != len(card.classes) or len(self._bias) != len(card.classes):
            raise DetectorError(
                f"{card.name}: {path}: the head must have a row per class ({len(card.classes)}), got {len(self._weight)}"
            )
        families = np.array(card.class_families, object)
        self._in_family = np.array(
            [families == family for family in dict.fromkeys(families)], np.float32
        )

    @property
    def width(self) -> int:
        """Length of an embedding."""
        return int(self._weight.shape[1])

    def identify(self, vectors: Floats) -> Identified:
        """Identify the generators of images from embeddings (n, d).

        A row of NaN is an image without an embedding.
        """
        card, has_vector = self.card, np.asarray(np.isfinite(vectors).all(axis=1))
        logits = self.logits(np.where(has_vector[:, None], vectors, 0))
        probabilities = softmax(logits)
        family = (probabilities @ self._in_family.T).argmax(axis=1)
        # The generators of the most probable family come first.
        by_family = probabilities + self._in_family[family]
        ranking = np.argsort(-by_family, axis=1, kind="stable")[:, :RANKED]
        best = ranking[:, 0]
        confidence = np.where(has_vector, self.confidence(vectors, logits), np.nan)
        confidence = confidence.astype(np.float32)
        is_known = has_vector
        if card.open_set is not None:
            is_known = has_vector & (confidence >= card.open_set.threshold)
        probability = np.where(has_vector, probabilities[np.arange(len(best)), best], np.nan)
        return Identified(
            card.classes,
            card.class_families,
            np.where(is_known, best, -1),
            probability.astype(np.float32),
            confidence,
            ranking,
        )

    def logits(self, vectors: Floats) -> Floats:
        """Return the logits (n, C) of finite embeddings (n, d).

        Sums are in float64, so that the result of a row never depends on the number of rows.
        """
        rows, weight = vectors.astype(np.float64), self._weight.astype(np.float64)
        if self.card.head == "cosine":
            cosines = self.card.scale * unit(rows) @ unit(weight).T
            return np.asarray(cosines + self._bias, np.float32)
        return np.asarray(rows @ weight.T + self._bias, np.float32)

    def confidence(self, vectors: Floats, logits: Floats) -> Floats:
        """Return for each image the confidence (n,) that its generator is a known one.

        The card's `open_set.method` defines the confidence. `vectors` are the embeddings (n, d),
        and `logits` (n, C) are their logits.
        """
        if self.card.open_set is not None and self.card.open_set.method == "distance":
            assert self._means is not None
            assert self._whitening is not None
            distances = mahalanobis(np.nan_to_num(vectors), self._means, self._whitening)
            return np.asarray(-distances.min(axis=1), np.float32)
        return energy(logits)


def softmax(logits: Floats) -> Floats:
    """Return the probabilities (n, C) of logits (n, C)."""
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True), np.float32)


def energy(logits: Floats) -> Floats:
    """Return the confidence (n,) that the generator of each image is a known one.

    It is log Σ exp of the image's logits (n, C) for C known generators. This is the method `energy`
    of `OpenSet`.
    """
    top = logits.max(axis=1)
    return np.asarray(top + np.log(np.exp(logits - top[:, None]).sum(axis=1)), np.float32)


def mahalanobis(vectors: Floats, means: Floats, whitening: Floats) -> Floats:
    """Return the Mahalanobis distances of embeddings to the mean embedding of each generator.

    Args:
        vectors: Embeddings (n, d).
        means: Mean embeddings of C generators (C, d).
        whitening: Matrix (d, k) by which the embeddings are multiplied, so that their covariance
            within a generator becomes the identity. All generators share one covariance.

    Returns:
        Distances (n, C).
    """
    # In float32, only rounding errors would remain of a difference of large squares.
    matrix = whitening.astype(np.float64)
    rows, centres = vectors @ matrix, means @ matrix
    squares = (rows**2).sum(axis=1)[:, None] + (centres**2).sum(axis=1)[None] - 2 * rows @ centres.T
    return np.asarray(np.sqrt(np.maximum(squares, 0)), np.float32)


def unit(rows: Reals) -> Reals:
    """Scale the rows of an array to length 1, in its precision. Rows of zeros stay zero."""
    scaled: Reals = (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)).astype(
        rows.dtype
    )
    return scaled
