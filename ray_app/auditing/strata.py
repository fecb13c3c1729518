"""The strata of a sample: images by verdict and score, how many each has, and how many of them people are asked about. Knows no files."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_app.ensembles import sigmoid
from ray_app.metrics.histograms import ScoreHistogram
from ray_app.runs.reader import numbers

Counts = npt.NDArray[np.int64]
Codes = npt.NDArray[np.int32]

VERDICTS = ("fake", "abstain", "real")
# Where the images of a verdict are cut, as shares of them from the lowest score on, by the size of a sample that suffices for so many
# strata: labels of a handful each say nothing. Fakes that were missed hide among the highest reals.
_CUTS: Mapping[int, Mapping[str, tuple[float, ...]]] = {
    250: {"fake": (0.5,), "abstain": (0.5,), "real": (0.5, 0.9, 0.99)},
    100: {"real": (0.9,)},
    0: {},
}
_LEAST = 20  # images that a stratum has, unless its verdict has fewer
_EVENLY = 2  # one image in two is drawn with no regard to size, so that every stratum is known
_SUREST = 0.05  # share of fakes, or of reals, that no stratum is taken to fall below before anybody has looked


@dataclass(frozen=True)
class Stratum:
    """Images of one verdict with `low` ≤ score < `high` (None: no end); `scored` is False for those that abstain for lack of a score.

    `size`: how many there are; `drawn`: how many of them are in the sample.
    """

    verdict: str
    size: int
    low: float | None = None
    high: float | None = None
    scored: bool = True
    drawn: int = 0

    def spans(self, scores: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
        """Whether each score (n,) lies between its ends."""
        inside = np.ones(len(scores), np.bool_)
        inside &= True if self.low is None else scores >= self.low
        inside &= True if self.high is None else scores < self.high
        return inside

    @property
    def words(self) -> str:
        """As people are told it."""
        if not self.scored:
            return f"{self.verdict}, no score"
        ends = [f"from {self.low:.2f}" if self.low is not None else "", f"below {self.high:.2f}" if self.high is not None else ""]
        return f"{self.verdict}, score {' '.join(filter(None, ends))}" if any(ends) else self.verdict

    def row(self) -> dict[str, Any]:
        """As plain JSON."""
        return {"name": self.words, **asdict(self)}

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> "Stratum":
        """That of such a row. Raises TypeError for other keys."""
        return cls(**{key: value for key, value in row.items() if key != "name"})


def strata_of(scores: Mapping[str, ScoreHistogram], without_score: int, number: int) -> list[Stratum]:
    """The strata of an archive with these scores by verdict, and so many images that abstain without one, for a sample of a number of
    images; none is empty.
    """
    cuts = next(cuts for least, cuts in _CUTS.items() if number >= least)
    found = []
    for verdict in VERDICTS:
        histogram = scores[verdict]
        ends = [None, *_cuts(histogram, cuts.get(verdict, ())), None]
        for low, high in pairwise(ends):
            size = _below(histogram, high) - (0 if low is None else _below(histogram, low))
            found += [Stratum(verdict, size, low, high)] if size else []
    return found + ([Stratum("abstain", without_score, scored=False)] if without_score else [])


def _cuts(histogram: ScoreHistogram, shares: Sequence[float]) -> list[float]:
    """Scores at which to cut, ascending; one that would leave less than _LEAST to either side is left out."""
    cuts: list[float] = []
    for share in shares if histogram.n else ():
        cut = float(histogram.ranked([min(int(share * histogram.n), histogram.n - 1)])[0])
        below = _below(histogram, cut) - (_below(histogram, cuts[-1]) if cuts else 0)
        cuts += [cut] if below >= _LEAST and histogram.at_or_above(cut) >= _LEAST else []
    return cuts


def _below(histogram: ScoreHistogram, score: float | None) -> int:
    return histogram.n if score is None else histogram.n - histogram.at_or_above(score)


def coded(table: pa.Table, strata: Sequence[Stratum]) -> Codes:
    """(n,) the place of every row's stratum; -1 for a row without a verdict. Of the table it needs `verdict` and `score`."""
    verdicts = table["verdict"].cast(pa.string())
    scores = numbers(table["score"])
    codes = np.full(len(table), -1, np.int32)
    for place, stratum in enumerate(strata):
        inside = np.asarray(pc.fill_null(pc.equal(verdicts, stratum.verdict), False)) & (np.isfinite(scores) == stratum.scored)
        codes[inside & stratum.spans(scores)] = place
    return codes


def spread_of(stratum: Stratum, scores: ScoreHistogram) -> float:
    """How unalike its images are taken to be, √(p (1 − p)) for p the mean of what their scores say, and never near 0."""
    if not stratum.scored:
        return 0.5
    inside = stratum.spans(scores.values)
    mean = float(sigmoid(scores.values[inside]) @ scores.counts[inside]) / stratum.size
    p = min(max(mean, _SUREST), 1 - _SUREST)
    return float(np.sqrt(p * (1 - p)))


def allotted(sizes: Sequence[int], spreads: Sequence[float], count: int) -> Counts:
    """How many images of each stratum to draw, int64 (h,): `count` in all, or all there are.

    Half of them evenly, the rest by size × spread (Neyman 1934), which makes the prevalence the surest for the labels spent.
    """
    room = np.asarray(sizes, np.int64)
    wanted = min(count, int(room.sum()))
    given = np.minimum(room, wanted // (_EVENLY * len(room)))
    while left := wanted - int(given.sum()):
        weight = np.where(given < room, room * np.asarray(spreads), 0.0)
        share = left * weight / weight.sum()
        more = np.minimum(np.floor(share).astype(np.int64), room - given)
        if not more.any():
            more[np.argsort(-share, kind="stable")[:left]] = 1
            more = np.minimum(more, room - given)
        given = given + more
    return given
