"""The rules: several calibrated log-odds per image → one. Pure numpy; knows nothing of names, thresholds or verdicts.

Each takes an (n, members) float64 table and gives (n,) log-odds; NaN in any member gives NaN. Each is computed on log-odds alone, in
a form that neither overflows nor underflows: products of probabilities lose all digits where |x| passes 30 (golden/detectors.md §3).
"""

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from ray_app.ensembles.cards import Stacking

Table = npt.NDArray[np.float64]
Column = npt.NDArray[np.float64]


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
