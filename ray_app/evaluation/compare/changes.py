"""Changes from run A to run B: verdicts (`flips_of`), statuses, scores (`shift_of`, `distribution_of`).

Differences are B less A, in log-odds.

Which rows of two runs are of the same image (`pair`), and single columns of a run as arrays (`RunColumns`).

A run is read a column at a time, so that memory holds keys, places and two columns, however many detectors there are: about 60 bytes a row
of either run.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_app.errors import ConfigError, Status
from ray_app.evaluation.systems import ENSEMBLE
from ray_app.metrics import arrays, drift, intervals, significance
from ray_app.runs import RunDirectory, reader, summary

By = Literal["image_id", "sha256"]

Places = npt.NDArray[np.int64]
Codes = npt.NDArray[np.int8]


@dataclass(frozen=True)
class RunColumns:
    """The current rows of a run, in their order, column by column."""

    run: RunDirectory
    detectors: Sequence[str]
    columns: frozenset[str]
    counted: list[int] = field(default_factory=list, compare=False)

    @classmethod
    def open(cls, url: str) -> "RunColumns":
        """Those of the run at a URL or path. Raises ConfigError where there is none."""
        run = RunDirectory.open(url)
        if not run.exists():
            raise run.missing()
        first = next(reader.current_tables(run), None)
        return cls(run, run.describe()["detectors"], frozenset(() if first is None else first.column_names))

    def tables(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Some columns, a bounded table at a time; those that the run does not have are left out.

        Raises ConfigError where there are not as many rows as the time before: places would be those of others.
        """
        wanted = [one for one in dict.fromkeys(["image_id", *columns]) if one.partition(".")[0] in self.columns]
        rows = 0
        for table in reader.current_tables(self.run, wanted):
            rows += len(table)
            yield table
        self.check_count(rows)

    def check_count(self, rows: int) -> None:
        """Raises ConfigError where there are not as many rows as the time before."""
        self.counted.append(rows)
        if rows != self.counted[0]:
            raise ConfigError(f"{self.run.store.url}: the run changed while it was read", hint="compare it when nothing scores into it")

    def keys(self, by: By) -> tuple[Places, npt.NDArray[np.bool_]]:
        """Per row 64 bits that name its image, int64 (n,), and whether it has such a name: one that was never read has no hash."""
        words, known = [np.empty(0, np.int64)], [np.empty(0, np.bool_)]
        for table in self.tables([by]):
            words.append(table["image_id"].to_numpy() if by == "image_id" else _first_words(table["sha256"]))
            known.append(np.asarray(pc.is_valid(table[by])))
        return np.concatenate(words), np.concatenate(known)

    def scores(self, system: str) -> npt.NDArray[Any]:
        """Log-odds of the ensemble, float64 (n,), or of a detector, float32 (n,); NaN where there is none."""
        pieces = [np.empty(0, np.float64 if system == ENSEMBLE else np.float32)]
        for table in self.tables(["score" if system == ENSEMBLE else f"scores.{system}"]):
            column = table["score"] if system == ENSEMBLE else pc.struct_field(table["scores"], [system])
            pieces.append(column.to_numpy())
        return np.concatenate(pieces)

    def codes(self, column: str, words: Sequence[str]) -> Codes:
        """Per row the place of its word among `words`, int8 (n,); -1 for none and for others."""
        known, pieces = pa.array(words), [np.empty(0, np.int8)]
        for table in self.tables([column]):
            found = pc.index_in(table[column].cast(pa.string()), known)
            pieces.append(pc.fill_null(found, -1).to_numpy().astype(np.int8))
        return np.concatenate(pieces)

    def rows_at(self, places: Places, columns: Sequence[str]) -> list[dict[str, Any]]:
        """The rows at some places, in the order of `places`."""
        found: dict[int, dict[str, Any]] = {}
        start = 0
        for table in self.tables(columns):
            here = places[(places >= start) & (places < start + len(table))]
            rows = table.take(pa.array(here - start)).to_pylist()
            found.update(zip(here.tolist(), rows, strict=True))
            start += len(table)
        return [found[place] for place in places.tolist()]


