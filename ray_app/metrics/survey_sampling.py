"""Estimates for a whole archive: prevalence, precision, recall and the false-positive rate from the
labels of a stratified sample (`archive_figures`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ray_app.metrics import uncertainty
from ray_app.metrics.arrays import Counts, Floats
from ray_app.metrics.values import MetricValue, undefined

METHOD = "stratified mover"
FIGURES = ("prevalence", "precision", "recall", "false_positive_rate")
WIDEST_RECALL = 0.5  # a recall with a wider interval is not defined, and its reason has the ends


@dataclass(frozen=True)
class LabelledStratum:
    """`size` images of which some, drawn at random, are labelled. `flagged`: whether their verdict
    is fake.

    `unsure`: drawn images that could not be labelled; they count as not drawn.
    """

    size: int
    flagged: bool
    fakes: int = 0
    reals: int = 0
    unsure: int = 0
    name: str = ""

    @property
    def labelled(self) -> int:
        """Images whose label is real or fake."""
        return self.fakes + self.reals


def archive_figures(strata: Sequence[LabelledStratum]) -> dict[str, MetricValue]:
    """`prevalence`: the share of fakes; `precision`: that among the flagged; `recall`: the share of
    fakes that is flagged; `false_positive_rate`: the share of reals that is flagged.

    Point estimates weigh each stratum by its size (Horvitz and Thompson 1952), which is unbiased
    whatever the strata. Intervals follow from `fakes_ends`; those of recall and of the
    false-positive rate have both of their numbers at the worse ends, and so are wider than 95 %
    needs. A recall that may be nearly anything (an interval wider than `WIDEST_RECALL`) is not
    defined, and its reason names the ends. Unsure images are left out: within its stratum each is
    as likely fake as those that are labelled. See `unsure_bounds` for the rest.
    """
    sizes, flagged = (
        np.array([one.size for one in strata], np.int64),
        np.array([one.flagged for one in strata], np.bool_),
    )
    fakes, labelled = (
        np.array([one.fakes for one in strata], np.int64),
        np.array([one.labelled for one in strata], np.int64),
    )
    ends = _ends(strata)
    n = int(labelled.sum())
    figures = {}
    for name, value in shares(sizes * fakes / np.maximum(labelled, 1), sizes, flagged).items():
        point = float(value)
        low, high = min(ends[name][0], point), max(ends[name][1], point)
        why = _missing(name, strata) or _vague(name, low, high)
        figures[name] = undefined(why, n) if why else MetricValue(point, low, high, n, METHOD)
    return figures


def unsure_bounds(strata: Sequence[LabelledStratum]) -> dict[str, tuple[float, float]]:
    """The ends of each figure's interval if all unsure images were what makes it least, and what
    makes it greatest.

    Only figures that are defined either way.
    """
    ways = {
        "fake": [_settled(one, fake=True) for one in strata],
        "real": [_settled(one, fake=False) for one in strata],
        "flagged fake": [_settled(one, fake=one.flagged) for one in strata],
        "missed fake": [_settled(one, fake=not one.flagged) for one in strata],
    }
    figures = {way: archive_figures(settled) for way, settled in ways.items()}
    flags_err, flags_hit = "missed fake", "flagged fake"
    extremes = {"prevalence": ("real", "fake"), "precision": (flags_err, flags_hit), "recall": (flags_err, flags_hit),
                "false_positive_rate": (flags_hit, flags_err)}  # fmt: skip
    found = {}
    for name, (least, most) in extremes.items():
        low, high = figures[least][name].interval, figures[most][name].interval
        if low and high:
            found[name] = (low[0], high[1])
    return found


def fakes_ends(strata: Sequence[LabelledStratum]) -> tuple[float, float]:
    """Return the ends of the interval of the number of fakes in all images of these strata.

    The ends are joined from the exact interval of each stratum (Clopper and Pearson 1934) by MOVER
    (Zou and Donner 2008): the distances from the estimate are added as squares. A stratum of which
    many images are labelled has narrower ones (finite population correction).
    """
    estimate = below = above = 0.0
    for stratum in strata:
        share = stratum.fakes / max(stratum.labelled, 1)
        low, high = (
            uncertainty.proportion_interval(stratum.fakes, stratum.labelled)
            if stratum.labelled
            else (0.0, 1.0)
        )
        spread = math.sqrt(stratum.size * (stratum.size - stratum.labelled))
        estimate += stratum.size * share
        below += ((share - low) * spread) ** 2
        above += ((high - share) * spread) ** 2
    least = sum(stratum.fakes for stratum in strata)
    most = sum(stratum.size - stratum.reals for stratum in strata)
    return max(estimate - math.sqrt(below), least), min(estimate + math.sqrt(above), most)


def shares(fakes: ArrayLike, sizes: Counts, flagged: NDArray[np.bool_]) -> Mapping[str, Floats]:
    """FIGURES from numbers of fakes (…, h) in strata of `sizes` (h,): (…) each; what would divide
    by 0 is 0.
    """
    counted = np.asarray(fakes, np.float64)
    total, hits = counted.sum(-1), counted[..., flagged].sum(-1)
    images, calls = int(sizes.sum()), int(sizes[flagged].sum())
    return {
        "prevalence": total / max(images, 1),
        "precision": hits / max(calls, 1),
        "recall": np.divide(hits, total, out=np.zeros_like(total), where=total > 0),
        "false_positive_rate": np.divide(
            calls - hits, images - total, out=np.zeros_like(total), where=total < images
        ),
    }


def _ends(strata: Sequence[LabelledStratum]) -> dict[str, tuple[float, float]]:
    """Return the ends of the interval of each of FIGURES; what would divide by 0 is 0."""
    images, calls = sum(one.size for one in strata), sum(one.size for one in strata if one.flagged)
    low, high = fakes_ends(strata)
    few_hits, most_hits = fakes_ends([one for one in strata if one.flagged])
    few_missed, most_missed = fakes_ends([one for one in strata if not one.flagged])
    passed = images - calls
    return {
        "prevalence": (low / max(images, 1), high / max(images, 1)),
        "precision": (few_hits / max(calls, 1), most_hits / max(calls, 1)),
        "recall": (_share(few_hits, most_missed), _share(most_hits, few_missed)),
        "false_positive_rate": (
            _share(calls - most_hits, passed - few_missed),
            _share(calls - few_hits, passed - most_missed),
        ),
    }


def _share(part: float, rest: float) -> float:
    return part / (part + rest) if part + rest > 0 else 0.0


def _settled(stratum: LabelledStratum, *, fake: bool) -> LabelledStratum:
    fakes, reals = (stratum.unsure, 0) if fake else (0, stratum.unsure)
    return replace(stratum, fakes=stratum.fakes + fakes, reals=stratum.reals + reals, unsure=0)


def _missing(name: str, strata: Sequence[LabelledStratum]) -> str | None:
    """Why labels say nothing of a figure, or None."""
    needed = [one for one in strata if one.flagged or name != "precision"]
    if not needed:
        return "no image is flagged as fake" if name == "precision" else "there are no images"
    if unseen := [one for one in needed if one.size and not one.labelled]:
        if not any(one.flagged for one in unseen) and not any(
            one.labelled for one in strata if not one.flagged
        ):
            return "only images flagged as fake are labelled"
        return f"no image of stratum {', '.join(one.name for one in unseen)} is labelled"
    if name == "recall" and not any(one.fakes for one in strata):
        return "no labelled image is fake"
    if name == "false_positive_rate" and not any(one.reals for one in strata):
        return "no labelled image is real"
    return None


def _vague(name: str, low: float, high: float) -> str | None:
    """Why an interval says too little for a figure to stand beside it, or None."""
    if name == "recall" and high - low > WIDEST_RECALL:
        return f"the labels allow anything from {100 * low:.3g} % to {100 * high:.3g} %"
    return None
