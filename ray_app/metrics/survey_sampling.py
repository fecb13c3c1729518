"""Estimates for a whole archive: prevalence, precision, recall and the false-positive rate from the labels of a stratified sample
(`archive_figures`), and lists of fakes at a false discovery rate from scores of known reals (`discoveries`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ray_app.metrics.arrays import Counts, FigureFacts, Floats, undefined

METHOD = "stratified mid-p"
DRAWS = 20_000
FIGURES = ("prevalence", "precision", "recall", "false_positive_rate")
WIDEST_RECALL = 0.5  # a recall with a wider interval is not defined, and its reason has the ends
_ENDS = (0.025, 0.975)

_NEARLY = 1 - 1e-9  # candidates by floating point are looked at again with whole numbers


@dataclass(frozen=True)
class LabelledStratum:
    """`size` images of which some, drawn at random, are labelled. `flagged`: whether their verdict is fake.

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


def archive_figures(strata: Sequence[LabelledStratum], *, draws: int = DRAWS, seed: int = 0) -> dict[str, FigureFacts]:
    """`prevalence`: the share of fakes; `precision`: that among the flagged; `recall`: the share of fakes that is flagged;
    `false_positive_rate`: the share of reals that is flagged.

    Point estimates weigh each stratum by its size (Horvitz and Thompson 1952), which is unbiased whatever the strata. Intervals are those
    of `drawn_fakes`; a stratum that is labelled whole is certain. A recall that may be nearly anything (an interval wider than
    `WIDEST_RECALL`) is not defined, and its reason names the ends.
    Unsure images are left out: within its stratum each is as likely fake as those that are labelled. See `unsure_bounds` for the rest.
    """
    sizes, flagged = np.array([one.size for one in strata], np.int64), np.array([one.flagged for one in strata], np.bool_)
    fakes, labelled = np.array([one.fakes for one in strata], np.int64), np.array([one.labelled for one in strata], np.int64)
    totals = drawn_fakes(sizes, flagged, fakes, labelled, draws=draws, rng=np.random.default_rng(seed))
    ends = {name: np.quantile(drawn, _ENDS) for name, drawn in shares(totals, sizes, flagged).items()}
    n = int(labelled.sum())
    figures = {}
    for name, value in shares(sizes * fakes / np.maximum(labelled, 1), sizes, flagged).items():
        point = float(value)
        low, high = min(float(ends[name][0]), point), max(float(ends[name][1]), point)
        why = _missing(name, strata) or _vague(name, low, high)
        figures[name] = undefined(why, n) if why else FigureFacts(value=point, interval=(low, high), method=METHOD, n=n)
    return figures


def unsure_bounds(strata: Sequence[LabelledStratum], *, draws: int = DRAWS, seed: int = 0) -> dict[str, tuple[float, float]]:
    """The ends of each figure's interval if all unsure images were what makes it least, and what makes it greatest.

    Only figures that are defined either way.
    """
    ways = {
        "fake": [_settled(one, fake=True) for one in strata],
        "real": [_settled(one, fake=False) for one in strata],
        "flagged fake": [_settled(one, fake=one.flagged) for one in strata],
        "missed fake": [_settled(one, fake=not one.flagged) for one in strata],
    }
    figures = {way: archive_figures(settled, draws=draws, seed=seed) for way, settled in ways.items()}
    flags_err, flags_hit = "missed fake", "flagged fake"
    extremes = {"prevalence": ("real", "fake"), "precision": (flags_err, flags_hit), "recall": (flags_err, flags_hit),
                "false_positive_rate": (flags_hit, flags_err)}  # fmt: skip
    found = {}
    for name, (least, most) in extremes.items():
        low, high = figures[least][name].ends, figures[most][name].ends
        if low and high:
            found[name] = (low[0], high[1])
    return found


@dataclass(frozen=True)
class References:
    """Scores of known reals, ascending, float64 (n,), n ≥ 1, worth `effective` independent ones, 1 … n."""

    scores: Floats
    effective: int

    @classmethod
    def of(cls, scores: ArrayLike, effective: float | None = None) -> "References":
        """Those of scores (n,) in any order. Raises ValueError where there are none, or some are not finite."""
        ordered = np.sort(np.asarray(scores, np.float64))
        if not len(ordered) or not np.isfinite(ordered).all():
            raise ValueError("references are finite scores, and at least one")
        return cls(ordered, len(ordered) if effective is None else max(1, min(len(ordered), int(effective))))

    @property
    def n(self) -> int:
        """How many reals."""
        return len(self.scores)

    def reached(self, scores: Floats) -> Counts:
        """How many of the reals score as high as each of some scores (m,), or higher: int64 (m,)."""
        return self.n - np.searchsorted(self.scores, scores, "left")

    def p_values(self, scores: Floats) -> Floats:
        """(1 + reals that score so high) / (n + 1) of each score (m,), as many as they are worth: k of n are k · effective / n."""
        return (1 + self.reached(scores) * (self.effective / self.n)) / (self.effective + 1)

    def counted(self, scores: Floats) -> Counts:
        """How many of some scores (m,) no real reaches, how many one does, …: int64 (n + 1,). Those of pieces of an archive add up."""
        return np.bincount(self.reached(scores), minlength=self.n + 1)


@dataclass(frozen=True)
class Discoveries:
    """What a list at a rate consists of: the images whose score is above `above`.

    `tested` images were looked at, `count` of them are on the list; the greatest p-value on it is `p_value` (None: the list is empty).
    """

    rate: float
    n_references: int
    tested: int
    count: int
    above: float
    p_value: float | None


