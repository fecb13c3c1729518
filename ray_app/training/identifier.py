"""A head over generators from embeddings and classes (`fit`), with a temperature calibrated over
folds.

What is chosen and calibrated looks at training images alone, each judged by a head that saw no
image of its group; validation images are left for the open set's `threshold`. `named` maps labelled
rows to the classes.
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
    fit_folds,
    fit_head,
    split_folds,
    spread_of,
)

STRENGTHS = (1.0, 10.0, 100.0, 1_000.0, 10_000.0)
_T_RANGE = (-4.0, 6.0)  # of the logarithm of a temperature
REAL = "real"
UNKNOWN = "unknown"  # the label of a fake whose maker nobody knew
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class FittedIdentifier:
    """`tensors`: those of an identifier's file. `scale`: of a cosine head. `c`: the inverse penalty
    that was taken; `temperature`: what logits were divided by; `losses`: by c, the mean log loss
    over images that the heads did not see; `why_not`: why there are none.
    """

    tensors: dict[str, Vectors]
    scale: float
    c: float
    temperature: float
    losses: dict[float, float]
    why_not: str | None = None


def fit(vectors: Vectors, codes: Labels, groups: Groups, config: Identify) -> FittedIdentifier:
    """Fit (n, d) embeddings to (n,) classes 0 … C − 1, no one of which is empty; images of one
    group are in one fold.
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
        why_not = "all images of a class are of one group, so nothing is left to judge on: chances are as the fit gave them"
    for c in () if why_not else STRENGTHS if config.c is None else (config.c,):
        tried = settings._replace(c=c)
        found, losses[c] = _calibrate(vectors, codes, folds, tried)
        if losses[c] > min(losses.values()):
            break  # weaker penalties cost more time and are worse still
        settings, temperature = tried, found
    head = fit_head(vectors, codes, settings)
    weight = head.weight if head.scale is not None else head.weight / temperature
    bias = head.bias / temperature
    tensors = {"weight": weight.astype(np.float32), "bias": bias.astype(np.float32)}
    if config.open_set == "distance" and config.abstains:
        tensors |= distances(vectors, codes)
    scale = 1.0 if head.scale is None else head.scale / temperature
    return FittedIdentifier(tensors, scale, settings.c, temperature, losses, why_not)


def distances(vectors: Vectors, codes: Labels) -> dict[str, Vectors]:
    """`means` (C, d) and `whitening` (d, d) of one covariance of all classes, shrunk as Ledoit and
    Wolf (2004) say.
    """
    from sklearn.covariance import LedoitWolf

    means = np.stack(
        [vectors[codes == code].mean(axis=0, dtype=np.float64) for code in range(codes.max() + 1)]
    )
    centred = vectors - means[codes]
    spread = spread_of(centred)
    values, axes = np.linalg.eigh(
        LedoitWolf(assume_centered=True).fit(centred / spread).covariance_
    )
    whitening = axes / np.sqrt(np.maximum(values, 1e-6 * values.max())) / spread[:, None]
    return {"means": means.astype(np.float32), "whitening": whitening.astype(np.float32)}


def threshold(confidence: Vectors, abstains: float) -> float:
    """The confidence below which so large a share of images of known generators lies, or a little
    less, by n that nothing was fitted on.

    Of a new image that is like them, the chance to lie below the k-th smallest of n is k / (n + 1)
    (order statistics; as in split conformal prediction): k is the largest for which that is no more
    than `abstains`. Raises ConfigError where n is too small for any k.
    """
    n = len(confidence)
    k = math.floor(abstains * (n + 1) + 1e-9)
    if k < 1:
        raise ConfigError(
            f"{n} validation images of known generators are too few to abstain on {abstains:.1%}: {math.ceil(1 / abstains - 1)} are needed",
            hint="hold out more for validation, or --set identify.abstains=…",
        )
    return float(np.sort(confidence)[k - 1])


