"""The value of a metric, with its 95 % interval or the reason why there is none (`MetricValue`)."""

from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class MetricValue:
    """A measured metric.

    Attributes:
        value: The value, which is finite; None if the metric is undefined.
        low: Lower end of the 95 % interval; None if there is no interval.
        high: Upper end of the 95 % interval; None if there is no interval.
        n: Number of images that the metric is of.
        method: Name of the method of the interval; empty if there is no interval.
        why: Why there is no value, or no interval.
    """

    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    method: str = ""
    why: str = ""

    @property
    def interval(self) -> tuple[float, float] | None:
        """Both ends of the interval; None if there is no interval."""
        if self.value is None or self.low is None or self.high is None:
            return None
        return self.low, self.high

    @property
    def least(self) -> float | None:
        """The lower end of the interval; the value if there is no interval."""
        return self.value if self.interval is None else self.low

    @property
    def complement(self) -> "MetricValue":
        """The proportion of the other images, such as the FPR of a TNR."""
        if self.value is None:
            return self
        low, high = (None if end is None else 1 - end for end in (self.high, self.low))
        return replace(self, value=1 - self.value, low=low, high=high)

    def with_interval(self, ends: tuple[float, float], method: str) -> "MetricValue":
        """Return the same value with another interval."""
        return replace(self, low=ends[0], high=ends[1], method=method, why="")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name, as documents have them."""
        return asdict(self)

    def without_interval(self) -> "MetricValue":
        """Return the same value without its interval."""
        return replace(self, low=None, high=None, method="")


NOT_MEASURED = MetricValue(why="not measured")


def undefined(why: str, n: int = 0) -> MetricValue:
    """Return a metric without a value, and the reason."""
    return MetricValue(n=n, why=why)
