"""Measurements → rates, ratios, targets: the JSON that checks read, and the table that people read.
Arithmetic and words only.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.processor import OWN

OURS = "touchstone"
PEERS = (
    "limit",
    "dataloader_tuned",
    "dataloader_plain_bf16",
    "ray_guide",
    "daft_guide",
    "daft_model",
)
# Measured next to them; no target is set against these.
DETAILS = ("dataloader_plain_fp32", "dataloader_tuned_pillow")
FIRST_RESULT_S = 25.0

# (work, peer) → ours ÷ theirs that is to be reached (the project's benchmark bar)
TARGETS: dict[tuple[str, str], float] = {
    ("compute_bound", "limit"): 0.95,
    ("decode_bound", "limit"): 0.9,
    ("compute_bound", "dataloader_tuned"): 0.93,
    ("decode_bound", "dataloader_tuned"): 0.95,
    ("default_ensemble", "limit"): 0.9,
    ("default_ensemble", "dataloader_tuned"): 0.9,
    ("compute_bound", "dataloader_plain_bf16"): 1.0,
    ("decode_bound", "dataloader_plain_bf16"): 1.5,
    ("decode_bound", "ray_guide"): 4.0,
    ("compute_bound", "daft_guide"): 1.3,
    ("decode_bound", "daft_guide"): 1.3,
    ("clip_bound", "limit"): 0.9,
    ("clip_bound", "daft_model"): 1.3,
}


@dataclass(frozen=True)
class Measurement:
    """One contender in one round. `startup`: seconds from the command to each step, `first result`
    among them; empty for the limit.

    `rate`: images per second in the steady state. `store_bytes`: bytes put into Ray's object store
    per image, None without Ray. `scores`: log-odds by file name. `steal`: share of the machine's
    time that its host gave to others meanwhile. `processor`: processor seconds per image in the
    steady state, by kind of process.
    """

    work: str
    contender: str
    round: int
    images: int
    rate: float
    startup: Mapping[str, float] = field(default_factory=dict)
    peak_memory_bytes: int = 0
    store_bytes: float | None = None
    detail: Mapping[str, float] = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict, repr=False)
    steal: float = 0.0
    processor: Mapping[str, float] = field(default_factory=dict)


def figures(
    measured: Sequence[Measurement], first_result_default_s: float | None = None
) -> dict[str, Any]:
    """Everything of the result file except what describes the machine."""
    works = list(dict.fromkeys(m.work for m in measured))
    rates = {work: _by_contender([m for m in measured if m.work == work], _rates) for work in works}
    ratios = {
        work: {
            peer: rates[work][OURS]["median"] / rates[work][peer]["median"]
            for peer in rates[work]
            if peer != OURS
        }
        for work in works
        if OURS in rates[work]
    }
    startup = {
        work: _by_contender([m for m in measured if m.work == work and m.startup], _startup)
        for work in works
    }
    first = first_result_default_s or startup.get("decode_bound", {}).get(OURS, {}).get(
        "first result"
    )
    return {
        "ratios": ratios,
        "rates": rates,
        "startup": startup,
        "first_result_default_s": first,
        "peak_memory_bytes": {
            work: _by_contender([m for m in measured if m.work == work], _peak) for work in works
        },
        "object_store_bytes_per_image": {
            work: _by_contender(
                [m for m in measured if m.work == work and m.store_bytes is not None], _store
            )
            for work in works
        },
        "processor_s_per_image": {
            work: _by_contender([m for m in measured if m.work == work and m.processor], _processor)
            for work in works
        },
        "stages": {
            work: _by_contender([m for m in measured if m.work == work and m.detail], _detail)
            for work in works
        },
        "score_disagreement": {
            work: disagreement([m for m in measured if m.work == work]) for work in works
        },
        "targets": targets(ratios, first),
    }


def targets(
    ratios: Mapping[str, Mapping[str, float]], first_result_s: float | None
) -> list[dict[str, Any]]:
    """Each target with what was measured and whether it is met; those that were not measured are
    left out.
    """
    found = [
        {
            "work": work,
            "against": peer,
            "target": target,
            "measured": ratios[work][peer],
            "met": ratios[work][peer] >= target,
        }
        for (work, peer), target in TARGETS.items()
        if peer in ratios.get(work, {})
    ]
    if first_result_s is not None:
        first = {
            "work": "decode_bound",
            "against": "first result, s",
            "target": FIRST_RESULT_S,
            "measured": first_result_s,
        }
        found.append({**first, "met": first_result_s <= FIRST_RESULT_S})
    return found


def disagreement(measured: Iterable[Measurement]) -> dict[str, float]:
    """Per contender, the largest difference of a score from the fp32 DataLoader's (else the
    limit's), in units of max(1, |score|).
    """
    of = {m.contender: m.scores for m in measured if m.scores}
    reference = of.get("dataloader_plain_fp32") or of.get("limit") or {}
    return {
        name: max(
            (_apart(scores[file], reference[file]) for file in scores.keys() & reference.keys()),
            default=0.0,
        )
        for name, scores in of.items()
    }


def _apart(score: float, reference: float) -> float:
    return abs(score - reference) / max(1.0, abs(reference))


def table(result: Mapping[str, Any]) -> str:
    """The result as lines for a screen."""
    lines = []
    for work, rates in result["rates"].items():
        lines += [
            "",
            f"{work.replace('_', '-')}: {result['works'][work]}"
            if work in result.get("works", {})
            else work,
            _HEAD,
        ]
        startup, peak, store = (
            result[key].get(work, {})
            for key in ("startup", "peak_memory_bytes", "object_store_bytes_per_image")
        )
        for name, rate in rates.items():
            ratio = result["ratios"].get(work, {}).get(name)
            lines.append(
                f"  {name:<22}{rate['median']:>9.1f}{_spread(rate['rounds']):>14}{_or_dash(ratio, '{:.2f}'):>8}"
                f"{_or_dash(startup.get(name, {}).get('first result'), '{:.1f} s'):>10}{_or_dash(peak.get(name), '{:.2f} GiB', 2**30):>11}"
                f"{_or_dash(store.get(name), '{:,.0f}'):>13}{_or_dash(result['score_disagreement'][work].get(name), '{:.4f}'):>9}"
            )
        lines += _processor_lines(result["processor_s_per_image"].get(work, {}))
    lines += [f"  left out: {name}: {why}" for name, why in result.get("left_out", {}).items()]
    lines += ["", "targets (ours ÷ theirs, medians)"]
    for target in result["targets"]:
        sign = "≤" if "result" in target["against"] else "≥"
        verdict = (
            "met"
            if target["met"]
            else f"short by {abs(1 - target['measured'] / target['target']):.0%}"
        )
        lines.append(
            f"  {target['work']:<14}{target['against']:<24}{sign} {target['target']:<6g}{target['measured']:>7.2f}  {verdict}"
        )
    return "\n".join(lines)


def _processor_lines(by_contender: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Processor time per image: a contender's own processes, then what Ray's daemons take beside
    them, the dearest first.
    """
    lines = []
    for name, by_kind in by_contender.items():
        daemons = sorted(
            ((seconds, kind) for kind, seconds in by_kind.items() if kind != OWN and seconds > 0),
            reverse=True,
        )
        each = ", ".join(f"{kind} {1000 * seconds:.2f}" for seconds, kind in daemons)
        beside = (
            f"{1000 * sum(seconds for seconds, _ in daemons):>9.2f}  ({each})"
            if daemons
            else f"{'–':>9}"
        )
        lines.append(f"  {name:<22}{1000 * by_kind.get(OWN, 0.0):>9.2f}{beside}")
    return ["", f"  {'processor ms/image':<22}{'own':>9}{'Ray’s':>9}", *lines] if lines else []


