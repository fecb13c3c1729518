"""Measurements of trainers → medians, ratios, targets: the JSON that checks read, the table that
people read. Arithmetic and words only.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.measuring import WINDOW, ContenderError, steady_rate

OURS, PEERS = "touchstone", ("torchrun",)
BAR = 0.95  # steps per second, ours ÷ theirs (the project's benchmark bar)
# the losses of the first steps agree to this: the same images, the same network, the same
# arithmetic
SAME_STEPS, SAME_LOSS = 20, 1e-2


@dataclass(frozen=True)
class Measurement:
    """One trainer in one round. `rate`: steps per second in the steady state; `wait_s` and
    `compute_s`: what a step there waited for its batch and took to learn, medians, and `waiting`
    the share of all that time spent waiting.

    `startup_s`: from the command to the end of the first step. `losses`: of the first steps.
    """

    work: str
    trainer: str
    round: int
    rate: float
    wait_s: float
    compute_s: float
    waiting: float
    startup_s: float
    total_s: float
    peak_memory_bytes: int
    losses: Sequence[float]
    steal: float = 0.0


def steady_figures(lines: Sequence[Mapping[str, Any]], steps: int) -> dict[str, float]:
    """Rate, wait and compute of the steps inside the window. Raises ContenderError where a step is
    missing, or stands twice.
    """
    if [line["step"] for line in lines] != list(range(steps)):
        raise ContenderError(f"{len(lines)} lines of history for {steps} steps")
    low, high = (round(share * steps) for share in WINDOW)
    inside = lines[low:high]
    waited, computed = (sum(line[name] for line in inside) for name in ("wait_s", "compute_s"))
    return {
        "rate": steady_rate([(line["time"], line["step"] + 1) for line in lines], steps),
        "wait_s": statistics.median(line["wait_s"] for line in inside),
        "compute_s": statistics.median(line["compute_s"] for line in inside),
        "waiting": waited / (waited + computed),
    }


def figures(measured: Sequence[Measurement]) -> dict[str, Any]:
    """Everything of the result file except what describes the machine. Ratios are of medians over
    the rounds, ours ÷ theirs.
    """
    works = list(dict.fromkeys(m.work for m in measured))
    rates = _each(works, measured, lambda m: m.rate)
    ratios = {
        work: {
            peer: rates[work][OURS]["median"] / rates[work][peer]["median"]
            for peer in PEERS
            if peer in rates[work]
        }
        for work in works
        if OURS in rates[work]
    }
    return {
        "ratios": ratios,
        "steps_per_s": rates,
        "input_s_per_step": _each(works, measured, lambda m: m.wait_s),
        "input_share": _each(works, measured, lambda m: m.waiting),
        "compute_s_per_step": _each(works, measured, lambda m: m.compute_s),
        "startup_s": _each(works, measured, lambda m: m.startup_s),
        "total_s": _each(works, measured, lambda m: m.total_s),
        "peak_memory_bytes": _each(works, measured, lambda m: float(m.peak_memory_bytes)),
        "steal": _each(works, measured, lambda m: m.steal),
        "loss_disagreement": {
            work: _disagreement([m for m in measured if m.work == work]) for work in works
        },
        "targets": [
            {"work": work, "against": peer, "target": BAR, "measured": ratio, "met": ratio >= BAR}
            for work, of in ratios.items()
            for peer, ratio in of.items()
        ],
    }


def complaints(result: Mapping[str, Any]) -> list[str]:
    """What keeps rates from being compared."""
    return [
        f"NOT THE SAME WORK: {work}: the losses of the first {SAME_STEPS} steps differ by up to {value:.4f}"
        for work, value in result["loss_disagreement"].items()
        if not value <= SAME_LOSS
    ]


def table(result: Mapping[str, Any]) -> str:
    """The result as lines for a screen."""
    lines = []
    for work, rates in result["steps_per_s"].items():
        lines += ["", f"{work.replace('_', '-')}: {result.get('works', {}).get(work, '')}", _HEAD]
        for trainer, rate in rates.items():
            ratio = result["ratios"].get(work, {}).get(trainer)
            of = {key: result[key][work][trainer]["median"] for key in _COLUMNS}
            lines.append(
                f"  {trainer:<12}{rate['median']:>9.3f}{_spread(rate['rounds']):>16}{'–' if ratio is None else f'{ratio:.3f}':>9}"
                f"{1000 * of['input_s_per_step']:>10.1f} ms{of['input_share']:>8.1%}{1000 * of['compute_s_per_step']:>11.1f} ms"
                f"{of['startup_s']:>9.1f} s{of['peak_memory_bytes'] / 2**30:>8.2f} GiB"
            )
    lines += ["", "targets (ours ÷ theirs, medians)"]
    for target in result["targets"]:
        verdict = (
            "met" if target["met"] else f"short by {1 - target['measured'] / target['target']:.0%}"
        )
        lines.append(
            f"  {target['work']:<16}{target['against']:<12}≥ {target['target']:<6g}{target['measured']:>7.3f}  {verdict}"
        )
    return "\n".join(lines)


_COLUMNS = (
    "input_s_per_step",
    "input_share",
    "compute_s_per_step",
    "startup_s",
    "peak_memory_bytes",
)
_HEAD = f"  {'':<12}{'steps/s':>9}{'rounds':>16}{'ours ÷':>9}{'wait/step':>13}{'waiting':>8}{'learn/step':>14}{'1st step':>11}{'peak PSS':>12}"


def _each(
    works: Sequence[str], measured: Sequence[Measurement], value: Callable[[Measurement], float]
) -> dict[str, Any]:
    """Per work and trainer: the median over the rounds, and the rounds."""
    found: dict[str, Any] = {}
    for work in works:
        for trainer in (OURS, *PEERS):
            if rounds := [value(m) for m in measured if (m.work, m.trainer) == (work, trainer)]:
                found.setdefault(work, {})[trainer] = {
                    "median": statistics.median(rounds),
                    "rounds": rounds,
                }
    return found


def _disagreement(measured: Sequence[Measurement]) -> float:
    """The largest difference between two trainers' losses of the same step; not a number where a
    loss is none.
    """
    return float(np.ptp([m.losses for m in measured], axis=0).max())


def _spread(rounds: Sequence[float]) -> str:
    return f"{min(rounds):.3f}–{max(rounds):.3f}" if len(rounds) > 1 else "1 round"