def discoveries(references: References, counts: ArrayLike, rate: float) -> Discoveries:
    """Those among images that `References.counted` has counted: by Benjamini and Hochberg at a rate between 0 and 1, exactly.

    Conformal p-values (Vovk, Gammerman and Shafer 2005) against reals that nothing was fitted on, and the procedure of Benjamini and
    Hochberg (1995) over them. Such p-values share their references and so depend on each other, but positively, and the procedure keeps its
    promise (Bates, Candès, Lei, Romano and Sesia 2023, "Testing for outliers with conformal p-values", theorem 2): of what it lists, the
    expected share of reals is at most the rate, if the archive's reals score like the references.

    A p-value can only be one of n + 1 numbers, so that counts of each are all there is to know, and their sums all there is to do.
    Of references in groups the 1 that is added weighs as much as if there were only as many as they are worth.
    """
    at = np.asarray(counts, np.int64)
    share = Fraction(str(rate))
    if not 0 < share < 1 or len(at) != references.n + 1:
        raise ValueError(f"a rate is between 0 and 1, and counts are {references.n + 1}: {rate}, {len(at)}")
    tested, upto = int(at.sum()), np.cumsum(at)
    n, worth = references.n, references.effective
    near = np.flatnonzero((at > 0) & ((n + worth * np.arange(n + 1.0)) * tested * _NEARLY <= rate * n * (worth + 1.0) * upto))
    whole = ((place, int(upto[place])) for place in near[::-1].tolist())
    found = next(((place, listed) for place, listed in whole if (n + worth * place) * tested <= share * n * (worth + 1) * listed), None)
    if found is None:
        return Discoveries(rate, references.n, tested, 0, np.inf, None)
    reached, count = found
    above = float(references.scores[n - 1 - reached]) if reached < n else -np.inf
    return Discoveries(rate, n, tested, count, above, (1 + reached * worth / n) / (worth + 1))


def fewest_listed(references: References, tested: int, rate: float) -> int:
    """How many of the images tested must score above every real, for a list of any: with too few references no list can be."""
    return int(-(-tested // (Fraction(str(rate)) * (references.effective + 1))))


def drawn_fakes(
    sizes: Counts, flagged: NDArray[np.bool_], fakes: ArrayLike, labelled: ArrayLike, *, draws: int, rng: np.random.Generator
) -> Counts:
    """Numbers of fakes in each stratum as the labels leave them open: int64 (draws, …, h); the middle 95 % of what follows from them is an
    interval.

    `sizes` and `flagged` (h,); of `labelled` (…, h) images each `fakes` (…, h) are fake. Of one stratum this is the mid-p interval of a
    finite population: its end from below has one real more among what was seen, its end from above one fake more (Clopper and Pearson
    1934; of unseen images the hypergeometric law has the beta-binomial for its inverse), and each draw takes one or the other. Of several
    strata, one image more in each would be far too much: as with weighted Poisson counts (Fay and Feuer 1997), it is added where it
    counts most, once among the flagged and once among the others. Both are then joined draw by draw, so that sums and ratios have
    intervals, too (Fay, Proschan and Brittain 2015). That sums of strata are covered is not proved but simulated: tests/statistics.
    """
    seen, found = np.asarray(labelled, np.int64), np.asarray(fakes, np.int64)
    missed, unseen = seen - found, sizes - seen
    weights = unseen / (np.maximum(seen, 1) * (seen + 1))  # × missed or found: images that one label more would make fake or real
    fewer = rng.random((draws, *found.shape[:-1], 2))[..., flagged.astype(np.intp)] < 0.5
    in_fakes = rng.standard_gamma(found + (~fewer & _heaviest(weights * missed, flagged)))
    in_reals = rng.standard_gamma(missed + (fewer & _heaviest(weights * found, flagged)))
    total = in_fakes + in_reals
    chances = np.divide(in_fakes, total, out=np.zeros_like(total), where=total > 0)
    drawn: Counts = found + rng.binomial(np.broadcast_to(unseen, found.shape), chances)
    return drawn


def shares(fakes: ArrayLike, sizes: Counts, flagged: NDArray[np.bool_]) -> Mapping[str, Floats]:
    """FIGURES from numbers of fakes (…, h) in strata of `sizes` (h,): (…) each; what would divide by 0 is 0."""
    counted = np.asarray(fakes, np.float64)
    total, hits = counted.sum(-1), counted[..., flagged].sum(-1)
    images, calls = int(sizes.sum()), int(sizes[flagged].sum())
    return {
        "prevalence": total / max(images, 1),
        "precision": hits / max(calls, 1),
        "recall": np.divide(hits, total, out=np.zeros_like(total), where=total > 0),
        "false_positive_rate": np.divide(calls - hits, images - total, out=np.zeros_like(total), where=total < images),
    }


def _heaviest(weights: Floats, flagged: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Marks the greatest of weights (…, h) among the flagged strata, and that among the others: bool (…, h)."""
    marks = np.zeros(weights.shape, np.bool_)
    for group in (np.flatnonzero(flagged), np.flatnonzero(~flagged)):
        if len(group):
            np.put_along_axis(marks, group[weights[..., group].argmax(-1)][..., None], True, -1)
    return marks


def _settled(stratum: LabelledStratum, *, fake: bool) -> LabelledStratum:
    fakes, reals = (stratum.unsure, 0) if fake else (0, stratum.unsure)
    return replace(stratum, fakes=stratum.fakes + fakes, reals=stratum.reals + reals, unsure=0)


def _missing(name: str, strata: Sequence[LabelledStratum]) -> str | None:
    """Why labels say nothing of a figure, or None."""
    needed = [one for one in strata if one.flagged or name != "precision"]
    if not needed:
        return "no image is flagged as fake" if name == "precision" else "there are no images"
    if unseen := [one for one in needed if one.size and not one.labelled]:
        if not any(one.flagged for one in unseen) and not any(one.labelled for one in strata if not one.flagged):
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
