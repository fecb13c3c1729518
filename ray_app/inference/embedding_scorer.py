"""Score stored embeddings with the heads of detectors, without images (`EmbeddingScorer`)."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ray_app.errors import Status
from ray_app.inference.batch import DecodeResult
from ray_app.inference.decision import DetectorOutputs
from ray_app.inference.spec import ScoringSpec

if TYPE_CHECKING:
    from ray_app.detectors.linear_head import LinearHead

MISSING = "no embedding of this image is stored"


class EmbeddingScorer:
    """Score images from embeddings that an earlier run stored, without reading the images.

    Args:
        spec: The spec of the ensemble.
        heads: The head (last layer) of each detector of the ensemble.
    """

    def __init__(self, spec: ScoringSpec, heads: "Mapping[str, LinearHead]") -> None:
        self._spec, self._heads = spec, heads

    def score(
        self, outcomes: Sequence[DecodeResult], vectors: Mapping[str, npt.NDArray[np.float32]]
    ) -> DetectorOutputs:
        """Return the scores of all detectors for n images, and the embeddings in `spec.embedded`.

        `spec.embedded` names the detectors whose embeddings are needed later. Either the run stores
        them, or a model reads them to predict the generator or the prompt of an image.

        Args:
            outcomes: The decoding result of each image.
            vectors: Embeddings (n, d) by detector. A row of NaN is a missing embedding.

        Returns:
            The outputs. An image that was not decoded, or whose size the detector does not score,
            has no score and no entry in `failures`. Any other image without an embedding has no
            score, and `failures` has the reason.
        """
        scores, failures = {}, {}
        for name, head in self._heads.items():
            is_expected = np.array([self._is_expected(name, outcome) for outcome in outcomes], bool)
            has_vector = np.isfinite(vectors[name]).all(axis=1)
            column = head.score(vectors[name])
            column[~is_expected] = np.nan
            scores[name] = column
            failures[name] = [MISSING if lacks else None for lacks in is_expected & ~has_vector]
        embeddings = {name: vectors[name] for name in self._spec.embedded}
        return DetectorOutputs.clean(scores=scores, embeddings=embeddings, failures=failures)

    def _is_expected(self, name: str, outcome: DecodeResult) -> bool:
        """Return whether the detector would score the image itself."""
        facts = outcome.facts
        if outcome.status is not Status.OK or facts is None:
            return False
        return self._spec.is_scored(name, facts.width or 0, facts.height or 0)
