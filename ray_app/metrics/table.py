"""Define the tidy table of an evaluation's metrics, with one row per value (`MetricsTable`)."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import pyarrow as pa

from ray_app.metrics.values import NOT_MEASURED, MetricValue

ALL = "all"
"""The scope of metrics of all images of a system."""
SCHEMA = pa.schema(
    [
        ("system", pa.string()),
        ("view", pa.string()),
        ("scope", pa.string()),
        ("figure", pa.string()),
        ("value", pa.float64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("n", pa.int64()),
        ("method", pa.string()),
        ("why", pa.string()),
    ]
)
COLUMNS = tuple(SCHEMA.names)
_KEYS = COLUMNS[:4]


class MetricRow(NamedTuple):
    """A row of the `MetricsTable`: the value of one metric.

    Attributes:
        system: Name of the detector or ensemble that gave the scores; empty for a metric of the
            data or the run.
        view: Name of the perturbation of the images, such as `jpeg:75`; empty for unchanged images.
        scope: The images that the metric is computed from, such as `all` or `fake, whole:
            flux-1-dev`.
        figure: The name of the metric.
        metric: The value of the metric.
    """

    system: str
    view: str
    scope: str
    figure: str
    metric: MetricValue

    def to_dict(self) -> dict[str, Any]:
        """Return the row as a dictionary with the columns of the table by name."""
        return dict(zip(_KEYS, self[:4], strict=True)) | self.metric.to_dict()


@dataclass(frozen=True)
class MetricsTable:
    """All metrics of an evaluation, one per row.

    A row is identified by its detector or ensemble (`system`), perturbation (`view`), measured
    images (`scope`), and metric.

    Attributes:
        rows: The rows, in the order in which the evaluation computed them.
    """

    rows: tuple[MetricRow, ...] = ()

    @classmethod
    def from_dicts(cls, rows: Iterable[Mapping[str, Any]]) -> "MetricsTable":
        """Return the table from rows in the format of `to_dicts`.

        Args:
            rows: Dictionaries with the columns of `SCHEMA`. Only the four columns that identify a
                row are required: `system`, `view`, `scope`, and the name of the metric.

        Raises:
            KeyError: A row lacks a required column.
            TypeError: A row has an unknown column.
        """
        return cls(
            tuple(
                MetricRow(
                    system=row["system"],
                    view=row["view"],
                    scope=row["scope"],
                    figure=row["figure"],
                    metric=MetricValue(**{key: row[key] for key in row if key not in _KEYS}),
                )
                for row in rows
            )
        )

    @cached_property
    def _parts(self) -> dict[tuple[str, str, str], dict[str, MetricValue]]:
        parts: dict[tuple[str, str, str], dict[str, MetricValue]] = {}
        for system, view, scope, name, metric in self.rows:
            parts.setdefault((system, view, scope), {})[name] = metric
        return parts

    def select(
        self, system: str = "", *, view: str = "", scope: str = ALL
    ) -> Mapping[str, MetricValue]:
        """Return the metrics of one system, view, and scope by name; empty if there are none.

        Args:
            system: The detector or ensemble; empty for metrics of the data or the run.
            view: The perturbation; empty for unchanged images.
            scope: The images that the metrics are computed from, such as `fake, whole: sdxl`.
                `ALL` means all images.
        """
        return self._parts.get((system, view, scope), {})

    def find(
        self, figure: str, system: str = "", *, view: str = "", scope: str = ALL
    ) -> MetricValue:
        """Return the value of one metric, or the empty value NOT_MEASURED if the table lacks it.

        Args:
            figure: The name of the metric.
            system: The detector or ensemble; empty for a metric of the data or the run.
            view: The perturbation; empty for unchanged images.
            scope: The images that the metric is computed from.
        """
        return self.select(system, view=view, scope=scope).get(figure, NOT_MEASURED)

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return the rows as a list of plain JSON objects, one per value."""
        return [row.to_dict() for row in self.rows]

    def to_arrow(self) -> pa.Table:
        """Return the table with the columns of `SCHEMA`."""
        return pa.Table.from_pylist(self.to_dicts(), schema=SCHEMA)


def build_rows(
    metrics: Mapping[str, MetricValue], system: str = "", *, view: str = "", scope: str = ALL
) -> Iterator[MetricRow]:
    """Yield a table row for each metric of one system, view, and scope.

    Args:
        metrics: The metrics by name.
        system: The detector or ensemble; empty for metrics of the data or the run.
        view: The perturbation; empty for unchanged images.
        scope: The images that the metrics are computed from.
    """
    for name, metric in metrics.items():
        yield MetricRow(system, view, scope, name, metric)
