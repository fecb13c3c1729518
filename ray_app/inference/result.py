"""What an ensemble says: of one image (`Result`), and of many, one after another as they are scored
(`Results`).
"""

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
_WORDS = ("predicted_prompt", "prompt_likelihood")
_FIRST = 8  # results that a notebook shows of many


@dataclass(frozen=True, repr=False)
class Result:
    """What the ensemble says of one image. `score` and `scores` are log-odds of fake; all are None
    where `status` is not `ok`.

    `source`: its path or URL (without secrets), else its place (0, 1, …) among the images of the
    call; None where it came alone and has no name. `probability` is the plain sigmoid of the score
    unless `calibrated`. `masks`: per detector that localizes, (H, W) uint8 at the network's own
    size, stretched over the whole image, 255 = surely altered. `finding`: the strongest of the
    `grounds` in words, of what the file says of itself and the detectors see (see
    `ensembles.finding`). `verdict_reason`: why a verdict is `abstain`, and `verdict_detail` what
    varies in that (names, figures). `second_look`: of a cascade, why all its detectors looked
    (`band`, `audit`); None where the first of them sufficed. What a profile adds is called as in a
    run's rows (see `runs.schema`), and None where the ensemble has none, or nothing was said of
    this image. `demonstration`: a detector that decides nothing took part. `picture`: what a
    notebook draws it from, where that costs no memory.
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
    picture: Any = field(default=None, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: the source, what was decided and why, `scores` by detector, facts
        of the file; no masks. What a profile adds stands there where something was said.
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
            "score": self.score,
            "scores": dict(self.scores),
            "second_look": self.second_look,
            **{key: self.facts and getattr(self.facts, key) for key in _FACTS},
        }
        if self.generator_confidence is not None:
            row |= {key: getattr(self, key) for key in _GENERATOR}
        return row | (
            {key: getattr(self, key) for key in _WORDS} if self.predicted_prompt is not None else {}
        )

    def __repr__(self) -> str:
        shown: dict[str, Any] = {"source": self.source, "status": self.status.value}
        if self.status is Status.OK:
            shown |= {
                "finding": self.finding,
                "verdict": self.verdict,
                "probability": _rounded(self.probability),
                "score": _rounded(self.score),
            }
        else:
            shown |= {"detail": self.detail}
        return f"Result({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    def _repr_html_(self) -> str:
        return result_html.card(self.to_dict(), self.picture, demonstration=self.demonstration)


class Results(Iterator[Result]):
    """Results of many images, in order, each scored when it is wanted: `for result in results`,
    `list(results)`, `results.to_frame()`.

    Nothing is kept of what was taken, so that memory does not grow with their number; to go through
    them twice, make a list of them. `count`: how many there are in all, where that is known; else
    None.
    """

    def __init__(
        self, results: Iterator[Result], detectors: Sequence[str], count: int | None = None
    ) -> None:
        self._results, self._detectors, self.count = results, detectors, count
        self._ahead, self._taken = deque[Result](), 0

    def __next__(self) -> Result:
        result = self._ahead.popleft() if self._ahead else next(self._results)
        self._taken += 1
        return result

    def __getitem__(self, place: int) -> Result:
        """The result of that number; it is not taken by this. Raises TypeError for all but numbers
        from 0, IndexError for one that was taken before, or that there is not.
        """
        if not isinstance(place, int | np.integer) or place < 0:
            raise TypeError(
                "results come one after another, and have a number from 0 each; list(results) can be cut and read backwards"
            )
        if place < self._taken:
            raise IndexError(
                f"result {place} was taken before, and nothing is kept of it; list(results) keeps them all"
            )
        if not self._look_ahead(int(place) - self._taken + 1):
            raise IndexError(f"there is no result {place}")
        return self._ahead[place - self._taken]

    def to_frame(self) -> "pd.DataFrame":
        """Those that are left as a table of pandas, a row for each: the columns of
        `Result.to_dict`, a column `score_NAME` per detector.
        """
        return frame_of((result.to_dict() for result in self), self._detectors)

    def __repr__(self) -> str:
        return f"Results({'' if self.count is None else f'{self.count} images, '}{self._taken} taken; a list or a loop has them scored)"

    def _repr_html_(self) -> str:
        self._look_ahead(_FIRST)
        shown = list(self._ahead)[:_FIRST]
        return result_html.cards(
            [(one.to_dict(), one.picture, one.demonstration) for one in shown],
            self._taken,
            self.count,
        )

    def _look_ahead(self, count: int) -> bool:
        """Score until so many wait to be taken; whether there are so many."""
        while len(self._ahead) < count and (result := next(self._results, None)) is not None:
            self._ahead.append(result)
        return len(self._ahead) >= count


def frame_of(rows: Iterator[Mapping[str, Any]], detectors: Sequence[str]) -> "pd.DataFrame":
    """Rows with a mapping `scores` as a table, with a column `score_NAME` for each detector in its
    place.
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
    named = (
        "source",
        "status",
        "detail",
        "finding",
        "grounds",
        "verdict",
        "verdict_reason",
        "probability",
        "calibrated",
        "score",
    )
    return (
        pd.DataFrame(flat)
        if flat
        else pd.DataFrame(columns=[*named, *(f"score_{name}" for name in detectors)])
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
