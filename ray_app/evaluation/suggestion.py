"""Which detectors of many to combine (`suggest`): greedy forward selection by what a cross-validation says that each adds. Arrays alone.

The rule is the mean of calibrated log-odds, each detector's by Platt scaling. Folds are of whole groups. A step is taken where the best
candidate's mean gain over the folds exceeds NEGLIGIBLE and its own standard error (the one-standard-error rule of Breiman et al. 1984); a
detector that ranks images as one that is chosen already does is a copy and is passed over.

The choice itself is cross-validated: in each fold's turn everything is chosen and fitted on the other folds and measured on it (nested
cross-validation: Varma and Simon 2006), so that the figures of a step are not those of the images it was chosen on.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ray_app.metrics import calibration, operating_points
from ray_app.metrics.arrays import Bools, Floats, ScoreHistogram
from ray_app.metrics.intervals import auc_of

Aim = Literal["auc", "tpr_at_fpr_1", "tpr_at_fpr_5"]
ONE_IN: Mapping[str, int] = {"tpr_at_fpr_1": 100, "tpr_at_fpr_5": 20}
NEGLIGIBLE = 0.002
ALIKE = 0.99  # rank correlation within both classes from which on two detectors say the same
FOLDS = 5
FEWEST_FOLDS = 3  # of which two are left in the turn of one
Codes = NDArray[np.int64]


@dataclass(frozen=True)
class DetectorCosts:
    """What each detector costs an image (d,), in one unit. Those of one `backbone` (None: their own) cost together what the dearest of them
    does.
    """

    each: tuple[float, ...]
    backbones: tuple[Hashable | None, ...]

    def of(self, chosen: Sequence[int]) -> float:
        """What some of them cost together."""
        by_backbone: dict[Hashable, float] = {}
        for at in chosen:
            key = self.backbones[at] if self.backbones[at] is not None else ("own", at)
            by_backbone[key] = max(by_backbone.get(key, 0.0), self.each[at])
        return sum(by_backbone.values())


@dataclass(frozen=True)
class SuggestedStep:
    """The ensemble of so many detectors. `detector`: the place of the one that came in; `figure`: the mean over held-out folds, between
    `lowest` and `highest`; `gain`: the mean of what the step added there, of `gains` by fold; `chosen_in`: folds whose own choice has the
    detector by then; `cost`: of all so far.
    """

    detector: int
    figure: float
    lowest: float
    highest: float
    gain: float
    gains: tuple[float, ...]
    chosen_in: int
    cost: float


@dataclass(frozen=True)
class Suggestion:
    """`steps` in their order; `copies`: by detector whom it is a copy of; `folds`: how many."""

    steps: tuple[SuggestedStep, ...]
    copies: Mapping[int, int]
    folds: int

    @property
    def chosen(self) -> list[int]:
        """The places of the detectors."""
        return [step.detector for step in self.steps]


def suggest(
    scores: Floats, fake: Bools, folds: Codes, costs: DetectorCosts, *, size: int = 5, by: Aim = "auc", per_cost: bool = False
) -> Suggestion:
    """Up to `size` of d detectors from scores (n, d), finite log-odds, of images that are fake or not (n,) in folds (n,) 0 … k − 1.

    `per_cost`: each step takes the most gain per unit of cost. Raises ValueError for fewer than three folds, for a fold without one of the
    classes, and for one with fewer real images than `by` needs.
    """
    count = int(folds.max()) + 1 if len(folds) else 0
    if count < FEWEST_FOLDS:
        raise ValueError(f"three folds are the least that it takes, not {count}")
    for fold in range(count):
        n_real = int((~fake[folds == fold]).sum())
        if n_real < ONE_IN.get(by, 1) or not fake[folds == fold].any():
            raise ValueError(f"a fold has {n_real} real images and {int(fake[folds == fold].sum())} fakes: too few for {by}")
    alike = _copies(scores, fake)
    path = _path(scores, fake, folds, costs, alike, size, by, per_cost=per_cost)
    paths, figures = [], []
    for fold in range(count):
        seen = folds != fold
        own = _path(scores[seen], fake[seen], _renumbered(folds[seen]), costs, _copies(scores[seen], fake[seen]), size, by,
                       per_cost=per_cost)  # fmt: skip
        held = calibrated(scores[seen][:, own], fake[seen], scores[~seen][:, own])
        reached = [_figure(held[:, : at + 1].mean(axis=1), fake[~seen], by) for at in range(len(own))]
        paths.append(own)
        figures.append([reached[min(at, len(own) - 1)] for at in range(size)])
    table = np.array(figures)
    steps = []
    for at, detector in enumerate(path):
        gains = table[:, at] - (table[:, at - 1] if at else _chance(by))
        chosen_in = sum(detector in own[: at + 1] for own in paths)
        held_out = table[:, at]
        steps.append(
            SuggestedStep(
                detector=detector,
                figure=float(held_out.mean()),
                lowest=float(held_out.min()),
                highest=float(held_out.max()),
                gain=float(gains.mean()),
                gains=tuple(gains.tolist()),
                chosen_in=chosen_in,
                cost=costs.of(path[: at + 1]),
            )
        )
    copies = {at: next(other for other in path if alike[at, other]) for at in range(scores.shape[1])
              if at not in path and any(alike[at, other] for other in path)}  # fmt: skip
    return Suggestion(tuple(steps), copies, count)


def folds_of(groups: Codes, fake: Bools, count: int = FOLDS, seed: int = 0) -> Codes:
    """(n,) the fold of each image: whole groups (n,) dealt out, the largest first, to where their classes are fewest; no more folds than
    groups of the class that has fewer.
    """
    names, codes = np.unique(groups, return_inverse=True)
    sizes = np.stack([np.bincount(codes, weights=mine, minlength=len(names)) for mine in (~fake, fake)], axis=1)
    count = max(1, min(count, *(int((sizes[:, one] > 0).sum()) for one in (0, 1))))
    shares = sizes / np.maximum(sizes.sum(axis=0), 1)
    random = np.random.default_rng(seed).permutation(len(names))
    filled = np.zeros((count, 2))
    place = np.zeros(len(names), np.int64)
    for group in random[np.argsort(-shares[random].max(axis=1), kind="stable")]:
        costs = ((filled + shares[group]) ** 2).sum(axis=1) - (filled**2).sum(axis=1)
        place[group] = int(np.argmin(costs))
        filled[place[group]] += shares[group]
    return place[codes]


def calibrated(scores: Floats, fake: Bools, others: Floats) -> Floats:
    """Log-odds (m, d) of `others` (m, d) by Platt scaling on scores (n, d); those of a detector whose scores do not rise are all even."""
    columns = []
    for at in range(scores.shape[1]):
        try:
            columns.append(calibration.fit_platt(scores[:, at], fake)(others[:, at]))
        except ValueError:
            columns.append(np.zeros(len(others)))
    return np.stack(columns, axis=1) if columns else np.empty((len(others), 0))


def _path(
    scores: Floats, fake: Bools, folds: Codes, costs: DetectorCosts, alike: Bools, size: int, by: Aim, *, per_cost: bool
) -> list[int]:
    """The detectors in the order in which they are chosen."""
    table = calibrated(scores, fake, scores)  # two numbers a detector, which rank nothing anew: what is chosen is judged on other images
    parts = [folds == fold for fold in np.unique(folds)]
    chosen: list[int] = []
    reached = np.full(len(parts), _chance(by))
    while len(chosen) < min(size, scores.shape[1]):
        tried = [at for at in range(scores.shape[1]) if at not in chosen and not any(alike[at, other] for other in chosen)]
        found = {at: _by_fold(table[:, [*chosen, at]].mean(axis=1), fake, parts, by) for at in tried}
        sound = [at for at in tried if not chosen or _is_gain(found[at] - reached)]
        if not sound:
            break
        more = {at: max(costs.of([*chosen, at]) - costs.of(chosen), costs.each[at] / 100, 1e-12) if per_cost else 1.0 for at in sound}
        best = max(sound, key={at: float((found[at] - reached).mean()) / more[at] for at in sound}.__getitem__)
        chosen.append(best)
        reached = found[best]
    return chosen


def _is_gain(gains: Floats) -> bool:
    error = float(gains.std(ddof=1)) / np.sqrt(len(gains)) if len(gains) > 1 else 0.0
    return bool(gains.mean() > max(NEGLIGIBLE, error))


def _by_fold(scores: Floats, fake: Bools, parts: Sequence[Bools], by: Aim) -> Floats:
    return np.array([_figure(scores[part], fake[part], by) for part in parts])


def _figure(scores: Floats, fake: Bools, by: Aim) -> float:
    fakes, reals = ScoreHistogram.of(scores[fake]), ScoreHistogram.of(scores[~fake])
    if by == "auc":
        return auc_of(fakes, reals).value
    return operating_points.found_at_fpr(fakes, reals, ONE_IN[by]) / fakes.n


def _chance(by: Aim) -> float:
    """What scores that know nothing reach."""
    return 0.5 if by == "auc" else 1 / ONE_IN[by]


def _copies(scores: Floats, fake: Bools) -> Bools:
    """(d, d) whether two detectors rank the images of both classes nearly alike."""
    from scipy.stats import rankdata

    alike = np.ones((scores.shape[1],) * 2, np.bool_)
    for mine in (fake, ~fake):
        ranks = np.apply_along_axis(rankdata, 0, scores[mine])
        centred = ranks - ranks.mean(axis=0)
        norms = np.sqrt((centred**2).sum(axis=0))
        products = centred.T @ centred
        alike &= products >= ALIKE * np.outer(norms, norms)
        alike &= np.outer(norms > 0, norms > 0)
    np.fill_diagonal(alike, val=False)
    return alike


def _renumbered(folds: Codes) -> Codes:
    return np.unique(folds, return_inverse=True)[1].astype(np.int64)
