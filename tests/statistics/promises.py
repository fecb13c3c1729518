"""A promise and how often a simulation broke it (`Simulated`): a row of the table that a run
prints.
"""

from dataclasses import dataclass

from ray_app.metrics.uncertainty import proportion_interval

# times the promise: what a simulation of so few seeds may show of a promise that is kept
MOST_OVER = 1.5
HEAD = "| claim | data | promised | simulated | 95 % interval | nothing said | holds |\n| --- | --- | --- | --- | --- | --- | --- |"


@dataclass(frozen=True)
class Simulated:
    """A claim was made on `seeds` data sets and wrong on `failures` of them; no more than the share
    `promised` may be.

    `unsaid`: further data sets on which the product refused, or said that it cannot be told.
    """

    claim: str
    setting: str
    promised: float
    failures: int
    seeds: int
    unsaid: int = 0

    @property
    def interval(self) -> tuple[float, float]:
        """The exact 95 % interval of the failure rate."""
        return proportion_interval(self.failures, self.seeds) if self.seeds else (0.0, 1.0)

    @property
    def holds(self) -> bool:
        """Whether the interval does not lie wholly above the promise, and the rate is at most 1.5
        times the promise.
        """
        return (
            self.interval[0] <= self.promised
            and self.failures <= MOST_OVER * self.promised * self.seeds
        )

    @property
    def row(self) -> str:
        """The row of the table."""
        low, high = self.interval
        found = (
            f"{self.failures} of {self.seeds:,} ({100 * self.failures / self.seeds:.3g} %)"
            if self.seeds
            else "never said"
        )
        ends = f"{100 * low:.2g} … {100 * high:.3g} %" if self.seeds else ""
        unsaid = f"{100 * self.unsaid / (self.seeds + self.unsaid):.3g} %" if self.unsaid else ""
        answer = "yes" if self.holds else "**no**"
        return f"| {self.claim} | {self.setting} | ≤ {100 * self.promised:.3g} % | {found} | {ends} | {unsaid} | {answer} |"
