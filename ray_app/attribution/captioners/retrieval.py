"""The tier `retrieval`, the cheapest: the prompt of the nearest embedding in an index. Plain numpy.

Nearest neighbours in the space of a detector's embeddings, by cosine, as CLIP-retrieval and the CLIP Interrogator do.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ray_app.attribution import cards, identifier
from ray_app.attribution.captioners.registry import NOTHING, Caption
from ray_app.detectors.weights import read_arrays, resolve_part
from ray_app.errors import DetectorError

Floats = npt.NDArray[np.float32]
_AT_ONCE = 16  # rows of one product, always as many: the same row has the same product whatever it came with
_CLOSE = 8  # neighbours that are compared again in float64, since rounding must not choose between twins
_UNIT_TOLERANCE = 1e-2  # of a row that was kept in half precision


class Retrieval:
    """A describer of the tier `retrieval`. Raises DetectorError where its file is missing or is no index."""

    def __init__(self, card: cards.DescriberCard, cache_dir: Path | None = None, offline: bool | None = None) -> None:
        self.card = card
        path = resolve_part(card.parts[0], cache_dir, offline)
        tensors = read_arrays(path)
        if why := _fault(tensors):
            raise DetectorError(f"{card.name}: {path}: no index of prompts: {why}")
        self._vectors: Floats = np.ascontiguousarray(tensors["embeddings"], np.float32)
        prompts: bytes = tensors["prompts"].tobytes()
        self._bytes, self._ends = prompts, tensors["ends"].astype(np.int64)

    def __len__(self) -> int:
        """Prompts in the index."""
        return len(self._ends)

    def describe(self, given: npt.NDArray[Any]) -> Sequence[Caption]:
        """(n, d) float32 → the prompt of each row's nearest neighbour, the first of equals, and their cosine.

        A row of NaN, an image without an embedding, has no words. Raises DetectorError for rows of another width.
        """
        if given.ndim != 2 or given.shape[1] != self._vectors.shape[1]:
            raise DetectorError(
                f"{self.card.name}: embeddings of shape {given.shape}, the index has {self._vectors.shape[1]} numbers per image"
            )
        there = np.isfinite(given).all(axis=1)
        rows = identifier.unit(np.where(there[:, None], given, 0).astype(np.float32))
        found: list[Caption] = []
        for start in range(0, len(rows), _AT_ONCE):
            found += self._described(rows[start : start + _AT_ONCE])
        return [one if known else NOTHING for one, known in zip(found, there, strict=True)]

    def _described(self, rows: Floats) -> list[Caption]:
        padded = np.zeros((_AT_ONCE, rows.shape[1]), np.float32)
        padded[: len(rows)] = rows
        likeness = (padded @ self._vectors.T)[: len(rows)]
        close = min(_CLOSE, len(self))
        nearest = np.argpartition(-likeness, close - 1, axis=1)[:, :close]
        return [self._best(row, np.sort(places)) for row, places in zip(rows, nearest, strict=True)]

    def _best(self, row: Floats, places: npt.NDArray[np.intp]) -> Caption:
        exact = self._vectors[places].astype(np.float64) @ row.astype(np.float64)
        best = int(exact.argmax())
        return Caption(self.prompt(int(places[best])), float(np.clip(exact[best], -1, 1)) if np.isfinite(exact[best]) else None)

    def prompt(self, place: int) -> str:
        """One prompt of the index."""
        start = int(self._ends[place - 1]) if place else 0
        return self._bytes[start : int(self._ends[place])].decode(errors="replace")


def index_tensors(vectors: Floats, prompts: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    """The tensors of a retrieval's file: `vectors` (n, d), of any length above zero, and the prompt of each."""
    encoded = [prompt.encode() for prompt in prompts]
    if len(encoded) != len(vectors) or not encoded:
        raise ValueError(f"{len(vectors)} vectors, {len(encoded)} prompts")
    return {
        "embeddings": identifier.unit(np.asarray(vectors, np.float32)),
        "prompts": np.frombuffer(b"".join(encoded), np.uint8).copy(),
        "ends": np.cumsum([len(one) for one in encoded], dtype=np.int64),
    }


def _fault(tensors: Mapping[str, npt.NDArray[Any]]) -> str | None:
    if missing := {"embeddings", "prompts", "ends"} - set(tensors):
        return f"it lacks {', '.join(sorted(missing))}"
    vectors, ends = tensors["embeddings"], tensors["ends"]
    if vectors.ndim != 2 or not len(ends) or ends.shape != (len(vectors),) or tensors["prompts"].dtype != np.uint8:
        return f"embeddings {vectors.shape}, ends {ends.shape}, prompts {tensors['prompts'].dtype}"
    if (np.diff(ends, prepend=0) < 0).any() or ends[-1] != tensors["prompts"].size:
        return "the ends of its prompts do not fit their bytes"
    if (np.abs(np.linalg.norm(vectors.astype(np.float32), axis=1) - 1) > _UNIT_TOLERANCE).any():
        return "its embeddings are not of length 1"
    return None
