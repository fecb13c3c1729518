"""What came of a closed loop of requests: counts while it runs, rate and latencies when it has
ended. Arithmetic only.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass
class Tally:
    """What came of it so far. A request is `ok` (200 with the right score), `back_pressure` (429 or
    503 with Retry-After) or `other`.

    Everything is counted from the first request on; `latencies_s` and `in_window` are of accepted
    requests answered after the warm-up.
    """

    ok: int = 0
    back_pressure: int = 0
    other: int = 0
    wrong: int = 0  # of `other`: answered with another score than expected
    connection_errors: int = 0  # of `other`
    recovered: int = 0  # photographs that were answered after an attempt had failed
    lost: int = 0  # photographs that were given up
    statuses: Counter[str] = field(default_factory=Counter)
    # seconds since the start, what it was; the first of `other`
    troubles: list[tuple[float, str]] = field(default_factory=list)
    answers: dict[str, set[float]] = field(default_factory=dict)  # distinct scores per file
    in_window: int = 0
    latencies_s: list[float] = field(default_factory=list, repr=False)


@dataclass(frozen=True)
class Loaded:
    """A finished load. `rate`: accepted requests per second after the warm-up; latencies in
    seconds, NaN where none was accepted.
    """

    seconds: float
    rate: float
    p50_s: float
    p90_s: float
    p99_s: float
    max_s: float
    ok: int
    back_pressure: int
    other: int
    wrong: int
    connection_errors: int
    recovered: int
    lost: int
    statuses: Mapping[str, int]
    troubles: Sequence[tuple[float, str]]
    unsteady: Mapping[str, Sequence[float]]  # files that got more than one score
    scores: Mapping[str, float]  # the first score that each file got
    client_cpu_s: float


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all do not exceed (nearest rank); NaN of nothing."""
    return ordered[max(math.ceil(share * len(ordered)), 1) - 1] if ordered else math.nan


def agree(score: float, expected: float, precision: str) -> bool:
    """Whether two log-odds are the same score: fp32 within 1e-5 × max(1, |logit|), bf16 within 5e-3
    of probability.
    """
    if precision == "bf16":
        return abs(_sigmoid(score) - _sigmoid(expected)) <= 5e-3
    return abs(score - expected) <= 1e-5 * max(1.0, abs(expected))


def loaded(tally: Tally, seconds: float, cpu_s: float) -> Loaded:
    """The end of a load: `seconds` since the end of the warm-up, `cpu_s` that the clients
    themselves took.
    """
    ordered = sorted(tally.latencies_s)
    return Loaded(
        seconds=seconds, rate=tally.in_window / seconds,
        p50_s=percentile(ordered, 0.5), p90_s=percentile(ordered, 0.9), p99_s=percentile(ordered, 0.99), max_s=percentile(ordered, 1.0),
        ok=tally.ok, back_pressure=tally.back_pressure, other=tally.other, wrong=tally.wrong,
        connection_errors=tally.connection_errors, recovered=tally.recovered, lost=tally.lost,
        statuses=dict(tally.statuses), troubles=list(tally.troubles),
        unsteady={name: sorted(seen) for name, seen in tally.answers.items() if len(seen) > 1},
        scores={name: min(seen) for name, seen in tally.answers.items()}, client_cpu_s=cpu_s,
    )  # fmt: skip


def _sigmoid(score: float) -> float:
    return 0.5 * (1.0 + math.tanh(score / 2))
