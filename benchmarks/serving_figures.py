"""Measurements of servers → medians, ratios, targets: the JSON that checks read, the table that
people read. Arithmetic and words only.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# By way of serving, our server whose model can be at work on 1 or 2 cores at once.
OURS: dict[str, dict[int, str]] = {
    "server": {1: "server", 2: "server_two_workers"},
    "ray": {1: "ray", 2: "ray_two"},
}
# Peer → how many cores its model can be at work on: it is compared with our server of as many.
# `before` is our own earlier version.
PEERS = {"litserve": 1, "litserve_two_workers": 2, "fastapi": 2, "before": 1}

# (way, peer) → the minimum throughput, ours ÷ theirs, with up to FEW_CLIENTS and with more.
FEW_CLIENTS = 16
TARGETS = {
    ("server", "litserve"): (1.3, 1.0),
    ("server", "litserve_two_workers"): (1.3, 1.0),
    ("ray", "litserve"): (0.7, 0.7),
}


@dataclass(frozen=True)
class Measurement:
    """One server in one round. `rate`: accepted requests per second; latencies of accepted
    requests, in seconds.

    `other`: answers that were neither accepted nor the documented back-pressure; `wrong` of them
    had another score than expected. `cpu_s_per_image`: CPU time of all processes of the server, per
    accepted request. `client_cpu_s`: what the load itself took of the same cores;
    `elsewhere_cpu_s`: that and what else ran, warm-up included; `steal`: share of the machine's
    time that its host gave to others.
    """

    model: str
    server: str
    round: int
    rate: float
    p50_s: float
    p90_s: float
    p99_s: float
    max_s: float
    ok: int
    back_pressure: int = 0
    other: int = 0
    wrong: int = 0
    cpu_s_per_image: float = math.nan
    startup_s: float = math.nan
    memory_bytes: int = 0
    client_cpu_s: float = math.nan
    elsewhere_cpu_s: float = math.nan
    steal: float = 0.0


def figures(measured: Sequence[Measurement], clients: int = FEW_CLIENTS) -> dict[str, Any]:
    """Return everything of the result file except what describes the machine. Ratios are of medians
    over the rounds, ours ÷ theirs.
    """
    models = list(dict.fromkeys(m.model for m in measured))
    found = {model: _by_server([m for m in measured if m.model == model]) for model in models}
    ratios = {model: _ratios(servers) for model, servers in found.items()}
    return {"ratios": ratios, "figures": found, "targets": targets(ratios, clients)}


def targets(ratios: Mapping[str, Any], clients: int) -> list[dict[str, Any]]:
    """Return each target with what was measured and whether it is met. Those that were not measured
    are left out.
    """
    place = 0 if clients <= FEW_CLIENTS else 1
    return [
        {
            "model": model,
            "way": way,
            "against": peer,
            **measured,
            "bar": bars[place],
            "met": measured["throughput"] >= bars[place],
        }
        for model in ratios
        for (way, peer), bars in TARGETS.items()
        if (measured := ratios.get(model, {}).get(way, {}).get(peer))
    ]


def complaints(measured: Iterable[Measurement]) -> list[str]:
    """What keeps rates from being compared: answers that were wrong or missing."""
    return [
        f"{m.model}/{m.server}: {m.other} requests failed, {m.wrong} of them with a wrong score; {m.ok} were accepted"
        for m in measured
        if m.other or not m.ok
    ]


def table(result: Mapping[str, Any]) -> str:
    """The result as lines for a screen."""
    lines = []
    for model, servers in result["figures"].items():
        lines += ["", f"{model}: {result.get('models', {}).get(model, '')}", _HEAD]
        for name, of in servers.items():
            lines.append(_line(name, of))
        lines += [f"  {'ours ÷ theirs':<22}" + "".join(f"{peer:>28}" for peer in PEERS)]
        for way in OURS:
            cells = (_ratio(result["ratios"][model].get(way, {}).get(peer)) for peer in PEERS)
            lines.append(f"  {way:<22}" + "".join(f"{cell:>28}" for cell in cells))
    lines += ["", "targets: throughput, ours ÷ theirs, medians"]
    for target in result["targets"]:
        met = "met" if target["met"] else "missed"
        lines.append(
            f"  {target['model']:<9}{target['way']:<10}{target['against']:<22}≥ {target['bar']:<6g}{_ratio(target):<22}{met}"
        )
    return "\n".join(lines)


def _line(name: str, of: Mapping[str, Any]) -> str:
    milliseconds = "".join(f"{of[key] * 1e3:>9.0f}" for key in ("p50_s", "p99_s", "max_s"))
    milliseconds += f"{of['cpu_s_per_image'] * 1e3:>8.1f}"
    counts = f"{of['back_pressure']:>7}{of['other']:>7}{of['startup_s']:>8.1f} s{of['memory_bytes'] / 2**30:>7.2f} GiB"
    counts += f"{of['elsewhere_cpu_s']:>10.1f} s"
    return f"  {name:<22}{of['rate']:>9.1f}{_spread(of['rates']):>14}{milliseconds}{counts}"


_HEAD = (
    f"  {'':<22}{'images/s':>9}{'rounds':>14}{'p50 ms':>9}{'p99 ms':>9}{'max ms':>9}"
    f"{'CPU ms':>8}{'busy':>7}{'failed':>7}{'start':>10}{'memory':>11}{'elsewhere':>12}"
)


def _ratios(servers: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Peers by our ways of serving."""
    by_way = {
        way: {
            peer: _over(servers[ours[cores]], servers[peer])
            for peer, cores in PEERS.items()
            if peer in servers and ours[cores] in servers
        }
        for way, ours in OURS.items()
    }
    return {way: peers for way, peers in by_way.items() if peers}


def _over(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, float]:
    return {
        "throughput": _quotient(ours["rate"], theirs["rate"]),
        "p99": _quotient(ours["p99_s"], theirs["p99_s"]),
    }


def _quotient(ours: float, theirs: float) -> float:
    return ours / theirs if theirs else math.inf


def _by_server(measured: Sequence[Measurement]) -> dict[str, Any]:
    names = [*(name for ours in OURS.values() for name in ours.values()), *PEERS]
    return {
        name: _medians(rounds)
        for name in names
        if (rounds := [m for m in measured if m.server == name])
    }


def _medians(rounds: Sequence[Measurement]) -> dict[str, Any]:
    of = (
        "rate",
        "p50_s",
        "p90_s",
        "p99_s",
        "cpu_s_per_image",
        "startup_s",
        "client_cpu_s",
        "elsewhere_cpu_s",
    )
    worst = ("max_s", "memory_bytes", "steal")
    total = ("ok", "back_pressure", "other", "wrong")
    return {
        **{key: statistics.median(getattr(m, key) for m in rounds) for key in of},
        **{key: max(getattr(m, key) for m in rounds) for key in worst},
        **{key: sum(getattr(m, key) for m in rounds) for key in total},
        "rates": [m.rate for m in rounds],
        "p99s_s": [m.p99_s for m in rounds],
    }


def _spread(rounds: Sequence[float]) -> str:
    return f"{min(rounds):.1f}–{max(rounds):.1f}" if len(rounds) > 1 else "1 round"


def _ratio(ratio: Mapping[str, float] | None) -> str:
    return "–" if ratio is None else f"{ratio['throughput']:.2f} (p99 {ratio['p99']:.2f})"
