"""Figures of detection: how well scores separate fake from real, as a whole (`detection_of`) and by
generator (`detection_figures`).

Fake is the positive class, and 0 the threshold where none is given: P(fake) > ½.

Selective prediction: risk and coverage (`risk_coverage`), figures of verdicts with abstentions
(`abstaining`), and scikit-learn's classification report from counts (`classification_report`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from ray_app.detectors.card import Platt
from ray_app.metrics import operating_points
from ray_app.metrics.arrays import (
    Bools,
    Counts,
    FigureFacts,
    Floats,
    ScoreHistogram,
    checked,
    undefined,
)
from ray_app.metrics.calibration import brier_score, debiased_ece, log_loss
from ray_app.metrics.intervals import DELONG, auc_of, proportion, proportion_interval

FIGURES: Mapping[str, Literal["max", "min"]] = MappingProxyType(
    {
        "auc": "max",
        "average_precision": "max",
        "mean_generator_auc": "max",
        "worst_generator_auc": "max",
        "tpr_at_fpr_1": "max",
        "balanced_accuracy": "max",
        "f1": "max",
        "loss": "min",
        "pixel_f1": "max",
        "pixel_iou": "max",
    }
)
"""What can choose a checkpoint, and whether more of it is better. The last two are of masks
(ray_app.metrics.localization).
"""

RANKING = ("auc", "average_precision", "eer", "tpr_at_fpr_5", "tpr_at_fpr_1", "tpr_at_fpr_01")
"""The figures that need scores which rank images."""

# of a ROC AUC, and the images of each class that it takes to say so
FAR_BELOW_HALF, MIN_PER_CLASS = 0.35, 10

NO_RANKING = "binary replies have no ranking; see balanced accuracy"
NO_CHANCE = "binary replies give no chances: their scores are two agreed numbers"

_NEED_BOTH = (
    "auc", "auc_interval", "average_precision", "mean_generator_auc", "worst_generator_auc",
    "tpr_at_fpr_1", "tpr_at_fpr_1_interval", "balanced_accuracy", "f1",
)  # fmt: skip


def detection_of(
    fakes: ScoreHistogram,
    reals: ScoreHistogram,
    *,
    threshold: float = 0.0,
    strict: bool = True,
    continuous: bool = True,
    calibration: Platt | None = None,
) -> dict[str, FigureFacts]:
    """All figures of detection from the scores (log-odds of fake) of either class; `_01`, `_1`,
    `_10` in names: at 0.1 %, 1 % and 10 %.

    Fake is what scores above `threshold`, or, unless `strict`, at it. `continuous`: False for a
    detector that only says yes or no, whose scores rank nothing and, without a calibration, are no
    chances. `calibration` makes chances of scores, for log-loss, Brier score and ECE; it does not
    move the threshold. Rates have Clopper–Pearson intervals, the AUC DeLong's; the others have
    theirs from ray_app.metrics.detection_intervals, which gives all of them one meaning. A figure
    that is not defined has its reason. Raises ValueError for a threshold that is not finite.
    """
    if not math.isfinite(threshold):
        raise ValueError(f"a threshold is a finite number, not {threshold}")
    counts = operating_points.Confusion.at(fakes, reals, threshold, strict)
    ranking = (
        _ranking(fakes, reals)
        if continuous
        else {name: undefined(NO_RANKING, counts.n) for name in RANKING}
    )
    chances = {"log_loss": log_loss, "brier": brier_score, "ece": debiased_ece}
    has_chances = continuous or calibration is not None
    return {
        **operating_points.rates_at(counts),
        **ranking,
        **{
            name: of(fakes, reals, calibration) if has_chances else undefined(NO_CHANCE, counts.n)
            for name, of in chances.items()
        },
        "precision_at_prior_01": operating_points.precision_at_prior(counts, 0.001),
        "precision_at_prior_1": operating_points.precision_at_prior(counts, 0.01),
        "precision_at_prior_10": operating_points.precision_at_prior(counts, 0.1),
    }


def detection_figures(
    scores: ArrayLike, labels: ArrayLike, generators: Sequence[str]
) -> dict[str, Any]:
    """All figures of scores (n,), log-odds of fake, with labels (n,), 1 = fake, and the generator
    of each, as plain JSON.

    Proportions and AUCs have 95 % intervals [low, high] beside them. `loss` is the mean
    cross-entropy of the log-odds. `generators`: by name n, label, the AUC against all images of the
    other class, and the share classified right (`tpr` of fakes, `tnr` of reals);
    `mean_generator_auc` and `worst_generator_auc` are over the fakes' generators. A figure that
    needs both classes is None with one. Raises ValueError for scores that are not finite, labels
    other than 0 and 1, lengths that differ, and no scores at all.
    """
    numbers, fake = checked(scores, labels)
    if len(generators) != len(numbers):
        raise ValueError(f"{len(numbers):,} scores but {len(generators):,} generators")
    fakes, reals = ScoreHistogram.of(numbers[fake]), ScoreHistogram.of(numbers[~fake])
    by_generator = _by_generator(numbers, fake, generators, fakes, reals)
    figures: dict[str, Any] = {"n_real": reals.n, "n_fake": fakes.n}
    figures |= (
        _overall(fakes, reals, by_generator) if fakes.n and reals.n else dict.fromkeys(_NEED_BOTH)
    )
    return figures | {"loss": log_loss(fakes, reals).value, "generators": by_generator}


def ranks_backwards(auc: FigureFacts, n_real: int, n_fake: int) -> bool:
    """Return whether a ROC AUC is so far below 0.5 that the labels may be swapped, on enough images
    of both classes.
    """
    if auc.number is None or auc.number > FAR_BELOW_HALF or min(n_real, n_fake) < MIN_PER_CLASS:
        return False
    return auc.ends is None or auc.ends[1] < 0.5


def auc_figure(fakes: ScoreHistogram, reals: ScoreHistogram) -> FigureFacts:
    """The AUC with DeLong's interval; not defined with one class."""
    n = fakes.n + reals.n
    if not fakes.n or not reals.n:
        return undefined(operating_points.ONE_CLASS, n)
    auc = auc_of(fakes, reals)
    return FigureFacts(value=auc.value, interval=(auc.low, auc.high), method=DELONG, n=n)