class Pairing(NamedTuple):
    """Of each image in both runs, the place of its row in either, (m,) each, in the order of their keys: a random order, but a fixed one.

    `doubled_*`: rows that were left out since an earlier one has the same key; `unnamed_*`: since they have none.
    """

    by: By
    why: str | None
    rows_a: int
    rows_b: int
    places_a: Places
    places_b: Places
    doubled_a: int = 0
    doubled_b: int = 0
    unnamed_a: int = 0
    unnamed_b: int = 0

    @property
    def counts(self) -> dict[str, Any]:
        """As plain JSON; rows of either run = both + only + doubled."""
        both = len(self.places_a)
        return {
            "by": self.by,
            "why": self.why,
            "a": self.rows_a,
            "b": self.rows_b,
            "both": both,
            "only_a": self.rows_a - both - self.doubled_a,
            "only_b": self.rows_b - both - self.doubled_b,
            **{name: getattr(self, name) for name in ("doubled_a", "doubled_b", "unnamed_a", "unnamed_b")},
        }


def pair(a: RunColumns, b: RunColumns, by: By | None = None) -> Pairing:
    """The images that both runs have a row of. `by`: None for `image_id` and, where no id is shared, `sha256`, for the reason `why`."""
    if by is not None and by not in get_args(By):
        raise ConfigError(f"--by {by}: not a key of images", hint=f"one of {', '.join(get_args(By))}")
    first = _joined(a, b, by or "image_id", None)
    if by or len(first.places_a) or not first.rows_a or not first.rows_b:
        return first
    second = _joined(a, b, "sha256", "the runs share no image_id, so images are matched by their bytes")
    return second if len(second.places_a) else first._replace(why="the runs share neither an image_id nor the bytes of an image")


def _joined(a: RunColumns, b: RunColumns, by: By, why: str | None) -> Pairing:
    (keys_a, rows_a, total_a, known_a), (keys_b, rows_b, total_b, known_b) = _distinct(a, by), _distinct(b, by)
    if not len(keys_a) or not len(keys_b):
        places_a = places_b = np.empty(0, np.int64)
    else:
        places = np.minimum(np.searchsorted(keys_b, keys_a), len(keys_b) - 1)
        same = keys_b[places] == keys_a
        places_a, places_b = rows_a[same], rows_b[places[same]]
    doubled_a, doubled_b = known_a - len(keys_a), known_b - len(keys_b)
    return Pairing(by, why, total_a, total_b, places_a, places_b, doubled_a, doubled_b, total_a - known_a, total_b - known_b)


def _distinct(run: RunColumns, by: By) -> tuple[Places, Places, int, int]:
    """Distinct keys in order, the place of the first row of each, how many rows there are, and how many have a key."""
    keys, known = run.keys(by)
    if known.all():
        return *np.unique(keys, return_index=True), len(keys), len(keys)
    places = np.flatnonzero(known)
    keys, first = np.unique(keys[places], return_index=True)
    return keys, places[first], len(known), len(places)


def _first_words(digests: pa.ChunkedArray) -> Places:
    """The first 64 bits of hexadecimal digests, 0 for none. Among 10⁷ files two share them by chance once in 400,000 runs."""
    texts = pc.fill_null(pc.utf8_slice_codeunits(digests, 0, 16), "0" * 16)
    return np.frombuffer(bytes.fromhex("".join(texts.to_pylist())), ">i8").astype(np.int64)


VERDICTS = ("fake", "abstain", "real")
STATUSES = tuple(status.value for status in Status)
EXAMPLES = 12
FAKE = VERDICTS.index("fake")
Scores = npt.NDArray[np.float64]
Numbers = npt.NDArray[Any]
MOVED = 0.1  # log-odds; less is what another batch size, precision or graphics card may do
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


