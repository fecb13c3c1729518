"""Systems of a document from counts of images judged correctly: through cells and histograms, as a
run's come about.
"""

from collections import Counter

import numpy as np

from ray_app.evaluation.accumulate import Cells, Column, FileCell
from ray_app.evaluation.interval_sample import Intervals
from ray_app.evaluation.labels import EvaluationGroup
from ray_app.evaluation.system_section import SystemOptions, system_of
from ray_app.evaluation.systems import System

# scores of those judged correctly, and of the others
HARD = {"fake": (2.0, -2.0), "real": (-2.0, 2.0)}
REPLIES = {"fake": (1.0, -1.0), "real": (-1.0, 1.0)}
RANKING = {"fake": (5.0, -1.0), "real": (-3.0, 1.0)}


def system_from(name, groups, *, scores=HARD, card=None, kinds=None, extras=()):
    """`groups`: by generator (label, images judged correctly, images)."""
    rows, cells, parts = Counter(), [], []
    for generator, (label, right, n) in groups.items():
        kind = "real" if label == "real" else (kinds or {}).get(generator, "whole")
        cell = FileCell(EvaluationGroup(kind, generator), "png", "0.5–1 MP")
        cells.append(cell)
        parts.append(np.repeat(np.array(scores[label], np.float32), [right, n - right]))
        rows[cell, "ok", "real"] += n
    codes = np.repeat(np.arange(len(cells), dtype=np.int32), [len(part) for part in parts])
    column = Column(np.concatenate(parts), codes)
    system = System(name, "detector", name, 0.0, strict=True, card=card)
    return system_of(
        system,
        Cells(rows, cells, {name: column}.__getitem__),
        SystemOptions(Intervals("images", None), extras=frozenset(extras)),
    )