_HEAD = f"  {'':<22}{'images/s':>9}{'rounds':>14}{'ours ÷':>8}{'first':>10}{'peak PSS':>11}{'store B/img':>13}{'|Δ| score':>9}"


def _by_contender(measured: Sequence[Measurement], summary: Any) -> dict[str, Any]:
    """Summarise each contender, in the usual order. Another checkout of ours comes last."""
    present = dict.fromkeys(m.contender for m in measured)
    usual = [name for name in ("limit", OURS, *PEERS[1:], *DETAILS) if name in present]
    names = [*usual, *(name for name in present if name not in usual)]
    return {name: summary([m for m in measured if m.contender == name]) for name in names}


def _rates(rounds: Sequence[Measurement]) -> dict[str, Any]:
    return {"median": statistics.median(m.rate for m in rounds), "rounds": [m.rate for m in rounds], "images": rounds[0].images,
            "steal": max(m.steal for m in rounds)}  # fmt: skip


def _startup(rounds: Sequence[Measurement]) -> dict[str, float]:
    return {
        step: statistics.median(m.startup[step] for m in rounds if step in m.startup)
        for step in rounds[0].startup
    }


def _peak(rounds: Sequence[Measurement]) -> int:
    return max(m.peak_memory_bytes for m in rounds)


def _store(rounds: Sequence[Measurement]) -> float:
    return statistics.median(m.store_bytes for m in rounds if m.store_bytes is not None)


def _detail(rounds: Sequence[Measurement]) -> dict[str, float]:
    return {name: statistics.median(m.detail[name] for m in rounds) for name in rounds[0].detail}


def _processor(rounds: Sequence[Measurement]) -> dict[str, float]:
    kinds = {kind for m in rounds for kind in m.processor}
    return {
        kind: statistics.median(m.processor.get(kind, 0.0) for m in rounds)
        for kind in sorted(kinds)
    }


def _spread(rounds: Sequence[float]) -> str:
    return f"{min(rounds):.1f}–{max(rounds):.1f}" if len(rounds) > 1 else "1 round"


def _or_dash(value: float | None, form: str, unit: float = 1) -> str:
    return "–" if value is None else form.format(value / unit)