def flips_of(a: Codes, b: Codes) -> dict[str, Any]:
    """Verdicts of the same images, (m,) each, as plain JSON: `matrix[a][b]`, the share that `flipped`, and McNemar's test of `flagged`."""
    there = (a >= 0) & (b >= 0)
    n = int(there.sum())
    table = _table(a[there], b[there], len(VERDICTS))
    flipped = n - int(np.trace(table))
    only_a, only_b = int(table[FAKE].sum() - table[FAKE, FAKE]), int(table[:, FAKE].sum() - table[FAKE, FAKE])
    tested = significance.mcnemar_of(only_a, only_b, n)
    why = "no image has a verdict in both runs"
    return {
        "n": n,
        "matrix": {word: dict(zip(VERDICTS, row, strict=True)) for word, row in zip(VERDICTS, table.tolist(), strict=True)},
        "flips": flipped,
        "flipped": intervals.proportion(flipped, n, why).row(),
        "flagged_both": intervals.proportion(int(table[FAKE, FAKE]), n, why).row(),
        "flagged_a": intervals.proportion(int(table[FAKE].sum()), n, why).row(),
        "flagged_b": intervals.proportion(int(table[:, FAKE].sum()), n, why).row(),
        **tested.row(),
    }


def statuses_of(a: Codes, b: Codes) -> dict[str, Any]:
    """Statuses of the same images, (m,) each: how many changed, and from what to what, the most frequent first."""
    changed = a != b
    table = _table(a[changed], b[changed], len(STATUSES) + 1)
    pairs = [(_status(x), _status(y), int(table[x, y])) for x, y in np.argwhere(table).tolist()]
    return {
        "n": len(a),
        "changed": intervals.proportion(int(changed.sum()), len(a), "no image is in both runs").row(),
        "pairs": [list(one) for one in sorted(pairs, key=lambda one: (-one[2], one[0], one[1]))],
    }


def flagged_of(a: Codes, b: Codes) -> dict[str, Any]:
    """Verdicts of all images of either run, (n,) and (m,): the share flagged in each and its difference, as of independent images.

    The interval is Agresti and Caffo's (2000); p is of the pooled z test, or Fisher's where fewer than five flags are to be expected.
    """
    n, m = int((a >= 0).sum()), int((b >= 0).sum())
    x, y = int((a == FAKE).sum()), int((b == FAKE).sum())
    why = "the run has no verdict"
    shares = {"a": intervals.proportion(x, n, why).row(), "b": intervals.proportion(y, m, why).row()}
    if not n or not m:
        return shares | {"difference": arrays.undefined("a run has no verdict").row(), "p": None}
    p, q = (x + 1) / (n + 2), (y + 1) / (m + 2)
    half = intervals.Z95 * math.sqrt(p * (1 - p) / (n + 2) + q * (1 - q) / (m + 2))
    interval = (max(-1.0, q - p - half), min(1.0, q - p + half))
    return shares | {
        "difference": arrays.MetricEstimate(y / m - x / n, interval, "agresti-caffo", n + m).row(),
        "p": _two_shares(x, n, y, m),
    }


def examples_of(runs: tuple[RunColumns, RunColumns], pairing: Pairing, verdicts: Sequence[Codes], scores: Sequence[Scores]) -> list[Any]:
    """The images whose verdict changed and whose score moved farthest, at most EXAMPLES; then those whose score alone moved.

    `verdicts` and `scores`: of the paired images, (m,) each, of a and of b.
    """
    moved = np.nan_to_num(np.abs(scores[1] - scores[0]), nan=-1.0)
    flipped = (verdicts[0] != verdicts[1]) & (verdicts[0] >= 0) & (verdicts[1] >= 0)
    candidates = np.flatnonzero(flipped if flipped.any() else moved > 0)
    chosen = candidates[np.argsort(-moved[candidates], kind="stable")[:EXAMPLES]]
    rows = runs[0].rows_at(pairing.places_a[chosen], ["image_id", "uri", "member"])
    return [
        {
            **row,
            "verdict_a": _verdict(verdicts[0][place]),
            "verdict_b": _verdict(verdicts[1][place]),
            "score_a": _finite(scores[0][place]),
            "score_b": _finite(scores[1][place]),
        }
        for place, row in zip(chosen.tolist(), rows, strict=True)
    ]


