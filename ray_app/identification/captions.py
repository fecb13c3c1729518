"""What words an image may have been made from (`Caption`, `Describer`), and the cheapest means to
find some: `Retrieval`. Plain numpy.

The tiers with a network are in `ray_app.identification.captioners`, which also loads a describer of
any tier.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from ray_app.detectors.weights import read_arrays, resolve_part
from ray_app.errors import DetectorError
from ray_app.identification.cards import DescriberCard
from ray_app.identification.identifier import Floats, unit

# rows of one product, always as many: the same row has the same product whatever it came with
_AT_ONCE = 16
# neighbours that are compared again in float64, since rounding must not choose between twins
_CLOSE = 8
_UNIT_TOLERANCE = 1e-2  # of a row that was kept in half precision


class Caption(NamedTuple):
    """The words that an image may have been made from. `likelihood`: how much its model believes in
    them: the mean log-probability of a token (at most 0) where words were generated, the cosine to
    the nearest embedding where they were found; never NaN or infinite, but None where there was
    nothing to say words of, or where the model gave no number.
    """

    text: str
    likelihood: float | None


NOTHING = Caption("", None)
"""The caption of an image that left no embedding."""


class Describer(Protocol):
    """What predicts prompts, loaded and ready."""

    @property
    def card(self) -> DescriberCard:
        """Which it is."""
        ...

    def describe(self, given: npt.NDArray[Any]) -> Sequence[Caption]:
        """One per row of `given`: embeddings (n, d) float32 where the card names a detector, else
        pixels (n, H, W, 3) uint8 as its preprocessing prepares them. The same for an image whatever
        it was batched with; NOTHING of a row of NaN.
        """
        ...


DescribeBatch = Callable[[npt.NDArray[Any]], Sequence[Caption]]


def in_batches(given: npt.NDArray[Any], slots: int, describe: DescribeBatch) -> list[Caption]:
    """What `describe` says of (n, …) in batches of exactly `slots` rows; the last is filled up with
    zeros.
    """
    captions: list[Caption] = []
    for start in range(0, len(given), slots):
        part = given[start : start + slots]
        full = np.zeros((slots, *given.shape[1:]), given.dtype)
        full[: len(part)] = part
        captions += describe(full)[: len(part)]
    return captions


def of_embeddings(
    card: DescriberCard, given: npt.NDArray[Any], width: int, slots: int, describe: DescribeBatch
) -> list[Caption]:
    """What `describe` says of embeddings (n, width), in batches of `slots`; NOTHING of rows of NaN.

    Raises DetectorError for another width.
    """
    if given.ndim != 2 or given.shape[1] != width:
        raise DetectorError(
            f"{card.name}: embeddings of shape {given.shape}, it reads {width} numbers per image"
        )
    there = np.isfinite(given).all(axis=1)
    captions = in_batches(np.where(there[:, None], given, 0).astype(np.float32), slots, describe)
    return [one if known else NOTHING for one, known in zip(captions, there, strict=True)]


class Retrieval:
    """The tier `retrieval`: the prompt of the nearest embedding in an index, by cosine, as
    CLIP-retrieval and the CLIP Interrogator do.

    Raises DetectorError where its file is missing or is no index.
    """

    def __init__(self, card: DescriberCard) -> None:
        self.card = card
        path = resolve_part(card.parts[0])
        tensors = read_arrays(path)
        if why := _fault(tensors):
            raise DetectorError(f"{card.name}: {path}: no index of prompts: {why}")
        self._vectors: Floats = np.ascontiguousarray(tensors["embeddings"], np.float32)
        prompts: bytes = tensors["prompts"].tobytes()
        self._bytes, self._ends = prompts, tensors["ends"].astype(np.int64)

    def describe(self, given: npt.NDArray[Any]) -> Sequence[Caption]:
        """(n, d) float32 → the prompt of each row's nearest neighbour, the first of equals, and
        their cosine; see `of_embeddings`.
        """
        return of_embeddings(self.card, given, self._vectors.shape[1], _AT_ONCE, self._nearest)

    def _nearest(self, given: npt.NDArray[Any]) -> Sequence[Caption]:
        rows = unit(given)
        close = min(_CLOSE, len(self._ends))
        nearest = np.argpartition(-(rows @ self._vectors.T), close - 1, axis=1)[:, :close]
        return [self._best(row, np.sort(places)) for row, places in zip(rows, nearest, strict=True)]

    def _best(self, row: Floats, places: npt.NDArray[np.intp]) -> Caption:
        exact = self._vectors[places].astype(np.float64) @ row.astype(np.float64)
        best = int(exact.argmax())
        return Caption(
            self._prompt(int(places[best])),
            float(np.clip(exact[best], -1, 1)) if np.isfinite(exact[best]) else None,
        )

    def _prompt(self, place: int) -> str:
        start = int(self._ends[place - 1]) if place else 0
        return self._bytes[start : int(self._ends[place])].decode(errors="replace")


def index_tensors(vectors: Floats, prompts: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    """The tensors of a retrieval's file: `vectors` (n, d), of any length above zero, and the prompt
    of each.
    """
    encoded = [prompt.encode() for prompt in prompts]
    if len(encoded) != len(vectors) or not encoded:
        raise ValueError(f"{len(vectors)} vectors, {len(encoded)} prompts")
    return {
        "embeddings": unit(np.asarray(vectors, np.float32)),
        "prompts": np.frombuffer(b"".join(encoded), np.uint8).copy(),
        "ends": np.cumsum([len(one) for one in encoded], dtype=np.int64),
    }


def _fault(tensors: Mapping[str, npt.NDArray[Any]]) -> str | None:
    """Why these tensors are no index; None where they are one."""
    if missing := {"embeddings", "prompts", "ends"} - set(tensors):
        return f"it lacks {', '.join(sorted(missing))}"
    vectors, ends = tensors["embeddings"], tensors["ends"]
    if (
        vectors.ndim != 2
        or not len(ends)
        or ends.shape != (len(vectors),)
        or tensors["prompts"].dtype != np.uint8
    ):
        return f"embeddings {vectors.shape}, ends {ends.shape}, prompts {tensors['prompts'].dtype}"
    if (np.diff(ends, prepend=0) < 0).any() or ends[-1] != tensors["prompts"].size:
        return "the ends of its prompts do not fit their bytes"
    if (np.abs(np.linalg.norm(vectors.astype(np.float32), axis=1) - 1) > _UNIT_TOLERANCE).any():
        return "its embeddings are not of length 1"
    return None
