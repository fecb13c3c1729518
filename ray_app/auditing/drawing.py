"""The sample of a run that people are asked about: counted in one pass, drawn in another. Knows rows and ids; writes nothing.

Which images are drawn is told by hashes of their ids and the seed alone, so the same command draws the same ones from the same run.
"""

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_app.auditing.strata import VERDICTS, Codes, Counts, Stratum, allotted, coded, spread_of, strata_of
from ray_app.evaluation.sampling import hashed, mixed
from ray_app.metrics.histograms import ScoreHistogram
from ray_app.runs import RunDirectory, current_tables
from ray_app.runs.reader import numbers

Orders = npt.NDArray[np.uint64]

_DRAWN = pa.schema([("image_id", pa.int64()), ("uri", pa.string()), ("member", pa.string())])


@dataclass(frozen=True)
class Counted:
    """A run in numbers: the scores of its images by verdict, how many abstain without a score, and the statuses of those not scored."""

    scores: dict[str, ScoreHistogram]
    without_score: int
    unscored: dict[str, int]

    @property
    def scored(self) -> int:
        """Images with a verdict: what an audit speaks for."""
        return sum(one.n for one in self.scores.values()) + self.without_score


@dataclass(frozen=True)
class Sample:
    """The strata, with how many images of each are drawn, and those images in an order that tells nothing: columns `image_id`, `uri`,
    `member` and `stratum`, the place among the strata.
    """

    strata: list[Stratum]
    rows: pa.Table


def count(run: RunDirectory) -> Counted:
    """Read verdicts, scores and statuses of the current rows. Raises ConfigError where there is no run."""
    pieces: dict[str, list[ScoreHistogram]] = {verdict: [] for verdict in VERDICTS}
    without, unscored = 0, Counter[str]()
    for table in current_tables(run, ["image_id", "status", "verdict", "score"]):
        verdicts, scores = table["verdict"].cast(pa.string()), numbers(table["score"])
        has_score = np.isfinite(scores)
        for verdict, found in pieces.items():
            said = np.asarray(pc.fill_null(pc.equal(verdicts, verdict), False))
            found.append(ScoreHistogram.of(scores[said & has_score]))
            without += int((said & ~has_score).sum())
        statuses = table["status"].cast(pa.string()).filter(pc.is_null(verdicts))
        unscored.update({item["values"]: item["counts"] for item in pc.value_counts(statuses).to_pylist()})
    merged = {verdict: ScoreHistogram.merged(found) for verdict, found in pieces.items()}
    return Counted(merged, without, dict(unscored.most_common()))


def draw(run: RunDirectory, counted: Counted, number: int, seed: int) -> Sample:
    """Draw so many images (all, where there are fewer) of the run that was counted."""
    strata = planned(counted, number)
    wanted = np.array([one.drawn for one in strata], np.int64)
    kept, codes, orders = _DRAWN.empty_table(), np.empty(0, np.int32), np.empty(0, np.uint64)
    for table in current_tables(run, [*_DRAWN.names, "verdict", "score"]):
        own, hashes = coded(table, strata), seeded(table["image_id"].to_numpy(), seed)
        places = lowest(own, hashes, wanted)
        rows = pa.concat_tables([kept, table.select(_DRAWN.names).take(pa.array(places)).cast(_DRAWN)])
        codes, orders = np.concatenate([codes, own[places]]), np.concatenate([orders, hashes[places]])
        again = lowest(codes, orders, wanted)
        kept, codes, orders = rows.take(pa.array(again)), codes[again], orders[again]
    turn = np.argsort(mixed(orders), kind="stable")  # the hashes themselves are lower where a stratum is large
    return Sample(strata, kept.take(pa.array(turn)).append_column("stratum", pa.array(codes[turn])).combine_chunks())


def planned(counted: Counted, number: int) -> list[Stratum]:
    """The strata, and how many images of each make a sample of so many."""
    strata = strata_of(counted.scores, counted.without_score, number)
    if not strata:
        return []
    spreads = [spread_of(one, counted.scores[one.verdict]) for one in strata]
    shares = allotted([one.size for one in strata], spreads, number)
    return [replace(one, drawn=int(share)) for one, share in zip(strata, shares, strict=True)]


def seeded(ids: npt.NDArray[np.int64], seed: int) -> Orders:
    """One number for each id, (n,), a different one for each; other seeds give others."""
    return mixed(hashed(ids) ^ hashed(np.array([seed], np.int64)))


def lowest(codes: Codes, orders: Orders, wanted: Counts) -> npt.NDArray[np.int64]:
    """The places of the rows that come first in their stratum, no more of each than `wanted` (h,); rows of no stratum (-1) never."""
    turn = np.lexsort((orders, codes))
    turn = turn[codes[turn] >= 0]
    starts = np.searchsorted(codes[turn], np.arange(len(wanted)))
    rank = np.arange(len(turn)) - starts[codes[turn]]
    return turn[rank < wanted[codes[turn]]]
