"""What became of verdicts and statuses from run A to run B. Knows codes of words; reads no run but for the names of examples."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ray_app.comparison.pairing import Codes, Pairing, RunColumns
from ray_app.errors import Status
from ray_app.metrics.figure import Figure, undefined
from ray_app.metrics.intervals import Z95, proportion
from ray_app.metrics.paired import mcnemar_of

VERDICTS = ("fake", "abstain", "real")
STATUSES = tuple(status.value for status in Status)
EXAMPLES = 12
_FAKE = VERDICTS.index("fake")

Scores = npt.NDArray[np.float64]


def flips_of(a: Codes, b: Codes) -> dict[str, Any]:
    """Verdicts of the same images, (m,) each, as plain JSON: `matrix[a][b]`, the share that `flipped`, and McNemar's test of `flagged`."""
    there = (a >= 0) & (b >= 0)
    n = int(there.sum())
    table = _table(a[there], b[there], len(VERDICTS))
    flipped = n - int(np.trace(table))
    only_a, only_b = int(table[_FAKE].sum() - table[_FAKE, _FAKE]), int(table[:, _FAKE].sum() - table[_FAKE, _FAKE])
    tested = mcnemar_of(only_a, only_b, n)
    why = "no image has a verdict in both runs"
    return {
        "n": n,
        "matrix": {word: dict(zip(VERDICTS, row, strict=True)) for word, row in zip(VERDICTS, table.tolist(), strict=True)},
        "flips": flipped,
        "flipped": proportion(flipped, n, why).row(),
        "flagged_both": proportion(int(table[_FAKE, _FAKE]), n, why).row(),
        "flagged_a": proportion(int(table[_FAKE].sum()), n, why).row(),
        "flagged_b": proportion(int(table[:, _FAKE].sum()), n, why).row(),
        **tested.row(),
    }


def statuses_of(a: Codes, b: Codes) -> dict[str, Any]:
    """Statuses of the same images, (m,) each: how many changed, and from what to what, the most frequent first."""
    changed = a != b
    table = _table(a[changed], b[changed], len(STATUSES) + 1)
    pairs = [(_status(x), _status(y), int(table[x, y])) for x, y in np.argwhere(table).tolist()]
    return {
        "n": len(a),
        "changed": proportion(int(changed.sum()), len(a), "no image is in both runs").row(),
        "pairs": [list(one) for one in sorted(pairs, key=lambda one: (-one[2], one[0], one[1]))],
    }


def flagged_of(a: Codes, b: Codes) -> dict[str, Any]:
    """Verdicts of all images of either run, (n,) and (m,): the share flagged in each and its difference, as of independent images.

    The interval is Agresti and Caffo's (2000); p is of the pooled z test, or Fisher's where fewer than five flags are to be expected.
    """
    n, m = int((a >= 0).sum()), int((b >= 0).sum())
    x, y = int((a == _FAKE).sum()), int((b == _FAKE).sum())
    why = "the run has no verdict"
    shares = {"a": proportion(x, n, why).row(), "b": proportion(y, m, why).row()}
    if not n or not m:
        return shares | {"difference": undefined("a run has no verdict").row(), "p": None}
    p, q = (x + 1) / (n + 2), (y + 1) / (m + 2)
    half = Z95 * math.sqrt(p * (1 - p) / (n + 2) + q * (1 - q) / (m + 2))
    interval = (max(-1.0, q - p - half), min(1.0, q - p + half))
    return shares | {"difference": Figure(y / m - x / n, interval, "agresti-caffo", n + m).row(), "p": _two_shares(x, n, y, m)}


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
