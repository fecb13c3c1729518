"""A promise and how often a simulation broke it (`Simulated`): the rows of the table in docs/trust.md."""

from dataclasses import dataclass

from ray_app.metrics.intervals import proportion_interval

MOST_OVER = 1.5  # times the promise: what a simulation of so few seeds may show of a promise that is kept
HEAD = "| claim | data | promised | simulated | 95 % interval | holds |\n| --- | --- | --- | --- | --- | --- |"


@dataclass(frozen=True)
class Simulated:
    """`failures` of `seeds` data sets on which the claim was wrong; no more than the share `promised` may be."""

    claim: str
    setting: str
    promised: float
    failures: int
    seeds: int

    @property
    def interval(self) -> tuple[float, float]:
        """The exact 95 % interval of the failure rate."""
        return proportion_interval(self.failures, self.seeds)

    @property
    def holds(self) -> bool:
        """Whether the interval does not lie wholly above the promise, and the rate is at most 1.5 times the promise."""
        return self.interval[0] <= self.promised and self.failures / self.seeds <= MOST_OVER * self.promised

    @property
    def row(self) -> str:
        """The row of the table."""
        low, high = self.interval
        return (
            f"| {self.claim} | {self.setting} | ≤ {100 * self.promised:.3g} % | {self.failures} of {self.seeds:,} "
            f"({100 * self.failures / self.seeds:.3g} %) | {100 * low:.2g} … {100 * high:.3g} % | {'yes' if self.holds else '**no**'} |"
        )
