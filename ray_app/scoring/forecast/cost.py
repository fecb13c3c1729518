"""A cluster on paper, for `touchstone plan`: machines, their number and price. `load_cluster` reads one, `planned_for` applies it."""

from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from ray_app.cluster.config import RAY_SHARE
from ray_app.config import Frozen, find_config, load_yaml
from ray_app.scoring.config import Prices, ScoreConfig, TrafficPrices


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
