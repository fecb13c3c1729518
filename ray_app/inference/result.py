"""Define the results of an ensemble for one image (`Result`) and for many images (`Results`)."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ray_app.ensembles.finding import Ground
from ray_app.errors import Reason, Status
from ray_app.images import ImageFileFacts
from ray_app.inference import result_html
from ray_app.inference.batch import Pixels

if TYPE_CHECKING:
    import pandas as pd

_FACTS = ("format", "width", "height", "sha256")
_GENERATOR = (
    "predicted_generator",
    "generator_family",
    "generator_probability",
    "generator_confidence",
    "generator_ranking",
)
_PROMPT = ("predicted_prompt", "prompt_likelihood")
_N_DISPLAYED = 8  # Results that a notebook shows of many.


@dataclass(frozen=True, repr=False)
class Result:
    """The verdict of an ensemble on one image, with its reasons.

    Some ensembles also predict the generator and the prompt of an image. Attributes about the
    generator or prompt are None if the ensemble makes no such prediction for this image.

    Examples:
        >>> result = ray_app.load_ensemble("default").score("photo.jpg")
        >>> if result.status == "ok":
        ...     print(result.verdict, result.probability)
        ... else:
        ...     print("not scored:", result.status, result.detail)

    Attributes:
        status: `ok`, or the reason for a missing score.
        detail: Numbers and names that explain a status other than `ok`.
        verdict: `fake`, `real` (no evidence found), or `abstain`. None without a score.
        verdict_reason: Why the verdict is `abstain`.
        probability: P(fake). The plain sigmoid of the score unless `calibrated`.
        calibrated: Whether the ensemble was calibrated on labelled images.
        score: Log-odds of fake, which the ensemble combines from the scores of its detectors.
        scores: Log-odds of fake by detector. None for a detector without a score.
        facts: Format, size, and other properties of the file.
        masks: For each detector that finds altered pixels, a (H, W) uint8 array in the resolution
            of its network. The array covers the whole image, and 255 means surely altered.
        finding: The conclusion on the origin of the image as text. Among the `grounds` that support
            any conclusion, the strongest decides. None if no ground supports a conclusion.
        grounds: What the file states about its origin, and what the detectors conclude, the
            strongest first.
        second_look: The reason why all detectors of a cascade scored the image: `band` (the first
            stage was undecided) or `audit` (the image was selected by its hash as a check). None if
            the first stage was enough, or if the ensemble is not a cascade.
        verdict_detail: Names and numbers that explain `verdict_reason`.
        predicted_generator: The most similar known generator.
        generator_family: The family of `predicted_generator`.
        generator_probability: The probability of `predicted_generator` among the known generators.
        generator_confidence: The confidence that the generator is one of the known generators.
            Higher is surer.
        generator_ranking: The known generators, the most similar first.
        predicted_prompt: A guess at the prompt.
        prompt_likelihood: The likelihood of the prompt. Compare it only with likelihoods from the
            same describer.
        source: The path or URL without secrets, or else the position of the image in the call. None
            for a single image that has neither path nor URL.
        demonstration: Whether the ensemble has a detector that is only for demonstrations, so that
            the result must not be used for decisions.
        fpr: The false-positive rate that the thresholds are for. None if the card states no rate.
        picture: The image or path that a notebook displays. None if keeping it would take memory.
    """

    status: Status
    detail: str | None
    verdict: str | None
    verdict_reason: Reason | None
    probability: float | None
    calibrated: bool
    score: float | None
    scores: Mapping[str, float | None]
    facts: ImageFileFacts | None
    masks: Mapping[str, Pixels | None]
    finding: str | None = None
    grounds: tuple[Ground, ...] = ()
    second_look: str | None = None
    verdict_detail: str | None = None
    predicted_generator: str | None = None
    generator_family: str | None = None
    generator_probability: float | None = None
    generator_confidence: float | None = None
    generator_ranking: tuple[str, ...] | None = None
    predicted_prompt: str | None = None
    prompt_likelihood: float | None = None
    source: str | int | None = None
    demonstration: bool = False
    fpr: float | None = None
    picture: Any = field(default=None, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as a dict of plain values for JSON.

        `facts` is replaced by `format`, `width`, `height`, and `sha256`. `masks`, `picture`, and
        `demonstration` are left out. The attributes about a generator or a prompt are left out if
        the ensemble predicts none for this image.
        """
        row = {
            "source": self.source,
            "status": self.status.value,
            "detail": self.detail,
            "finding": self.finding,
            "grounds": [ground.model_dump() for ground in self.grounds],
            "verdict": self.verdict,
            "verdict_reason": self.verdict_reason and self.verdict_reason.value,
            "verdict_detail": self.verdict_detail,
            "probability": self.probability,
            "calibrated": self.calibrated,
            "fpr": self.fpr,
            "score": self.score,
            "scores": dict(self.scores),
            "second_look": self.second_look,
            **{key: self.facts and getattr(self.facts, key) for key in _FACTS},
        }
        if self.generator_confidence is not None:
            row |= {key: getattr(self, key) for key in _GENERATOR}
        return row | (
            {key: getattr(self, key) for key in _PROMPT}
            if self.predicted_prompt is not None
            else {}
        )

    def __repr__(self) -> str:
        fields: dict[str, Any] = {"source": self.source, "status": self.status.value}
        if self.status is Status.OK:
            fields |= {
                "finding": self.finding,
                "verdict": self.verdict,
                "probability": _round(self.probability),
                "score": _round(self.score),
            }
        else:
            fields |= {"detail": self.detail}
        return f"Result({', '.join(f'{name}={value!r}' for name, value in fields.items())})"

    def _repr_html_(self) -> str:
        return result_html.card(self.to_dict(), self.picture, demonstration=self.demonstration)