def shift_of(a: Numbers, b: Numbers) -> dict[str, Any]:
    """Scores of the same images, (m,) each, NaN for none, as plain JSON.

    `mean` with the interval and `p` of Student's paired t; `moved`: the share of images whose score changed by more than MOVED;
    `equal`: how many scores are equal to the last bit.
    """
    there = np.isfinite(a) & np.isfinite(b)
    change = b[there].astype(np.float64) - a[there]
    n, why = len(change), "no image has a score in both runs"
    found: dict[str, Any] = {"n": n, "equal": int((change == 0).sum()), "gained": int((np.isnan(a) & ~np.isnan(b)).sum())}
    found["lost"] = int((np.isnan(b) & ~np.isnan(a)).sum())
    moved = intervals.proportion(int((np.abs(change) > MOVED).sum()), n, why).row()
    if not n:
        return found | {"mean": arrays.undefined(why).row(), "p": None, "moved": moved, "sd": None, "largest": None, "quantiles": []}
    mean, p = _mean(change)
    return found | {
        "mean": mean.row(),
        "p": p,
        "moved": moved,
        "sd": float(change.std()),
        "largest": float(np.abs(change).max()),
        "quantiles": np.quantile(change, QUANTILES).tolist(),
    }


def distribution_of(a: Numbers, b: Numbers) -> dict[str, Any]:
    """All scores of either run, (n,) and (m,), NaN for none: quantiles and histograms of each, and their drift (None without scores).

    Histograms have the edges of a run's summary; scores beyond are counted in the outermost bins.
    """
    first, second = (arrays.ScoreHistogram.of(one[np.isfinite(one)]) for one in (a, b))
    moved = drift.drift_of(first, second)
    return {
        "n_a": first.n,
        "n_b": second.n,
        "quantiles_a": drift.quantiles_of(first, QUANTILES) if first.n else [],
        "quantiles_b": drift.quantiles_of(second, QUANTILES) if second.n else [],
        "histogram": {"edges": summary.EDGES.tolist(), "a": _bins(first), "b": _bins(second)},
        "drift": moved.row() if moved else None,
    }


def _two_shares(x: int, n: int, y: int, m: int) -> float:
    pooled = (x + y) / (n + m)
    if min(pooled, 1 - pooled) * min(n, m) < 5:
        from scipy.stats import fisher_exact

        return float(fisher_exact([[x, n - x], [y, m - y]]).pvalue)
    return math.erfc(abs(y / m - x / n) / math.sqrt(2 * pooled * (1 - pooled) * (1 / n + 1 / m)))


def _table(a: Codes, b: Codes, size: int) -> npt.NDArray[np.int64]:
    return np.bincount((a % size).astype(np.int64) * size + b % size, minlength=size * size).reshape(size, size)


def _status(code: int) -> str:
    return STATUSES[code] if code < len(STATUSES) else "another"


def _verdict(code: int) -> str | None:
    return VERDICTS[code] if code >= 0 else None


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _mean(change: npt.NDArray[np.float64]) -> tuple[arrays.MetricEstimate, float | None]:
    """The mean with its interval, and the two-sided p of its being 0."""
    from scipy.stats import ttest_1samp

    n, mean = len(change), float(change.mean())
    if n < 2:
        return arrays.MetricEstimate(mean, n=n), None
    if float(change.std(ddof=1)) / math.sqrt(n) <= abs(mean) * 1e-12:
        # All changed alike: their signs are the test, and there is no error to make an interval of.
        return arrays.MetricEstimate(mean, n=n), 1.0 if mean == 0 else min(1.0, 2.0 * 0.5**n)
    tested = ttest_1samp(change, 0.0)
    low, high = tested.confidence_interval()
    return arrays.MetricEstimate(mean, (float(low), float(high)), "student", n), float(tested.pvalue)


def _bins(scores: arrays.ScoreHistogram) -> list[int]:
    clipped = np.clip(scores.values, summary.EDGES[0], summary.EDGES[-1])
    counts: list[int] = np.histogram(clipped, summary.EDGES, weights=scores.counts)[0].astype(np.int64).tolist()
    return counts
