"""Combination rules: several calibrated log-odds per image → one. `SYMMETRIC` has them by name; `stacked` is fitted by `fit_stacking`.

Each takes an (n, members) float64 table and gives (n,) log-odds; NaN in any member gives NaN.
"""

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from ray_app.ensembles.card import Stacking
from ray_app.errors import ConfigError

Table = npt.NDArray[np.float64]
Column = npt.NDArray[np.float64]


# Rules are computed on log-odds alone, in a form that neither overflows nor underflows: products of probabilities lose all digits where
# |x| passes 30 (golden/detectors.md §3).


def mean_logit(table: Table) -> Column:
    """The mean of the log-odds."""
    result: Column = table.mean(axis=1)
    return result


def mean_probability(table: Table) -> Column:
    """The log-odds of the mean probability: the log of Σ p over Σ (1 − p) (golden/detectors.md §3)."""
    return log_sum_exp(_log_sigmoid(table)) - log_sum_exp(_log_sigmoid(-table))


def soft_or(table: Table) -> Column:
    """The log-odds that at least one member is right to say fake, were they independent: logit(1 − Π(1 − p)) (detectors.md §4).

    For two members the odds are a + b + ab; folding that over all of them needs no probability.
    """
    result = table[:, 0]
    for column in table.T[1:]:
        result = np.logaddexp(np.logaddexp(result, column), result + column)
    return result


def maximum(table: Table) -> Column:
    """The highest log-odds."""
    result: Column = table.max(axis=1)
    return result


def median(table: Table) -> Column:
    """The median of the log-odds; of an even number of members the mean of the two in the middle."""
    result: Column = np.median(table, axis=1)
    return result


def log_sum_exp(table: Table) -> Column:
    """The log of the summed odds, not divided by the number of members (detectors.md §4)."""
    result: Column = np.logaddexp.reduce(table, axis=1)
    return result


def weighted(table: Table, weights: Column) -> Column:
    """Σ weight × log-odds."""
    result: Column = (table * weights).sum(axis=1)
    return result


def stacked(table: Table, stacking: Stacking) -> Column:
    """The log-odds of a logistic regression on standardised log-odds."""
    standardised = (table - np.array(stacking.mean)) / np.array(stacking.scale)
    return weighted(standardised, np.array(stacking.coefficients)) + stacking.intercept


SYMMETRIC: Mapping[str, Callable[[Table], Column]] = {
    "mean-logit": mean_logit,
    "mean-probability": mean_probability,
    "soft-or": soft_or,
    "max": maximum,
    "median": median,
    "log-sum-exp": log_sum_exp,
}
"""The rules that need no numbers of their own and treat all members alike, by the name on a card."""


def _log_sigmoid(table: Table) -> Table:
    result: Table = -np.logaddexp(0.0, -table)
    return result


Labels = npt.NDArray[np.integer] | npt.NDArray[np.bool_]
STRENGTH = 1.0  # scikit-learn's C on standardised scores: bounds the coefficients where the members separate the labels without error


def fit_stacking(scores: Table, labels: Labels, seed: int = 0) -> Stacking:
    """A logistic regression on calibrated member scores.

    `scores` is (n, members) log-odds in the card's order, `labels` (n,) with 1 = fake. Its log-odds hold at the labels' own share of
    fakes. `seed` fixes whatever the solver draws. Raises ConfigError where a score is missing or all labels are alike.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scores, fake = _checked(scores, labels)
    scaler = StandardScaler().fit(scores)
    model = LogisticRegression(C=STRENGTH, random_state=seed).fit(scaler.transform(scores), fake)
    return Stacking(
        mean=tuple(scaler.mean_.tolist()),
        scale=tuple(scaler.scale_.tolist()),
        coefficients=tuple(model.coef_[0].tolist()),
        intercept=float(model.intercept_[0]),
    )


def out_of_fold_scores(scores: Table, labels: Labels, seed: int = 0, folds: int = 5) -> Column:
    """Stacked log-odds (n,), each from a fit that did not see its image: what an honest figure is computed from.

    Folds keep the share of fakes and are drawn by `seed`. Raises ConfigError as `fit_stacking`, or where a class has fewer than two images.
    """
    from sklearn.model_selection import StratifiedKFold

    scores, fake = _checked(scores, labels)
    rarer = int(min(fake.sum(), (~fake).sum()))
    if rarer < 2:
        raise ConfigError("stacking: out-of-fold scores need two images of each class", hint="label more images")
    result = np.empty(len(scores))
    for seen, held_out in StratifiedKFold(min(folds, rarer), shuffle=True, random_state=seed).split(scores, fake):
        result[held_out] = stacked(scores[held_out], fit_stacking(scores[seen], fake[seen], seed))
    return result


def _checked(scores: Table, labels: Labels) -> tuple[Table, npt.NDArray[np.bool_]]:
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 2 or np.shape(labels) != scores.shape[:1]:
        raise ConfigError(f"stacking: scores {scores.shape} and labels {np.shape(labels)}; expected (n, members) and (n,)")
    missing = int((~np.isfinite(scores)).any(axis=1).sum())
    if missing:
        raise ConfigError(f"stacking: {missing} of {len(scores)} images lack a member's score", hint="leave those images out")
    if set(np.unique(labels).tolist()) != {0, 1}:
        raise ConfigError("stacking: labels must be 0 (real) and 1 (fake), both present", hint="give labelled images of both classes")
    return scores, np.asarray(labels, bool)
