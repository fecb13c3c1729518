"""A figure as the reports read it from an evaluation's document, and mappings of them. Knows no system and no data."""

import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator

from ray_app.reports.run_summary import Section


class FigureFacts(Section):
    """One figure (ray_app.metrics.figure): a number with its 95 % interval, or why there is none. `n`: images that it is of."""

    value: float | None = None
    interval: tuple[float, ...] = ()
    method: str = ""
    n: int = 0
    why: str = ""

    @property
    def number(self) -> float | None:
        """The value, where it is a number."""
        return self.value if self.value is not None and math.isfinite(self.value) else None

    @property
    def ends(self) -> tuple[float, float] | None:
        """The ends of its interval, where it has one."""
        usable = self.number is not None and len(self.interval) == 2 and all(map(math.isfinite, self.interval))
        return (self.interval[0], self.interval[1]) if usable else None


def figures_among(value: Any) -> Any:
    """By name what is a figure; the rest is left out."""
    return {key: item for key, item in value.items() if isinstance(item, Mapping) and "value" in item} if isinstance(value, Mapping) else {}


def rows(value: Any) -> Any:
    """A list without its nulls; of anything else none."""
    return [row for row in value if row is not None] if isinstance(value, list | tuple) else []


def numbers(value: Any) -> Any:
    """By name what is a number; the rest is left out."""
    return {key: item for key, item in value.items() if isinstance(item, int | float)} if isinstance(value, Mapping) else {}


# Of a mapping, what is a figure: so that a section may hold other things beside its figures.
Figures = Annotated[Mapping[str, FigureFacts], BeforeValidator(figures_among)]
Points = Annotated[tuple[tuple[float | None, ...], ...], BeforeValidator(rows)]
Counts = Annotated[Mapping[str, int], BeforeValidator(numbers)]

NOT_MEASURED = FigureFacts(why="not measured")
NO_FIGURES: Mapping[str, FigureFacts] = {}
NO_COUNTS: Mapping[str, int] = {}
