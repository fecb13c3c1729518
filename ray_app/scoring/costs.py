"""What a run costs, from prices and from what was done. Pure arithmetic: the forecast and the running session count alike."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ray_app.errors import ConfigError
from ray_app.scoring.config import Prices, ScoreConfig
from ray_app.storage.locations import scheme_of

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

    def facts(self) -> dict[str, Any]:
        """The same as plain JSON, unrounded."""
        return {**asdict(self), "requests": self.requests, "total": self.total, "compute_share": self.compute_share}


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
