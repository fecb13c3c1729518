"""Fit a linear head to vectors of images (`fit_head`), and measure it on images it did not see.

The vectors are embeddings. The command `detectors fit` and the methods `linear-probe` and
`identify` call these functions. The classes are real and fake, or for `identify` the generators.
scikit-learn fits the head. It is imported only when a head is fitted.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from ray_app.errors import ConfigError
from ray_app.identification.identifier import unit

Classifier = Literal["svm", "logistic", "cosine"]
BinaryClassifier = Literal["svm", "logistic"]
BINARY_CLASSIFIERS: tuple[BinaryClassifier, ...] = get_args(BinaryClassifier)
MIN_PER_CLASS = 5
"""Minimum number of images of a class, so that each of five folds has one."""
MAX_FOLDS = 5
_SEED = 0
_MAX_ITERATIONS = {"svm": 10_000, "logistic": 2_000, "cosine": 200}

Vectors = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
Weights = npt.NDArray[np.float64]
Logits = npt.NDArray[np.float64]
Groups = Sequence[str]


class HeadSettings(NamedTuple):
    """How a head is fitted.

    Attributes:
        classifier: `svm` is scikit-learn's LinearSVC, whose score ranks images, but is not a
            log-odds until it is calibrated. `logistic` is its LogisticRegression. `cosine` fits
            a direction for each class. A logit is the cosine of a vector and that direction, times
            a fitted factor.
        c: The inverse strength of the penalty, for centred vectors with a mean square length of 1.
        is_balanced: Whether all classes weigh the same, however many images they have.
        scales_each: Whether each number of a vector is scaled by its own standard deviation. If
            not, one factor scales all.
    """

    classifier: Classifier = "logistic"
    c: float = 1.0
    is_balanced: bool = True
    scales_each: bool = False


class LogOddsHead(NamedTuple):
    """A linear head of two classes: its output is the log-odds of the second class.

    Attributes:
        weight: (1, d) float32. The output for vectors (n, d) is vectors · `weight` + `bias`.
        bias: One number.
    """

    weight: Vectors
    bias: float

    def score(self, vectors: Vectors) -> Vectors:
        """Return log-odds (n,) of vectors (n, d)."""
        scores: Vectors = vectors @ self.weight[0] + self.bias
        return scores


@dataclass(frozen=True)
class Head:
    """A linear head with one row per class. Its input vectors need not be normalised.

    Attributes:
        classes: The label of each row, ascending.
        weight: (k, d). Directions of unit length if `scale` is not None.
        bias: (k,).
        scale: The factor by which the cosine of a vector and a row is multiplied. None for logits
            that are dot products, which depend on the length of the vector.
    """

    classes: Labels
    weight: npt.NDArray[np.float64]
    bias: npt.NDArray[np.float64]
    scale: float | None = None

    def logits(self, vectors: Vectors) -> Logits:
        """Return logits (n, k) of vectors (n, d)."""
        if self.scale is None:
            return vectors @ self.weight.T + self.bias
        return self.scale * (unit(vectors) @ self.weight.T) + self.bias

    def as_log_odds(self) -> LogOddsHead:
        """Return this head of two classes as a head that computes log-odds of the second class."""
        first, second = self.weight
        row = (second - first)[None].astype(np.float32)
        return LogOddsHead(row, float(self.bias[1] - self.bias[0]))


def fit_head(
    vectors: Vectors,
    labels: Labels,
    settings: HeadSettings = HeadSettings(),  # noqa: B008 - immutable
    weights: Weights | None = None,
) -> Head:
    """Fit a head to the vectors of images of two or more classes.

    Args:
        vectors: (n, d).
        labels: Class labels (n,).
        settings: How the head is fitted.
        weights: (n,) of the images. None gives all images the same weight.
    """
    if settings.is_balanced:
        weights = balanced_weights(labels, weights)
    elif weights is None:
        weights = np.ones(len(labels))
    if settings.classifier == "cosine":
        return _fit_cosine(vectors, labels, settings, weights)
    return _fit_linear(vectors, labels, settings, weights)


def split_folds(labels: Labels, groups: Groups | None = None) -> list[tuple[Labels, Labels]]:
    """Divide images into up to five folds.

    A fold is a pair of arrays of row numbers. The first are the rows to fit on, called seen rows.
    The second are the rows to measure on, called unseen rows.

    Args:
        labels: Class labels (n,). Each fold has all classes, if groups allow it.
        groups: (n,) names of groups, which no fold divides. None makes each image a group.

    Returns:
        The folds. Empty if all images of a class are of one group.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    rows_by_class = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    units = [
        len(rows) if groups is None else len({groups[row] for row in rows.tolist()})
        for rows in rows_by_class
    ]
    count = min(MAX_FOLDS, *units)
    if count < 2:
        return []
    splitter = StratifiedKFold if groups is None else StratifiedGroupKFold
    folds = splitter(count, shuffle=True, random_state=_SEED).split(labels, labels, groups)
    return list(folds)