class Results(Iterator[Result]):
    """An iterator over the results of many images, which scores the images as it is read.

    Results are not kept after they are read, so memory does not grow with their number. To use the
    results more than once, call `list(results)`.

    Examples:
        >>> results = ray_app.load_ensemble("default").score("photos/")
        >>> for result in results:
        ...     print(result.source, result.verdict)

    Args:
        results: An iterator that scores the next image when it is read.
        detectors: The names of the detectors, in the order of the columns of `to_frame`.
        count: The number of images. None if it is unknown.

    Attributes:
        count: The number of images. None if it is unknown.
    """

    def __init__(
        self, results: Iterator[Result], detectors: Sequence[str], count: int | None = None
    ) -> None:
        self._results, self._detectors, self.count = results, detectors, count
        self._ahead, self._n_read = deque[Result](), 0

    def __next__(self) -> Result:
        result = self._ahead.popleft() if self._ahead else next(self._results)
        self._n_read += 1
        return result

    def __getitem__(self, index: int) -> Result:
        """Return the result at an index without reading it from the iterator.

        All images up to the index are scored. Iteration still yields their results.

        Args:
            index: The index of the image, from 0.

        Returns:
            The result of the image.

        Raises:
            TypeError: The index is negative or not an integer.
            IndexError: The result was already read, or there are fewer images.
        """
        if not isinstance(index, int | np.integer) or index < 0:
            raise TypeError(
                f"an index of results must be an integer of at least 0, got {index!r}; for slices and negative indices use list(results)"
            )
        if index < self._n_read:
            raise IndexError(
                f"result {index} was already read and is not kept; to keep all results use list(results)"
            )
        if not self._look_ahead(int(index) - self._n_read + 1):
            raise IndexError(
                f"result {index} does not exist: there are {self._n_read + len(self._ahead)} images"
            )
        return self._ahead[index - self._n_read]

    def to_frame(self) -> "pd.DataFrame":
        """Score the remaining images, and return all unread results as a pandas DataFrame.

        The columns are the keys of `Result.to_dict`. The column `scores` is replaced by one column
        `score_NAME` for each detector.
        """
        return build_frame((result.to_dict() for result in self), self._detectors)

    def __repr__(self) -> str:
        return f"Results({'' if self.count is None else f'{self.count} images, '}{self._n_read} read; iterate to score the rest)"

    def _repr_html_(self) -> str:
        self._look_ahead(_N_DISPLAYED)
        displayed = list(self._ahead)[:_N_DISPLAYED]
        return result_html.cards(
            [(result.to_dict(), result.picture, result.demonstration) for result in displayed],
            self._n_read,
            self.count,
        )

    def _look_ahead(self, count: int) -> bool:
        """Score until `count` results are unread, and return whether there are that many."""
        while len(self._ahead) < count and (result := next(self._results, None)) is not None:
            self._ahead.append(result)
        return len(self._ahead) >= count


def build_frame(rows: Iterator[Mapping[str, Any]], detectors: Sequence[str]) -> "pd.DataFrame":
    """Return result rows as a table.

    One column `score_NAME` per detector replaces the key `scores` of the rows.
    """
    import pandas as pd

    flat = []
    for row in rows:
        columns: dict[str, Any] = {}
        for key, value in row.items():
            columns |= (
                {f"score_{name}": (value or {}).get(name) for name in detectors}
                if key == "scores"
                else {key: value}
            )
        flat.append(columns)
    columns_if_empty = (
        "source",
        "status",
        "detail",
        "finding",
        "grounds",
        "verdict",
        "verdict_reason",
        "probability",
        "calibrated",
        "fpr",
        "score",
    )
    return (
        pd.DataFrame(flat)
        if flat
        else pd.DataFrame(columns=[*columns_if_empty, *(f"score_{name}" for name in detectors)])
    )


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
