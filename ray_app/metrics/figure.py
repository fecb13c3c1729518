"""One figure: a number with its interval, on how many images, or the reason why there is none. Knows no metric."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Figure:
    """`interval`: the 95 % interval, by `method`. `n`: images that it is of. `why`: why `value` is None; a figure has one or the other."""

    value: float | None
    interval: tuple[float, float] | None = None
    method: str | None = None
    n: int = 0
    why: str | None = None

    def __post_init__(self) -> None:
        assert (self.value is None) != (self.why is None), f"a figure has a value or a reason: {self.value}, {self.why}"
        assert self.value is None or math.isfinite(self.value), f"a figure is finite or has a reason, not {self.value}"

    def row(self) -> dict[str, Any]:
        """As plain JSON."""
        interval = None if self.interval is None else list(self.interval)
        return {"value": self.value, "interval": interval, "method": self.method, "n": self.n, "why": self.why}


def figure_rows(figures: Mapping[str, Figure]) -> dict[str, Any]:
    """Figures by name as plain JSON."""
    return {name: figure.row() for name, figure in figures.items()}


def undefined(why: str, n: int = 0) -> Figure:
    """No figure, and why."""
    return Figure(None, n=n, why=why)
