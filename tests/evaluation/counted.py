"""Systems from counts of images judged correctly, and the tables that protocols make of them."""

from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ray_app.evaluation.accumulate import Cells, FileCell, ScoreColumn
from ray_app.evaluation.groups import EvaluationGroup
from ray_app.evaluation.interval_sample import Intervals
from ray_app.evaluation.protocol_rows import describe_rows, list_lines, measure_rows
from ray_app.evaluation.system_metrics import (
    MeasuredSystem,
    SystemOptions,
    SystemScores,
    collect_scores,
    list_generators,
    measure_system,
)
from ray_app.evaluation.systems import System
from ray_app.metrics.table import MetricsTable
from ray_app.metrics.values import MetricValue
from ray_app.reports.evaluation.result import TableRowInfo

# scores of those judged correctly, and of the others
HARD = {"fake": (2.0, -2.0), "real": (-2.0, 2.0)}
REPLIES = {"fake": (1.0, -1.0), "real": (-1.0, 1.0)}
RANKING = {"fake": (5.0, -1.0), "real": (-3.0, 1.0)}


class CountedSystem(NamedTuple):
    """A measured system with its scores."""

    scores: SystemScores
    measured: MeasuredSystem
    options: SystemOptions

    @property
    def figures(self) -> dict[str, MetricValue]:
        """Its metrics as a whole."""
        return dict(MetricsTable(tuple(self.measured.rows)).select(self.measured.info.name))


@dataclass(frozen=True)
class Table:
    """A protocol's table: its rows, and cells and footers by system and name."""

    rows: list[TableRowInfo]
    cells: dict[str, dict[str, MetricValue]]
    footers: dict[str, dict[str, MetricValue]]


def system_from(name, groups, *, scores=HARD, card=None, kinds=None):
    """`groups`: by generator (label, images judged correctly, images)."""
    rows, cells, parts = Counter(), [], []
    for generator, (label, right, n) in groups.items():
        kind = "real" if label == "real" else (kinds or {}).get(generator, "whole")
        cell = FileCell(EvaluationGroup(kind, generator), "png", "0.5–1 MP")
        cells.append(cell)
        parts.append(np.repeat(np.array(scores[label], np.float32), [right, n - right]))
        rows[cell, "ok", "real"] += n
    codes = np.repeat(np.arange(len(cells), dtype=np.int32), [len(part) for part in parts])
    column = ScoreColumn(np.concatenate(parts), codes)
    counted = Cells(rows, cells, {name: column}.__getitem__)
    found = collect_scores(System(name, "detector", name, 0.0, strict=True, card=card), counted)
    options = SystemOptions(Intervals("images", None), list_generators(counted, {}))
    return CountedSystem(found, measure_system(found, counted, options), options)


def table_of(protocol, systems, masks=()):
    """The table of a protocol; `masks`: rows of metrics of masks."""
    lines = list_lines(protocol, systems[0].options.generators)
    table = Table(describe_rows(lines, [one.measured.info for one in systems]), {}, {})
    for one in systems:
        info = one.measured.info
        metrics = MetricsTable((*one.measured.rows, *masks))
        found = measure_rows(protocol, lines, one.scores, info, metrics, one.options)
        table.cells[info.name], table.footers[info.name] = found
    return table
