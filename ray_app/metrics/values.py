"""Define the value of a metric with its 95 % interval (`MetricValue`)."""

from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class MetricValue:
    """A measured value of a metric, with its 95 % interval.

    Attributes:
        value: The value, which is finite; None if the metric is undefined.
        low: Lower end of the 95 % interval; None without an interval.
        high: Upper end of the 95 % interval; None without an interval.
        n: Number of images that the metric is computed from.
        method: Name of the method of the interval; empty without an interval.
        why: Reason why the value or the interval is missing.
    """

    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    method: str = ""
    why: str = ""

    @property
    def interval(self) -> tuple[float, float] | None:
        """Both ends of the interval; None without an interval."""
        if self.value is None or self.low is None or self.high is None:
            return None
        return self.low, self.high

    @property
    def least(self) -> float | None:
        """The lowest plausible value: the lower end of the interval, else the value itself."""
        return self.value if self.interval is None else self.low

    @property
    def complement(self) -> "MetricValue":
        """One minus a proportion, with its interval, such as the FPR for a TNR."""
        if self.value is None:
            return self
        low, high = (None if bound is None else 1 - bound for bound in (self.high, self.low))
        return replace(self, value=1 - self.value, low=low, high=high)

    def with_interval(self, interval: tuple[float, float], method: str) -> "MetricValue":
        """Return a copy with this 95 % interval, which the named method computed.

        Args:
            interval: The lower and upper end.
            method: Name of the method, such as `jackknife`.

        Returns:
            The copy.
        """
        return replace(self, low=interval[0], high=interval[1], method=method, why="")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name, for a JSON document such as metrics.json."""
        return asdict(self)

    def without_interval(self) -> "MetricValue":
        """Return the metric value without its interval."""
        return replace(self, low=None, high=None, method="")


NOT_MEASURED = MetricValue(why="not measured")


def undefined(reason: str, n: int = 0) -> MetricValue:
    """Return a metric without a value, with the reason why it has none."""
    return MetricValue(n=n, why=reason)