def _calibrate(
    vectors: Vectors, codes: Labels, folds: Sequence[tuple[Labels, Labels]], settings: HeadSettings
) -> tuple[float, float]:
    """Return the best temperature and the mean log loss with it, over images whose class the head
    of their fold knows.
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
    """Return the temperature of the least log loss (Guo et al. 2017), and that loss."""
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    def loss(log_t: float) -> float:
        chances = log_softmax(logits / math.exp(log_t), axis=1)[np.arange(len(codes)), codes]
        return float(-(weights * chances).sum() / weights.sum())

    found = minimize_scalar(loss, bounds=_T_RANGE, method="bounded")
    return math.exp(float(found.x)), float(found.fun)


@dataclass(frozen=True)
class ClassAssignments:
    """Of n rows: `names`, the class that each is of, whether the identifier has it or not (`real`
    of reals, None where nobody knows), and `held_out` (n,) whether its generator is one that
    nothing may be fitted on. `absent`: held-out names that no row is of.
    """

    names: list[str | None]
    held_out: npt.NDArray[np.bool_]
    absent: tuple[str, ...] = ()

    def of(self, classes: Sequence[str]) -> Rows:
        """The rows of these classes, ascending."""
        return np.flatnonzero([name in classes for name in self.names] & ~self.held_out)

    def at(self, rows: Rows) -> list[str | None]:
        """The names of some rows."""
        return [self.names[row] for row in rows]


def class_name(config: Identify, generator: str) -> str:
    """The class of a fake by its generator: its name as configs/generators.yaml spells it or, by
    `level`, its family.
    """
    found = find_generator(generator)
    if config.level == "family":
        return config.families.get(generator) or (found.family if found else generator)
    return found.name if found and found.name else generator


def named(config: Identify, labels: Sequence[str], generators: Sequence[str]) -> ClassAssignments:
    """The classes of rows by their labels (`real` or `fake`) and generators (n,)."""
    official = {
        name: known.name
        for name in config.held_out
        if (known := find_generator(name)) and known.name
    }
    out = {name: spelling_key(official.get(name, name)) for name in config.held_out}
    fakes = {name for label, name in zip(labels, generators, strict=True) if label != REAL}
    called = {name: _called(config, name) for name in fakes}
    by_name = {
        name: (class_name(config, name), not called[name].isdisjoint(out.values()))
        for name in fakes
    }
    found = [
        (REAL, False) if label == REAL else by_name[name]
        for label, name in zip(labels, generators, strict=True)
    ]
    names = [None if name == UNKNOWN else name for name, _ in found]
    there = set[str]().union(*called.values())
    absent = tuple(name for name, key in out.items() if key not in there)
    return ClassAssignments(names, np.array([held for _, held in found], np.bool_), absent)


def _called(config: Identify, generator: str) -> set[str]:
    """All names by which a generator may be held out: its own, its class's and its family's."""
    found = find_generator(generator)
    names = (
        generator,
        class_name(config, generator),
        config.families.get(generator),
        *((found.name, found.family) if found else ()),
    )
    return {spelling_key(name) for name in names if name}


def classes_of(config: Identify, rows: ClassAssignments) -> tuple[tuple[str, ...], dict[str, int]]:
    """The classes by name, and those that were left out with how many images they have.

    Raises ConfigError for a class of too few images unless they are to be left out, fewer than two
    classes, and a held-out name that no row has.
    """
    if rows.absent:
        there = ", ".join(sorted({name for name in rows.names if name})[:20])
        raise ConfigError(
            f"identify.held_out: no training image is of {', '.join(rows.absent)}",
            hint=f"there are {there}",
        )
    counts = Counter(
        name for name, held in zip(rows.names, rows.held_out, strict=True) if name and not held
    )
    if not config.reals:
        del counts[REAL]
    few = {name: n for name, n in sorted(counts.items()) if n < config.fewest}
    if few and config.rare == "refuse":
        message = ", ".join(f"{name} ({n})" for name, n in few.items())
        raise ConfigError(
            f"too few training images to tell {message}: {config.fewest} are needed of each",
            hint="--set identify.rare=leave-out makes them no classes, or collect more; --set identify.fewest=… goes down to 5",
        )
    classes = tuple(sorted(set(counts) - set(few)))
    if len(classes) < 2:
        raise ConfigError(
            f"an identifier needs two generators or more to tell apart; there is {', '.join(classes) or 'none'}"
        )
    return classes, few


def training_rows(
    config: Identify, rows: ClassAssignments, classes: Sequence[str], seed: int
) -> Rows:
    """The rows that the head is fitted on: all of the classes or, of each, as many as `most` says,
    drawn by the seed.
    """
    chosen = rows.of(classes)
    if config.most is None:
        return chosen
    rng, names = np.random.default_rng([seed, 9]), np.array(rows.at(chosen))
    parts = [chosen[names == name] for name in classes]
    return np.sort(
        np.concatenate(
            [rng.choice(part, min(config.most, len(part)), replace=False) for part in parts]
        )
    )