def fit_folds(
    vectors: Vectors,
    labels: Labels,
    folds: Sequence[tuple[Labels, Labels]],
    settings: HeadSettings = HeadSettings(),  # noqa: B008 - immutable
    weights: Weights | None = None,
) -> Iterator[tuple[Head, Labels]]:
    """Fit one head per fold, to check it on images that it did not see.

    Each head is fitted to the fold's seen rows, and is yielded with the fold's unseen rows. A fold
    whose seen rows are of one class only is left out.

    Args:
        vectors: (n, d).
        labels: (n,).
        folds: The folds, see `split_folds`.
        settings: How the heads are fitted.
        weights: (n,) of the images. None gives all images the same weight.
    """
    for seen, unseen in folds:
        if len(np.unique(labels[seen])) > 1:
            seen_weights = None if weights is None else weights[seen]
            yield fit_head(vectors[seen], labels[seen], settings, seen_weights), unseen


def cross_validate_auc(
    vectors: Vectors,
    labels: Labels,
    classifier: BinaryClassifier = "logistic",
    groups: Groups | None = None,
    weights: Weights | None = None,
) -> list[float]:
    """Measure the ROC AUC of a head of two classes per fold, on images that it did not see.

    A fold whose images are of one class only has no AUC and is left out.

    Args:
        vectors: (n, d).
        labels: (n,), 1 for fake.
        classifier: The classifier.
        groups: (n,) names of groups, which no fold divides. None makes each image a group.
        weights: (n,) of the images in the fit. None gives all images the same weight.

    Raises:
        ConfigError: A class has too few images, or all its images are of one group.
    """
    from sklearn.metrics import roc_auc_score

    require_enough(labels)
    folds = split_folds(labels, groups)
    if not folds:
        raise ConfigError(
            "all images of one class are in one group, so no images are left to validate on",
            hint="label images of more groups, or remove the column of groups",
        )
    settings = HeadSettings(classifier)
    return [
        float(roc_auc_score(labels[unseen], head.as_log_odds().score(vectors[unseen])))
        for head, unseen in fit_folds(vectors, labels, folds, settings, weights)
        if len(np.unique(labels[unseen])) == 2
    ]


def require_enough(labels: Labels) -> None:
    """Check that there are at least `MIN_PER_CLASS` real and as many fake images to fit a head.

    Args:
        labels: (n,), 1 for fake.

    Raises:
        ConfigError: A class has too few images.
    """
    counts = {"real": int((labels == 0).sum()), "fake": int((labels == 1).sum())}
    few = [f"{count} {name}" for name, count in counts.items() if count < MIN_PER_CLASS]
    if few:
        raise ConfigError(
            f"too few images to fit a head: {' and '.join(few)}",
            hint=f"label at least {MIN_PER_CLASS} images of each class",
        )


