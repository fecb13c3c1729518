"""How well an identifier names: of known generators with and without abstaining, of unknown ones, of reals. Knows names and arrays.

Every figure is a row of `metrics.figure.Figure`: 95 % intervals by the bootstrap over images, shares by Clopper and Pearson.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ray_app.learning.naming import REAL
from ray_app.metrics.attribution import attribution_of, open_set_auroc
from ray_app.metrics.calibrating import expected_calibration_error
from ray_app.metrics.figure import Figure, undefined
from ray_app.metrics.intervals import proportion
from ray_app.profiling.identifying import Identified

_NONE_KNOWN = "no image of a known generator"
_NONE_UNKNOWN = "no image of an unknown generator"
_OTHERS = "other generators"


def measured(said: Identified, truth: Sequence[str]) -> dict[str, Any]:
    """Of n images and their true class names (n,), of which not all need be classes, as plain JSON:

    `n_known`, `n_unknown`, `n_real` (where reals are no class) · `figures`: `accuracy`, `top_3`, `top_5`, `macro_f1`, `weighted_f1`
    where every image of a known generator gets its best name; `calibration_error` of its probability; `family_accuracy`,
    `family_macro_f1`; `abstained` and `accuracy_of_named` of known generators; `unknown_abstained` and `reals_abstained`;
    `open_set_auroc`, known generators against unknown · `classes`: per known name n, recall, precision, f1, abstained · `pairs`: the
    wrong names of known generators as [true, said, n] · `unknown`: per unknown generator n, abstained, and the name it is given most.
    """
    names = np.array(truth, object)
    known = np.isin(names, said.classes)
    real = (names == REAL) & ~known
    unknown = ~known & ~real
    best = _names(said, said.ranking[:, 0])
    named = said.codes >= 0
    rows = np.flatnonzero(known).tolist()
    forced = attribution_of(
        [best[row] for row in rows], [truth[row] for row in rows], rankings=[_names(said, said.ranking[row]) for row in rows]
    )
    figures = {name: forced.figures[name] for name in ("accuracy", "top_3", "top_5", "macro_f1", "weighted_f1")}
    figures |= _of_families(said, names[known], said.ranking[known, 0]) | {
        "calibration_error": _calibration_error(said, names, best, known)
    }
    figures |= {
        "abstained": _share(~named[known], _NONE_KNOWN),
        "accuracy_of_named": _share((np.array(best, object) == names)[known & named], "no image of a known generator was named"),
        "unknown_abstained": _share(~named[unknown], _NONE_UNKNOWN),
        "reals_abstained": _share(~named[real], "no real image, or reals are a class"),
        "open_set_auroc": _auroc(said, names, known, unknown),
    }
    return {
        "n_known": int(known.sum()),
        "n_unknown": int(unknown.sum()),
        "n_real": int(real.sum()),
        "figures": {name: figure.row() for name, figure in figures.items()},
        "classes": [_class_row(row, named[names == row["name"]]) for row in forced.classes],
        "pairs": [[str(true), said_of, n] for true, said_of, n in forced.pairs],
        "unknown": [_unknown_row(name, names == name, named, best) for name in sorted(set(names[unknown]))],
    }


def _names(said: Identified, places: npt.NDArray[np.int64]) -> list[str]:
    return [said.classes[place] for place in places]


def _share(yes: npt.NDArray[np.bool_], why: str) -> Figure:
    return proportion(int(yes.sum()), len(yes), why)


def _of_families(said: Identified, truth: npt.NDArray[np.object_], best: npt.NDArray[np.int64]) -> dict[str, Figure]:
    if len(set(said.families)) == len(said.classes):
        return {name: undefined("every class is a family of its own") for name in ("family_accuracy", "family_macro_f1")}
    family = dict(zip(said.classes, said.families, strict=True))
    found = attribution_of([said.families[place] for place in best], [family[name] for name in truth]).figures
    return {"family_accuracy": found["accuracy"], "family_macro_f1": found["macro_f1"]}


def _calibration_error(said: Identified, names: npt.NDArray[np.object_], best: list[str], known: npt.NDArray[np.bool_]) -> Figure:
    """How far the probability of the best name is from how often it is right, on average (Guo et al. 2017)."""
    if not known.any():
        return undefined(_NONE_KNOWN)
    right = (np.array(best, object) == names)[known]
    chances = np.clip(said.probability[known].astype(np.float64), 0, 1)
    return Figure(expected_calibration_error(chances, right.astype(np.int64)), n=int(known.sum()))


def _auroc(said: Identified, names: npt.NDArray[np.object_], known: npt.NDArray[np.bool_], unknown: npt.NDArray[np.bool_]) -> Figure:
    rows = np.flatnonzero(known | unknown)
    told = [name if name in said.classes else _OTHERS for name in names[rows]]
    return open_set_auroc(told, said.classes, said.confidence[rows])


def _class_row(row: dict[str, Any], named: npt.NDArray[np.bool_]) -> dict[str, Any]:
    figures = {name: row[name].row() for name in ("recall", "precision", "f1")}
    return {"name": str(row["name"]), "n": row["n"], **figures, "abstained": _share(~named, _NONE_KNOWN).row()}


def _unknown_row(name: str, rows: npt.NDArray[np.bool_], named: npt.NDArray[np.bool_], best: list[str]) -> dict[str, Any]:
    nearest, times = Counter(best[row] for row in np.flatnonzero(rows)).most_common(1)[0]
    return {"name": name, "n": int(rows.sum()), "abstained": _share(~named[rows], "").row(), "nearest": nearest, "nearest_n": times}
