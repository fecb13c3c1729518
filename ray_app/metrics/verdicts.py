"""Figures of verdicts, of which some are abstentions, and scikit-learn's classification report. Knows counts; knows no scores."""

from dataclasses import dataclass
from typing import Any

from ray_app.metrics.figure import Figure, undefined
from ray_app.metrics.intervals import proportion
from ray_app.metrics.operating import NO_FAKES, NO_REALS, ONE_CLASS

_NO_IMAGES = "there are no images"


@dataclass(frozen=True, slots=True)
class VerdictCounts:
    """Images by what they are and, behind it, their verdict; `unscored`: those without one, such as files that cannot be read."""

    fake_fake: int = 0
    fake_real: int = 0
    fake_abstain: int = 0
    real_fake: int = 0
    real_real: int = 0
    real_abstain: int = 0
    fake_unscored: int = 0
    real_unscored: int = 0


def abstaining(counts: VerdictCounts) -> dict[str, Figure]:
    """How many images are decided and how well, and the same with abstentions and unscored images counted wrong (`_strict`).

    `coverage` is the share of all images, unscored ones among them, whose verdict is fake or real.
    """
    fakes_decided, reals_decided = counts.fake_fake + counts.fake_real, counts.real_fake + counts.real_real
    fakes = fakes_decided + counts.fake_abstain + counts.fake_unscored
    reals = reals_decided + counts.real_abstain + counts.real_unscored
    right, decided, n = counts.fake_fake + counts.real_real, fakes_decided + reals_decided, fakes + reals
    balanced = Figure((counts.fake_fake / fakes + counts.real_real / reals) / 2, n=n) if fakes and reals else undefined(ONE_CLASS, n)
    return {
        "coverage": proportion(decided, n, _NO_IMAGES),
        "accuracy_of_decided": proportion(right, decided, "no image is decided"),
        "tpr_of_decided": proportion(counts.fake_fake, fakes_decided, "no fake is decided" if fakes else NO_FAKES),
        "tnr_of_decided": proportion(counts.real_real, reals_decided, "no real is decided" if reals else NO_REALS),
        "accuracy_strict": proportion(right, n, _NO_IMAGES),
        "balanced_accuracy_strict": balanced,
        "tpr_strict": proportion(counts.fake_fake, fakes, NO_FAKES),
        "tnr_strict": proportion(counts.real_real, reals, NO_REALS),
    }


def classification_report(fake_fake: int, fake_real: int, real_fake: int, real_real: int) -> dict[str, Any]:
    """scikit-learn's report (`output_dict=True`) from counts of images, by truth and then verdict.

    Under `fake`, `real`, `macro avg` and `weighted avg` stand precision, recall, f1-score and support; `accuracy` is one number. What
    would divide by 0 is None, and so is an average of it, where scikit-learn writes 0.
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


def _class_report(right: int, there: int, named: int) -> dict[str, Any]:
    f1 = _ratio(2 * right, there + named)
    return {"precision": _ratio(right, named), "recall": _ratio(right, there), "f1-score": f1, "support": there}


def _average(fake: dict[str, Any], real: dict[str, Any], fake_weight: int, real_weight: int) -> dict[str, Any]:
    """Averages by weight; a class of no weight does not count."""
    parts = [(one, weight) for one, weight in ((fake, fake_weight), (real, real_weight)) if weight]
    total = fake_weight + real_weight
    means = {
        key: None if not parts or any(one[key] is None for one, _ in parts) else sum(one[key] * weight for one, weight in parts) / total
        for key in ("precision", "recall", "f1-score")
    }
    return means | {"support": fake["support"] + real["support"]}


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None
