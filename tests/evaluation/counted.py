"""Systems of a document from counts of images judged correctly: through cells and histograms, as a run's come about."""

import numpy as np

from ray_app.evaluation.accumulate import Cells, FileCell
from ray_app.evaluation.groups import EvaluationGroup, ScoreTally
from ray_app.evaluation.interval_sample import Intervals
from ray_app.evaluation.system_section import SystemOptions, system_of
from ray_app.evaluation.systems import System

HARD = {"fake": (2.0, -2.0), "real": (-2.0, 2.0)}  # scores of those judged correctly, and of the others
REPLIES = {"fake": (1.0, -1.0), "real": (-1.0, 1.0)}
RANKING = {"fake": (5.0, -1.0), "real": (-3.0, 1.0)}


def system_from(name, groups, *, scores=HARD, card=None, kinds=None, extras=()):
    """`groups`: by generator (label, images judged correctly, images)."""
    cells = Cells()
    for generator, (label, right, n) in groups.items():
        kind = "real" if label == "real" else (kinds or {}).get(generator, "whole")
        cell = FileCell(EvaluationGroup(kind, generator), "png", "0.5–1 MP")
        tally = ScoreTally()
        tally.add(np.repeat(np.array(scores[label], np.float32), [right, n - right]))
        cells.scores[name, cell] = tally
        cells.rows[cell, "ok", "real"] += n
        cells.joined = cells.rows.total()
    system = System(name, "detector", name, 0.0, strict=True, card=card)
    return system_of(system, cells, SystemOptions(Intervals("images", None), extras=frozenset(extras)))
