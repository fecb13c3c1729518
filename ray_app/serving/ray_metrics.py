"""The endpoint's counters on Ray (`RayMeter`), and its page /metrics there (`merged`).

Each process counts for itself and hands its numbers to the metric agent of its node. A scrape of /metrics reaches one replica
of several, so that replica queries every node's agent and answers for all of them. Numbers reach the agents within about 10 s.
"""

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import aiohttp
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from ray.util.metrics import Counter, Gauge, Histogram

from ray_app.serving.metrics import COUNTERS, GAUGES, HISTOGRAMS, PREFIX, Meter

SERVES = "ray_serve_"
RUNS = f"{PREFIX}run_"  # of scoring runs on the same cluster: Prometheus has them from their own nodes
UNREACHABLE = "touchstone_metrics_nodes_unreachable"
AGENT_TIMEOUT_S = 3.0

# The only labels that leave this cluster. Ray adds node addresses, session folders and process ids: those stay here.
LABELS = frozenset(
    {"le", "route", "status", "code", "ensemble", "verdict", "group", "stage"}
    | {"application", "deployment", "replica", "function_name", "method", "status_code", "error_code", "exception_type"}
)


class RayMeter(Meter):
    """Counts with Ray's metric library: one per process, in a process that Ray runs."""

    def __init__(self) -> None:
        self._counters = {
            name: Counter(f"touchstone_{name}", description=meaning, tag_keys=labels) for name, (meaning, labels) in COUNTERS.items()
        }
        self._histograms = {
            name: Histogram(f"touchstone_{name}", description=meaning, boundaries=list(bounds), tag_keys=labels)
            for name, (meaning, labels, bounds) in HISTOGRAMS.items()
        }
        self._in_flight = Gauge("touchstone_images_in_flight", description=GAUGES["images_in_flight"])

    def _add(self, name: str, amount: float, labels: Mapping[str, str]) -> None:
        self._counters[name].inc(amount, dict(labels))

    def _observe(self, name: str, value: float, labels: Mapping[str, str]) -> None:
        self._histograms[name].observe(value, dict(labels))

    def in_flight(self, n: int) -> None:
        """Sets what this process reports until it is set anew."""
        self._in_flight.set(n)

    async def exposition(self) -> str:
        """Asks all living nodes at once; one that does not answer in 3 s is left out and counted."""
        addresses = await asyncio.to_thread(_agent_addresses)
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=AGENT_TIMEOUT_S)) as session:
            texts = await asyncio.gather(*(_agent_page(session, address) for address in addresses))
        answered = [text for text in texts if text is not None]
        # Parsing is pure Python: a second thread keeps this replica's requests moving meanwhile.
        return await asyncio.to_thread(merged, answered, unreachable=len(texts) - len(answered))


def _agent_addresses() -> list[str]:
    import ray

    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [_agent_address(node["NodeManagerAddress"], node["MetricsExportPort"]) for node in nodes if node["Alive"]]


def _agent_address(host: str, port: int) -> str:
    return f"http://[{host}]:{port}/metrics" if ":" in host else f"http://{host}:{port}/metrics"


async def _agent_page(session: aiohttp.ClientSession, address: str) -> str | None:
    try:
        async with session.get(address) as answer:
            return await answer.text() if answer.status == 200 else None
    except (aiohttp.ClientError, TimeoutError, UnicodeDecodeError):
        return None


def merged(pages: Iterable[str], *, unreachable: int = 0) -> str:
    """Agents' pages as one: our families and Serve's, one family per name, and only labels that tell nothing of this cluster.

    What becomes equal by the loss of labels is added up. Serve's gauges are not amounts (percentages, states), so equals among
    them stay apart under a number, `process`.
    """
    families: dict[str, Metric] = {}
    for page in pages:
        for family in text_string_to_metric_families("\n".join(_kept_lines(page))):
            known = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            known.samples.extend(family.samples)
    answer = [_condensed(families[name]) for name in sorted(families)]
    answer.append(GaugeMetricFamily(UNREACHABLE, "living nodes whose metric agent did not answer this request", value=unreachable))
    return generate_latest(_Collected(answer)).decode()


def _kept_lines(page: str) -> Iterator[str]:
    """Only the lines that we keep are parsed: an agent's page holds thousands of Ray's own."""
    for line in page.splitlines():
        name = line.split(" ", 3)[2] if line.startswith("# ") and line.count(" ") >= 2 else line
        if name.startswith((PREFIX, SERVES)) and not name.startswith(RUNS):
            yield line


def _condensed(family: Metric) -> Metric:
    distinct = family.type == "gauge" and family.name.startswith(SERVES)
    values: dict[tuple[str, tuple[tuple[str, str], ...]], list[float]] = {}
    for sample in family.samples:
        labels = tuple(sorted((key, value) for key, value in sample.labels.items() if key in LABELS))
        values.setdefault((sample.name, labels), []).append(sample.value)
    condensed = Metric(family.name, family.documentation, family.type)
    for (name, labels), found in values.items():
        if distinct and len(found) > 1:
            for number, value in enumerate(found):
                condensed.add_sample(name, {**dict(labels), "process": str(number)}, value)
        else:
            condensed.add_sample(name, dict(labels), sum(found))
    return condensed


class _Collected:
    """What `generate_latest` needs of a registry."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families