def _ranking(fakes: ScoreHistogram, reals: ScoreHistogram) -> dict[str, FigureFacts]:
    n, both = fakes.n + reals.n, fakes.n and reals.n
    return {
        "auc": auc_figure(fakes, reals),
        "average_precision": FigureFacts(
            value=operating_points.average_precision(fakes, reals), n=n
        )
        if both
        else undefined(operating_points.ONE_CLASS, n),
        "eer": operating_points.equal_error_rate(fakes, reals),
        "tpr_at_fpr_5": operating_points.tpr_at_fpr(fakes, reals, 20),
        "tpr_at_fpr_1": operating_points.tpr_at_fpr(fakes, reals, 100),
        "tpr_at_fpr_01": operating_points.tpr_at_fpr(fakes, reals, 1000),
    }


def _overall(
    fakes: ScoreHistogram, reals: ScoreHistogram, by_generator: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    auc, rates = (
        auc_of(fakes, reals),
        operating_points.rates_at(operating_points.Confusion.at(fakes, reals, 0.0)),
    )
    areas = [figures["auc"] for figures in by_generator.values() if figures["label"] == "fake"]
    found = operating_points.found_at_fpr(fakes, reals, 100)
    return {
        "auc": auc.value,
        "auc_interval": [auc.low, auc.high],
        "average_precision": operating_points.average_precision(fakes, reals),
        "mean_generator_auc": float(np.mean(areas)),
        "worst_generator_auc": float(np.min(areas)),
        "tpr_at_fpr_1": found / fakes.n,
        "tpr_at_fpr_1_interval": list(proportion_interval(found, fakes.n)),
        "balanced_accuracy": rates["balanced_accuracy"].value,
        "f1": rates["f1"].value,
    }


def _by_generator(
    scores: Floats,
    fake: Bools,
    generators: Sequence[str],
    fakes: ScoreHistogram,
    reals: ScoreHistogram,
) -> dict[str, dict[str, Any]]:
    """Figures by generator against all images of the other class, by name; one with real and fake
    images is two, named by label.
    """
    names, codes = np.unique(np.asarray(generators, dtype=object), return_inverse=True)
    groups, members = np.unique(2 * codes + fake, return_inverse=True)
    pieces = np.split(
        scores[np.argsort(members, kind="stable")], np.cumsum(np.bincount(members))[:-1]
    )
    figures = {}
    for group, piece in zip(groups, pieces, strict=True):
        name, is_fake, own = str(names[group // 2]), bool(group % 2), ScoreHistogram.of(piece)
        label, rate = ("fake", "tpr") if is_fake else ("real", "tnr")
        right = own.above(0) if is_fake else own.n - own.above(0)
        both = (own, reals) if is_fake else (fakes, own)
        auc = auc_of(*both) if both[0].n and both[1].n else None
        figures[f"{name} ({label})" if group ^ 1 in groups else name] = {
            "n": own.n,
            "label": label,
            "auc": auc.value if auc else None,
            "auc_interval": [auc.low, auc.high] if auc else None,
            rate: right / own.n,
            "interval": list(proportion_interval(right, own.n)),
        }
    return figures


_NO_IMAGES = "there are no images"
# confidences that are looked at together, so that memory stays that of the histograms
_PIECE = 2**18


def risk_coverage(
    fakes: ScoreHistogram,
    reals: ScoreHistogram,
    threshold: float = 0.0,
    *,
    strict: bool = True,
    most: int = 128,
) -> dict[str, Any]:
    """`points`: [coverage, risk], no more than `most`; `aurc`: the area under that curve (Geifman
    and El-Yaniv 2017), a FigureFacts.

    Confidence is how far a score lies from the threshold, above which, or unless `strict` at which,
    it says fake. Coverage is the share of images at least so sure, risk the share of those that are
    classified wrong; equally sure images come in together. The area is the mean over all images of
    the risk at their own confidence, whichever points are kept. Raises ValueError where `most` is
    less than 16.
    """
    n = fakes.n + reals.n
    if not n:
        return {"points": [], "aurc": undefined(_NO_IMAGES)}
    (missed, found), (passed, alarms) = (
        _by_confidence(one, threshold, strict) for one in (fakes, reals)
    )
    right, wrong = ScoreHistogram.merged([found, passed]), ScoreHistogram.merged([missed, alarms])

    def surer(confidences: Floats) -> tuple[Counts, Counts]:
        """How many images are at least so sure, for each of some confidences, and how many of those
        are wrong.
        """
        errors = wrong.n - wrong.below(confidences)
        return right.n - right.below(confidences) + errors, errors

    area = 0.0
    for side in (right, wrong):
        for start in range(0, len(side.values), _PIECE):
            covered, errors = surer(side.values[start : start + _PIECE])
            area += float(side.counts[start : start + _PIECE] @ (errors / covered))
    covered, errors = surer(operating_points.thinned(right, wrong, most))
    points = np.stack([covered / n, errors / covered], axis=1).tolist()
    return {"points": points, "aurc": FigureFacts(value=area / n, n=n)}


@dataclass(frozen=True, slots=True)
class VerdictCounts:
    """Images by what they are and, behind it, their verdict; `unscored`: those without one, such as
    files that cannot be read.
    """

    fake_fake: int = 0
    fake_real: int = 0
    fake_abstain: int = 0
    real_fake: int = 0
    real_real: int = 0
    real_abstain: int = 0
    fake_unscored: int = 0
    real_unscored: int = 0


def abstaining(counts: VerdictCounts) -> dict[str, FigureFacts]:
    """How many images are decided and how well, and the same with abstentions and unscored images
    counted wrong (`_strict`).

    `coverage` is the share of all images, unscored ones among them, whose verdict is fake or real.
    """
    fakes_decided, reals_decided = (
        counts.fake_fake + counts.fake_real,
        counts.real_fake + counts.real_real,
    )
    fakes = fakes_decided + counts.fake_abstain + counts.fake_unscored
    reals = reals_decided + counts.real_abstain + counts.real_unscored
    right, decided, n = (
        counts.fake_fake + counts.real_real,
        fakes_decided + reals_decided,
        fakes + reals,
    )
    balanced = (
        FigureFacts(value=(counts.fake_fake / fakes + counts.real_real / reals) / 2, n=n)
        if fakes and reals
        else undefined(operating_points.ONE_CLASS, n)
    )
    return {
        "coverage": proportion(decided, n, _NO_IMAGES),
        "accuracy_of_decided": proportion(right, decided, "no image is decided"),
        "tpr_of_decided": proportion(
            counts.fake_fake,
            fakes_decided,
            "no fake is decided" if fakes else operating_points.NO_FAKES,
        ),
        "tnr_of_decided": proportion(
            counts.real_real,
            reals_decided,
            "no real is decided" if reals else operating_points.NO_REALS,
        ),
        "accuracy_strict": proportion(right, n, _NO_IMAGES),
        "balanced_accuracy_strict": balanced,
        "tpr_strict": proportion(counts.fake_fake, fakes, operating_points.NO_FAKES),
        "tnr_strict": proportion(counts.real_real, reals, operating_points.NO_REALS),
    }


def classification_report(
    fake_fake: int, fake_real: int, real_fake: int, real_real: int
) -> dict[str, Any]:
    """scikit-learn's report (`output_dict=True`) from counts of images, by truth and then verdict.

    Under `fake`, `real`, `macro avg` and `weighted avg` stand precision, recall, f1-score and
    support; `accuracy` is one number. What would divide by 0 is None, and so is an average of it,
    where scikit-learn writes 0.
    """
    fake = _class_report(fake_fake, fake_fake + fake_real, fake_fake + real_fake)
    real = _class_report(real_real, real_real + real_fake, real_real + fake_real)
    return {
        "fake": fake,
        "real": real,
        "accuracy": _ratio(fake_fake + real_real, fake_fake + fake_real + real_fake + real_real),
        "macro avg": _average(fake, real, 1, 1),
        "weighted avg": _average(fake, real, fake["support"], real["support"]),
    }


def _by_confidence(
    scores: ScoreHistogram, threshold: float, strict: bool
) -> tuple[ScoreHistogram, ScoreHistogram]:
    """The images of a class that are taken for real, and for fake, by how far their scores lie from
    the threshold.
    """
    split = int(np.searchsorted(scores.values, threshold, "right" if strict else "left"))
    below = ScoreHistogram((threshold - scores.values[:split])[::-1], scores.counts[:split][::-1])
    return below, ScoreHistogram(scores.values[split:] - threshold, scores.counts[split:])


def _class_report(right: int, there: int, named: int) -> dict[str, Any]:
    f1 = _ratio(2 * right, there + named)
    return {
        "precision": _ratio(right, named),
        "recall": _ratio(right, there),
        "f1-score": f1,
        "support": there,
    }


def _average(
    fake: dict[str, Any], real: dict[str, Any], fake_weight: int, real_weight: int
) -> dict[str, Any]:
    """Averages by weight; a class of no weight does not count."""
    parts = [(one, weight) for one, weight in ((fake, fake_weight), (real, real_weight)) if weight]
    total = fake_weight + real_weight
    means = {
        key: None
        if not parts or any(one[key] is None for one, _ in parts)
        else sum(one[key] * weight for one, weight in parts) / total
        for key in ("precision", "recall", "f1-score")
    }
    return means | {"support": fake["support"] + real["support"]}


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None
