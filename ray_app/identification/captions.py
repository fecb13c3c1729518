"""Define predicted prompts (`Caption`), their predictors (`Describer`), and `Retrieval`.

A describer predicts the prompt from which an image was generated. `Retrieval` is the describer
without a network, in plain numpy: it looks up the nearest known prompt. Describers with a network
are in `ray_app.identification.captioners`, which loads a describer of any kind.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from ray_app.detectors.checkpoints import read_arrays
from ray_app.detectors.weights import resolve_part
from ray_app.errors import DetectorError
from ray_app.identification.cards import DescriberCard
from ray_app.identification.identifier import Floats, unit

# Rows per matrix product. The number is constant, so that the result of a row never depends on its
# batch.
_BATCH = 16
# Neighbours that are compared again in float64, so that rounding does not decide between
# near-duplicates.
_N_CANDIDATES = 8
_UNIT_TOLERANCE = 1e-2  # For rows in half precision.


class Caption(NamedTuple):
    """The predicted prompt of an image.

    Attributes:
        text: The prompt.
        likelihood: Confidence in the text. For a describer with a network, it is the mean
            log-probability of the tokens of the text, at most 0. For `Retrieval`, it is the cosine
            to the nearest embedding. None if there is no text or no finite number.
    """

    text: str
    likelihood: float | None


NOTHING = Caption("", None)
"""The caption of an image without an embedding."""


class Describer(Protocol):
    """A loaded model or index that predicts the prompts of images."""

    @property
    def card(self) -> DescriberCard:
        """The describer card."""
        ...

    def describe(self, images: npt.NDArray[Any]) -> Sequence[Caption]:
        """Predict the prompt of each image, independent of the other images.

        Args:
            images: Embeddings (n, d) float32 of the card's detector if the card names one, with a
                row of NaN for an image without an embedding. Otherwise pixels (n, H, W, 3) uint8,
                prepared with the card's preprocessing.

        Returns:
            A caption per image.
        """
        ...


DescribeBatch = Callable[[npt.NDArray[Any]], Sequence[Caption]]


def describe_in_batches(
    images: npt.NDArray[Any], batch: int, describe: DescribeBatch
) -> list[Caption]:
    """Call `describe` with batches of exactly `batch` images, the last one padded with zeros.

    Args:
        images: Images or embeddings, one per row.
        batch: Rows per batch.
        describe: Returns the captions of a batch.

    Returns:
        A caption per image.
    """
    captions: list[Caption] = []
    for start in range(0, len(images), batch):
        part = images[start : start + batch]
        padded = np.zeros((batch, *images.shape[1:]), images.dtype)
        padded[: len(part)] = part
        captions += describe(padded)[: len(part)]
    return captions


def describe_embeddings(
    card: DescriberCard,
    embeddings: npt.NDArray[Any],
    width: int,
    batch: int,
    describe: DescribeBatch,
) -> list[Caption]:
    """Call `describe` with batches of embeddings.

    A row with NaN or infinity is an image without an embedding. It gets `NOTHING`, a caption
    without text.

    Args:
        card: The describer card, for errors.
        embeddings: Embeddings, one per row.
        width: Required width of an embedding.
        batch: Rows per batch.
        describe: Returns the captions of a batch.

    Returns:
        A caption per embedding.

    Raises:
        DetectorError: If the embeddings have another width.
    """
    if embeddings.ndim != 2 or embeddings.shape[1] != width:
        raise DetectorError(
            f"{card.name}: embeddings must have {width} numbers per image, got shape {embeddings.shape}"
        )
    is_finite = np.isfinite(embeddings).all(axis=1)
    finite = np.where(is_finite[:, None], embeddings, 0).astype(np.float32)
    captions = describe_in_batches(finite, batch, describe)
    return [
        caption if is_known else NOTHING
        for caption, is_known in zip(captions, is_finite, strict=True)
    ]


class Retrieval:
    """Predict the prompt of an image by the nearest embedding in an index of known prompts.

    The nearest embedding has the highest cosine. CLIP-retrieval and the CLIP Interrogator use the
    same method.

    Args:
        card: The describer card.

    Raises:
        DetectorError: If the card's file is missing or is not an index.
    """

    def __init__(self, card: DescriberCard) -> None:
        self.card = card
        path = resolve_part(card.parts[0])
        tensors = read_arrays(path)
        if problem := _find_problem(tensors):
            raise DetectorError(
                f"{card.name}: {path}: not an index of prompts: {problem}",
                hint="restore the file that was written together with this card",
            )
        self._vectors: Floats = np.ascontiguousarray(tensors["embeddings"], np.float32)
        self._prompts: bytes = tensors["prompts"].tobytes()
        self._stops = tensors["ends"].astype(np.int64)

    def describe(self, images: npt.NDArray[Any]) -> Sequence[Caption]:
        """Return for each embedding the prompt of its nearest neighbour, and the cosine of both.

        If several neighbours are equally near, the first in the index is used.
        """
        return describe_embeddings(
            self.card, images, self._vectors.shape[1], _BATCH, self._describe_batch
        )

    def _describe_batch(self, embeddings: npt.NDArray[Any]) -> Sequence[Caption]:
        rows = unit(embeddings)
        n_candidates = min(_N_CANDIDATES, len(self._stops))
        nearest = np.argpartition(-(rows @ self._vectors.T), n_candidates - 1, axis=1)[
            :, :n_candidates
        ]
        return [
            self._describe_row(row, np.sort(neighbours))
            for row, neighbours in zip(rows, nearest, strict=True)
        ]

    def _describe_row(self, row: Floats, neighbours: npt.NDArray[np.intp]) -> Caption:
        cosines = self._vectors[neighbours].astype(np.float64) @ row.astype(np.float64)
        best = int(cosines.argmax())
        nearest = int(neighbours[best])
        start = int(self._stops[nearest - 1]) if nearest else 0
        prompt = self._prompts[start : int(self._stops[nearest])].decode(errors="replace")
        is_finite = np.isfinite(cosines[best])
        return Caption(prompt, float(np.clip(cosines[best], -1, 1)) if is_finite else None)


def index_tensors(vectors: Floats, prompts: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    """Build the tensors to save as the file of a `Retrieval` index.

    Args:
        vectors: Embeddings of n images (n, d), of any length above 0. They are scaled to length 1.
        prompts: The prompt of each image.

    Returns:
        The tensors by name: `embeddings`, `prompts`, and `ends`, as `DescriberCard` defines them.

    Raises:
        ValueError: If `prompts` is empty or differs in number from `vectors`.
    """
    encoded = [prompt.encode() for prompt in prompts]
    if len(encoded) != len(vectors) or not encoded:
        raise ValueError(
            f"there must be one vector per prompt, and at least one prompt, got {len(vectors)} vectors and {len(encoded)} prompts"
        )
    return {
        "embeddings": unit(np.asarray(vectors, np.float32)),
        "prompts": np.frombuffer(b"".join(encoded), np.uint8).copy(),
        "ends": np.cumsum([len(prompt) for prompt in encoded], dtype=np.int64),
    }


def _find_problem(tensors: Mapping[str, npt.NDArray[Any]]) -> str | None:
    """Return the reason why tensors are not a valid index, or None."""
    if missing := {"embeddings", "prompts", "ends"} - set(tensors):
        return f"it lacks {', '.join(sorted(missing))}"
    vectors, prompts, stops = tensors["embeddings"], tensors["prompts"], tensors["ends"]
    is_table = vectors.ndim == 2 and len(stops) and stops.shape == (len(vectors),)
    if not is_table or prompts.dtype != np.uint8:
        return f"embeddings {vectors.shape}, ends {stops.shape}, prompts {prompts.dtype}"
    if (np.diff(stops, prepend=0) < 0).any() or stops[-1] != prompts.size:
        return "the ends of its prompts do not fit their bytes"
    if (np.abs(np.linalg.norm(vectors.astype(np.float32), axis=1) - 1) > _UNIT_TOLERANCE).any():
        return "its embeddings are not of length 1"
    return None