def even_weights(labels: Labels, groups: Groups, power: float = 0.0) -> Weights:
    """Return image weights (n,) that keep large groups from dominating a class.

    The weights add up to n.

    Args:
        labels: Class labels (n,).
        groups: (n,) names of groups, such as generators or scenes.
        power: The weight of a group with m images of a class is proportional to m to this power.
            With 0, all groups weigh the same. With 1, all images weigh the same.
    """
    units = list(zip(labels.tolist(), groups, strict=True))
    sizes = Counter(units)
    weights: Weights = np.array([sizes[unit] ** (power - 1) for unit in units], np.float64)
    weights *= len(units) / weights.sum()
    return weights


def balanced_weights(labels: Labels, weights: Weights | None = None) -> Weights:
    """Return image weights (n,) of mean 1 that give all classes the same total weight.

    Args:
        labels: Class labels (n,).
        weights: (n,) relative weights within a class. None gives all images the same weight.
    """
    weights = np.ones(len(labels)) if weights is None else weights
    classes, codes = np.unique(labels, return_inverse=True)
    totals = np.bincount(codes, weights)
    factors: Weights = totals.sum() / (len(classes) * totals)
    return weights * factors[codes]


def compute_spread(rows: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Return the standard deviation (d,) of each column of `rows` (n, d), to scale the columns.

    The result is at least 5 % of the median deviation. Without this bound, dividing by the
    deviation would give a column that hardly varies a large influence.
    """
    spread = rows.std(axis=0, dtype=np.float64)
    return np.asarray(np.maximum(spread, 0.05 * float(np.median(spread)) or 1e-6), np.float64)


def _fit_linear(vectors: Vectors, labels: Labels, settings: HeadSettings, weights: Weights) -> Head:
    """Fit by scikit-learn; the shift and scale of the vectors become part of the head."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import LinearSVC

    centre = vectors.mean(axis=0, dtype=np.float64)
    centred = vectors - centre
    scale: float | npt.NDArray[np.float64] = (
        compute_spread(vectors) * math.sqrt(vectors.shape[1])
        if settings.scales_each
        else float(np.sqrt((centred**2).sum(axis=1).mean())) or 1.0
    )
    kind = LinearSVC if settings.classifier == "svm" else LogisticRegression
    max_iterations = _MAX_ITERATIONS[settings.classifier]
    model = kind(C=settings.c, random_state=_SEED, max_iter=max_iterations).fit(
        centred / scale, labels, sample_weight=weights
    )
    weight, bias = model.coef_, model.intercept_
    if len(model.classes_) == 2:  # scikit-learn returns the log-odds of the second class.
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    weight = weight / scale
    return Head(model.classes_, weight, bias - weight @ centre)


def _fit_cosine(vectors: Vectors, labels: Labels, settings: HeadSettings, weights: Weights) -> Head:
    """Fit directions and one scale by L-BFGS, from the mean directions of the classes.

    The objective is the weighted log loss × c + scale² / 2.
    """
    import torch
    from torch.nn import functional

    classes, codes = np.unique(labels, return_inverse=True)
    inputs, targets, image_weights = (
        torch.from_numpy(unit(vectors)),
        torch.from_numpy(codes),
        torch.from_numpy(weights).float(),
    )
    start = unit(np.stack([vectors[codes == code].mean(axis=0) for code in range(len(classes))]))
    weight = torch.from_numpy(start).requires_grad_()
    log_scale = torch.tensor(math.log(10.0), requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [weight, log_scale], max_iter=_MAX_ITERATIONS["cosine"], line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        logits = log_scale.exp() * inputs @ functional.normalize(weight, dim=1).T
        errors = image_weights * functional.cross_entropy(logits, targets, reduction="none")
        loss = (errors.sum() * settings.c + log_scale.exp() ** 2 / 2) / (settings.c * len(codes))
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    directions = functional.normalize(weight, dim=1).detach().double().numpy()
    return Head(classes, directions, np.zeros(len(classes)), math.exp(log_scale.item()))
