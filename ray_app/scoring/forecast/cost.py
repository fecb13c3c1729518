"""What a run costs, from prices and from what was done. Pure arithmetic: the forecast and the running session count alike.

A cluster on paper: which machines, how many, at what price. What `touchstone plan` counts with; nothing is started or asked.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from ray_app.cluster.config import RAY_SHARE
from ray_app.config import Frozen, find_config, load_yaml
from ray_app.errors import ConfigError
from ray_app.runs.document import CostSummary
from ray_app.scoring.config import Prices, ScoreConfig, TrafficPrices
from ray_app.storage.urls import scheme_of

GB = 1e9  # as networks are billed

# What is counted, by the names that reports of workers and summaries use.
GETS, PUTS, LISTS, BYTES = "requests", "puts", "lists", "bytes_read"


@dataclass(frozen=True)
class Costs:
    """One bill, in the currency of the prices: machines, requests to the store by kind, bytes out of it."""

    compute: float
    gets: float
    puts: float
    lists: float
    egress: float

    @property
    def requests(self) -> float:
        """All requests together."""
        return self.gets + self.puts + self.lists

    @property
    def total(self) -> float:
        """Everything together."""
        return self.compute + self.requests + self.egress

    @property
    def compute_share(self) -> float | None:
        """The machines' part of the total; None where nothing costs anything."""
        return self.compute / self.total if self.total else None

    def facts(self) -> CostSummary:
        """The same for a summary, unrounded."""
        return CostSummary(**asdict(self), requests=self.requests, total=self.total, compute_share=self.compute_share)


def is_billed(url: str) -> bool:
    """Whether requests to a place go over a network, to a store that counts them."""
    return scheme_of(url) != "file"


def spent(prices: Prices, hours: float, counts: Mapping[str, float]) -> Costs:
    """The bill for `hours` of the cluster and what was asked of the store meanwhile.

    `counts`: `requests` (GET and HEAD over a network), `puts`, `lists` and `bytes_read`; one that is not known counts as none.
    Bytes cost egress only where they came over a network: without a request nothing left a store.
    """
    gets = counts.get(GETS, 0)
    return Costs(
        compute=hours * prices.per_hour,
        gets=gets / 1000 * prices.get_per_1000,
        puts=counts.get(PUTS, 0) / 1000 * prices.put_per_1000,
        lists=counts.get(LISTS, 0) / 1000 * prices.put_per_1000,
        egress=counts.get(BYTES, 0) / GB * prices.egress_per_gb if gets else 0.0,
    )


def is_priced(prices: Prices) -> bool:
    """Whether anybody said what anything costs: the requests' prices have defaults, so those alone do not count."""
    return prices not in (Prices(), Prices(get_per_1000=0, put_per_1000=0))


def require_prices(config: ScoreConfig) -> None:
    """Raises ConfigError for a `max_cost` that could never be reached, because nobody said what anything costs."""
    if config.max_cost is not None and not is_priced(config.prices):
        raise ConfigError(
            f"--max-cost {config.max_cost:g}: no price is set, so nothing would ever stop the run",
            hint="say what all machines together cost per hour: --set prices.per_hour=12.50",
        )


class Nodes(Frozen):
    """Some machines of one type. `price_per_hour` is that of one."""

    name: str = ""
    count: int = Field(default=1, ge=1)
    cpus: int = Field(ge=0, description="cores that work is scheduled on: 0 for a head node that does none")
    gpus: int = Field(default=0, ge=0)
    gpu: str | None = Field(default=None, description="the GPU's name, for people")
    memory_gb: float | None = Field(default=None, gt=0)
    price_per_hour: float = Field(ge=0)


class ClusterDescription(Frozen):
    """A cluster in configs/clusters, or in a file of the user's. `prices`: what the store bills; null = as the run's config says."""

    name: str = ""
    nodes: tuple[Nodes, ...] = Field(min_length=1)
    prices: TrafficPrices | None = None

    @model_validator(mode="after")
    def _has_cores(self) -> "ClusterDescription":
        if not self.cpus:
            raise ValueError("its nodes have no cores to schedule on")
        return self

    @property
    def cpus(self) -> int:
        """Cores of all nodes."""
        return sum(node.count * node.cpus for node in self.nodes)

    @property
    def gpus(self) -> int:
        """GPUs of all nodes."""
        return sum(node.count * node.gpus for node in self.nodes)

    @property
    def memory_bytes(self) -> float | None:
        """What Ray would schedule on; None where a working node does not state its memory."""
        working = [node for node in self.nodes if node.cpus]
        if any(node.memory_gb is None for node in working):
            return None
        return RAY_SHARE * 1e9 * sum(node.count * (node.memory_gb or 0.0) for node in working)

    @property
    def workers(self) -> int:
        """Nodes that do work."""
        return sum(node.count for node in self.nodes if node.cpus)

    @property
    def smallest_bytes(self) -> int | None:
        """Memory of the smallest of them; None where one does not state it."""
        stated = [node.memory_gb for node in self.nodes if node.cpus]
        return None if None in stated else int(1e9 * min(one for one in stated if one is not None))

    @property
    def price_per_hour(self) -> float:
        """Of all nodes together."""
        return sum(node.count * node.price_per_hour for node in self.nodes)


def load_cluster(name_or_path: str | Path) -> ClusterDescription:
    """A shipped description by its name, or one from a file. Raises ConfigError."""
    return load_yaml(find_config("clusters", name_or_path), ClusterDescription)


def planned_for(config: ScoreConfig, described: ClusterDescription | None, price_per_hour: float | None) -> ScoreConfig:
    """The config as it would run on the described cluster: its cores, GPUs and prices take the place of the config's.

    `price_per_hour` of all machines together, where given, takes the place of both.
    """
    changed: dict[str, Any] = {}
    prices = config.prices.model_dump()
    if described is not None:
        changed["cluster"] = config.cluster.model_copy(update={"cpus": described.cpus, "gpus": described.gpus})
        prices |= {"per_hour": described.price_per_hour, **(described.prices.model_dump() if described.prices else {})}
    if price_per_hour is not None:
        prices["per_hour"] = price_per_hour
    return config.model_copy(update={**changed, "prices": Prices(**prices)})
