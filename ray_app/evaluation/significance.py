"""Every two systems of a run tested against each other on the sampled images. Knows the sample; the tests are of ray_app.metrics."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_app.evaluation.systems import System
from ray_app.metrics.paired import delong_paired, holm, mcnemar


def paired_tests(sample: pa.Table, systems: Sequence[System], binary: Mapping[str, bool]) -> list[dict[str, Any]]:
    """DeLong's test of two AUCs, or McNemar's where one of the two only says yes and no; on images that both score.

    `difference` is b's figure less a's, as everywhere; `p_holm` is corrected for all pairs.
    """
    if not len(sample):
        return []
    fakes = np.asarray(sample["kind"]) != "real"
    scores = {one.name: np.asarray(sample[f"score:{one.name}"].fill_null(np.nan)) for one in systems}
    told = []
    for one, other in combinations(systems, 2):
        both = np.isfinite(scores[one.name]) & np.isfinite(scores[other.name])
        if not both.any():
            continue
        first, second, truth = scores[one.name][both], scores[other.name][both], fakes[both]
        if binary[one.name] or binary[other.name]:
            test = mcnemar(_right(first, truth, one), _right(second, truth, other))
        else:
            test = delong_paired(first, second, truth)
        told.append({"a": one.name, "b": other.name, **test.row()})
    return [row | {"p_holm": p} for row, p in zip(told, holm([row["p"] for row in told]), strict=True)]


def _right(scores: npt.NDArray[np.float64], fakes: npt.NDArray[np.bool_], system: System) -> npt.NDArray[np.bool_]:
    right: npt.NDArray[np.bool_] = system.says_fake(scores) == fakes
    return right
