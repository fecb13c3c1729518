"""Fit the `stacked` rule on labelled member scores. Knows a table of numbers; scikit-learn is loaded on first use."""

import numpy as np
import numpy.typing as npt

from ray_app.ensembles.cards import Stacking
from ray_app.ensembles.rules import Column, Table, stacked
from ray_app.errors import ConfigError

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
