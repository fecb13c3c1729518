"""Fit and calibrate an identifier, which names the generator of a fake image from its embedding.

`assign_classes` gives each labelled row a class, usually its generator. `fit` fits a head that
predicts the class. It chooses the head's settings and calibrates its probabilities by a
cross-validation of the training images. In it, a head judges an image only if it saw no image of
the same group. Validation images are used only by `find_threshold`, which sets the confidence below
which a generator is called unknown.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ray_app.errors import ConfigError
from ray_app.identification.generators import find_generator, spelling_key
from ray_app.training.config import Identify
from ray_app.training.head import (
    Groups,
    HeadSettings,
    Labels,
    Logits,
    Vectors,
    balanced_weights,
    compute_spread,
    fit_folds,
    fit_head,
    split_folds,
)

STRENGTHS = (1.0, 10.0, 100.0, 1_000.0, 10_000.0)
_T_RANGE = (-4.0, 6.0)  # Bounds of the logarithm of a temperature.
REAL = "real"
UNKNOWN = "unknown"  # The generator of a fake whose origin is not known.
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class FittedIdentifier:
    """A fitted head that predicts generators, with its calibration.

    Attributes:
        tensors: The tensors of the identifier's weight file, by name.
        scale: The factor by which a cosine head multiplies cosines. 1 for a linear head.
        c: The chosen inverse strength of the penalty, as in scikit-learn.
        temperature: The number that divided the logits to calibrate them. 1 if they are not
            calibrated.
        losses: Mean log loss over images that the heads did not see, by the value of `c`.
        why_not: The reason why the head is not calibrated. None if it is.
    """

    tensors: dict[str, Vectors]
    scale: float
    c: float
    temperature: float
    losses: dict[float, float]
    why_not: str | None = None


def fit(vectors: Vectors, codes: Labels, groups: Groups, config: Identify) -> FittedIdentifier:
    """Fit a head that predicts the class of an embedding, and calibrate its probabilities.

    Args:
        vectors: Embeddings (n, d).
        codes: Classes (n,), 0 … C − 1, each with at least one image.
        groups: Groups (n,). All images of a group are in one fold.
        config: The recipe's section `identify`.
    """
    settings = HeadSettings(
        "cosine" if config.head == "cosine" else "logistic",
        config.c or STRENGTHS[2],
        is_balanced=config.balanced,
        scales_each=True,
    )
    losses, temperature, why_not = dict[float, float](), 1.0, None
    folds = split_folds(codes, groups)
    if not folds:
        why_not = "all images of a class are of one group, so no images are left to calibrate on: probabilities are as fitted"
    for c in () if why_not else STRENGTHS if config.c is None else (config.c,):
        candidate = settings._replace(c=c)
        fitted_temperature, losses[c] = _calibrate(vectors, codes, folds, candidate)
        if losses[c] > min(losses.values()):
            break  # Weaker penalties take more time and are even worse.
        settings, temperature = candidate, fitted_temperature
    head = fit_head(vectors, codes, settings)
    weight = head.weight if head.scale is not None else head.weight / temperature
    bias = head.bias / temperature
    tensors = {"weight": weight.astype(np.float32), "bias": bias.astype(np.float32)}
    if config.open_set == "distance" and config.abstains:
        tensors |= fit_distances(vectors, codes)
    scale = 1.0 if head.scale is None else head.scale / temperature
    return FittedIdentifier(tensors, scale, settings.c, temperature, losses, why_not)


def fit_distances(vectors: Vectors, codes: Labels) -> dict[str, Vectors]:
    """Return the tensors from which an identifier computes Mahalanobis distances to its classes.

    A large distance to all classes shows an unknown generator. All classes have one covariance,
    shrunk as by Ledoit and Wolf (2004).

    Args:
        vectors: Embeddings (n, d).
        codes: Classes (n,), 0 … C − 1.

    Returns:
        `means` (C, d), the mean of each class, and `whitening` (d, d). The length of
        (vector − mean) @ `whitening` is the Mahalanobis distance.
    """
    from sklearn.covariance import LedoitWolf

    means = np.stack(
        [vectors[codes == code].mean(axis=0, dtype=np.float64) for code in range(codes.max() + 1)]
    )
    centred = vectors - means[codes]
    spread = compute_spread(centred)
    values, axes = np.linalg.eigh(
        LedoitWolf(assume_centered=True).fit(centred / spread).covariance_
    )
    whitening = axes / np.sqrt(np.maximum(values, 1e-6 * values.max())) / spread[:, None]
    return {"means": means.astype(np.float32), "whitening": whitening.astype(np.float32)}


def find_threshold(confidence: Vectors, abstains: float) -> float:
    """Return the confidence below which an identifier calls the generator of an image unknown.

    The threshold is a low quantile of the given confidences. The expected fraction of images of
    known generators below it is at most `abstains`, for example 0.05.

    The exact rule is that of split conformal prediction. The k-th smallest of n given confidences
    is returned. The confidence of a new image that is like the given ones is below it with
    probability k / (n + 1). k is the largest number for which that is at most `abstains`.

    Args:
        confidence: Confidence (n,) of images of known generators that nothing was fitted on.
        abstains: Maximum fraction of images of known generators that may be called unknown.

    Raises:
        ConfigError: There are too few images for this fraction.
    """
    n = len(confidence)
    k = math.floor(abstains * (n + 1) + 1e-9)
    if k < 1:
        raise ConfigError(
            f"{n} validation images of known generators are too few to choose the confidence below which {abstains:.1%} "
            f"of them are called unknown: {math.ceil(1 / abstains - 1)} are needed",
            hint="hold out more images for validation, or set another fraction by --set identify.abstains=…",
        )
    return float(np.sort(confidence)[k - 1])


def _calibrate(
    vectors: Vectors, codes: Labels, folds: Sequence[tuple[Labels, Labels]], settings: HeadSettings
) -> tuple[float, float]:
    """Return the best temperature and its mean log loss over images of classes that heads know.

    The head of a fold judges the images that it did not see.
    """
    logits = np.full((len(codes), codes.max() + 1), -np.inf)
    for head, unseen in fit_folds(vectors, codes, folds, settings):
        logits[np.ix_(unseen, head.classes)] = head.logits(vectors[unseen])
    is_judged = np.isfinite(logits[np.arange(len(codes)), codes])
    judged = codes[is_judged]
    weights = balanced_weights(judged) if settings.is_balanced else np.ones(len(judged))
    return _find_temperature(logits[is_judged], judged, weights)


def _find_temperature(
    logits: Logits, codes: Labels, weights: npt.NDArray[np.float64]
) -> tuple[float, float]:
    """Return the temperature of the minimum log loss (Guo et al. 2017), and that loss."""
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    def loss(log_t: float) -> float:
        log_probabilities = log_softmax(logits / math.exp(log_t), axis=1)[
            np.arange(len(codes)), codes
        ]
        return float(-(weights * log_probabilities).sum() / weights.sum())

    result = minimize_scalar(loss, bounds=_T_RANGE, method="bounded")
    return math.exp(float(result.x)), float(result.fun)


@dataclass(frozen=True)
class ClassAssignments:
    """The class of each of n labelled rows, usually the generator of the image.

    Attributes:
        names: Name (n,) of each row's class, also if the identifier will not have the class. `real`
            for real images, None if the generator is unknown.
        held_out: (n,) True if the recipe's `identify.held_out` names the generator, class, or
            family of the row. Nothing is fitted on such a row.
        absent: Names in `held_out` of the recipe that match no row.
    """

    names: list[str | None]
    held_out: npt.NDArray[np.bool_]
    absent: tuple[str, ...] = ()

    def select_rows(self, classes: Sequence[str]) -> Rows:
        """Return the numbers of the rows whose class is one of `classes`, in ascending order.

        Rows that the recipe's `identify.held_out` names are left out.
        """
        return np.flatnonzero([name in classes for name in self.names] & ~self.held_out)

    def names_at(self, rows: Rows) -> list[str | None]:
        """Return the class names of the rows with these numbers; None for an unknown generator."""
        return [self.names[row] for row in rows]


def get_class_name(config: Identify, generator: str) -> str:
    """Return the class of a fake image, to which an identifier assigns its generator.

    If `config.level` is `generator`, the class is the generator's name in configs/generators.yaml.
    If it is `family`, the class is its family in `config.families` or configs/generators.yaml. A
    generator that is not listed there is a class of its own.

    Args:
        config: The recipe's section `identify`.
        generator: Name of the generator in any spelling.
    """
    entry = find_generator(generator)
    if config.level == "family":
        return config.families.get(generator) or (entry.family if entry else generator)
    return entry.name if entry and entry.name else generator


def assign_classes(
    config: Identify, labels: Sequence[str], generators: Sequence[str]
) -> ClassAssignments:
    """Return the class of each labelled row, which is the name that an identifier should predict.

    The class of a fake is its generator or its family, see `get_class_name`.

    Args:
        config: The recipe's section `identify`.
        labels: `real` or `fake` (n,).
        generators: Names of generators (n,).
    """
    official_names = {
        name: entry.name
        for name in config.held_out
        if (entry := find_generator(name)) and entry.name
    }
    held_out_keys = {name: spelling_key(official_names.get(name, name)) for name in config.held_out}
    fakes = {name for label, name in zip(labels, generators, strict=True) if label != REAL}
    names_by_generator = {name: _list_names(config, name) for name in fakes}
    by_name = {
        name: (
            get_class_name(config, name),
            not names_by_generator[name].isdisjoint(held_out_keys.values()),
        )
        for name in fakes
    }
    assigned = [
        (REAL, False) if label == REAL else by_name[name]
        for label, name in zip(labels, generators, strict=True)
    ]
    names = [None if name == UNKNOWN else name for name, _ in assigned]
    existing_names = set[str]().union(*names_by_generator.values())
    absent = tuple(name for name, key in held_out_keys.items() if key not in existing_names)
    return ClassAssignments(
        names, np.array([is_held_out for _, is_held_out in assigned], np.bool_), absent
    )


def _list_names(config: Identify, generator: str) -> set[str]:
    """Return all names that hold a generator out: its own, its class's, and its family's."""
    entry = find_generator(generator)
    names = (
        generator,
        get_class_name(config, generator),
        config.families.get(generator),
        *((entry.name, entry.family) if entry else ()),
    )
    return {spelling_key(name) for name in names if name}


def select_classes(
    config: Identify, rows: ClassAssignments
) -> tuple[tuple[str, ...], dict[str, int]]:
    """Return the names of an identifier's classes, and the image counts of classes left out.

    An identifier is a model that names the generator of a fake. A class is left out if it has too
    few training images.

    Args:
        config: The recipe's section `identify`.
        rows: The classes of the training rows.

    Returns:
        The sorted names, and the number of training images of each class that is left out, by name.

    Raises:
        ConfigError: A class has too few images and may not be left out, there are fewer than two
            classes, or a name in `identify.held_out` matches no row.
    """
    if rows.absent:
        names = ", ".join(sorted({name for name in rows.names if name})[:20])
        raise ConfigError(
            f"identify.held_out: no training image is of {', '.join(rows.absent)}",
            hint=f"name one of {names}",
        )
    counts = Counter(
        name
        for name, is_held_out in zip(rows.names, rows.held_out, strict=True)
        if name and not is_held_out
    )
    if not config.reals:
        del counts[REAL]
    rare_classes = {name: n for name, n in sorted(counts.items()) if n < config.fewest}
    if rare_classes and config.rare == "refuse":
        message = ", ".join(f"{name} ({n})" for name, n in rare_classes.items())
        raise ConfigError(
            f"too few training images of {message}: each class needs {config.fewest}",
            hint="leave these classes out by --set identify.rare=leave-out, collect more images, or --set identify.fewest=… (minimum 5)",
        )
    classes = tuple(sorted(set(counts) - set(rare_classes)))
    if len(classes) < 2:
        raise ConfigError(
            f"an identifier needs two or more classes (generators, or real) to tell apart, found {', '.join(classes) or 'none'}",
            hint="add training images of more generators, or allow small classes by --set identify.fewest=… (minimum 5)",
        )
    return classes, rare_classes


def select_training_rows(
    config: Identify, rows: ClassAssignments, classes: Sequence[str], seed: int
) -> Rows:
    """Return the numbers of the training rows that an identifier's head is fitted on.

    They are all rows of the classes that are not held out. If `config.most` is set, up to that many
    random rows of each class are used.

    Args:
        config: The recipe's section `identify`.
        rows: The classes of the training rows.
        classes: Names of the classes.
        seed: Seed of the random choice.
    """
    selected = rows.select_rows(classes)
    if config.most is None:
        return selected
    rng, names = np.random.default_rng([seed, 9]), np.array(rows.names_at(selected))
    parts = [selected[names == name] for name in classes]
    return np.sort(
        np.concatenate(
            [rng.choice(part, min(config.most, len(part)), replace=False) for part in parts]
        )
    )
