"""The training of an identifier as `training.identify` tells it, of made-up figures."""

from typing import Any

CLASSES = {"flux.1-dev": 4200, "sdxl": 4100, "sdxl_1.0/juggernaut-xl": 3900, "midjourney-6": 3000}
FAMILIES = {
    "flux.1-dev": "flux.1_d",
    "sdxl": "sdxl_1.0",
    "sdxl_1.0/juggernaut-xl": "sdxl_1.0",
    "midjourney-6": "midjourney",
}


def figure(value: float | None, spread: float = 0.02, why: str = "") -> dict[str, Any]:
    low, high = (
        (None, None) if value is None else (max(0.0, value - spread), min(1.0, value + spread))
    )
    return {
        "value": value,
        "low": low,
        "high": high,
        "n": 900,
        "method": "clopper-pearson",
        "why": why,
    }


def example_identifier(**changes: Any) -> dict[str, Any]:
    return {
        "schema": 1, "method": "identify", "name": "makers", "title": "Which of four generators", "out": "s3://lab/makers/",
        "detector": "univfd", "head": "linear", "level": "generator", "classes": CLASSES, "families": FAMILIES, "left_out": {},
        "held_out": ["gaudi"], "c": 1.0, "log_losses": {"1": 0.3}, "temperature": 1.234, "calibration_note": None,
        "open_set": {"method": "energy", "threshold": -4.2, "abstains": 0.05, "n": 800},
        "validation": _split(0.9, unknown=False), "test": _split(0.87, unknown=True),
        "recipe": {"name": "makers", "identify": {"head": "linear", "held_out": ["gaudi"]}, "loop": {"seed": 0}},
        "environment": {"touchstone": "0.8.0", "workers": 2}, "card": {"name": "makers", "licence": "MIT", "weights": "5e" * 32},
        "unreadable": 0, "seconds": 74.2, **changes,
    }  # fmt: skip


def _split(accuracy: float, *, unknown: bool) -> dict[str, Any]:
    names = list(CLASSES)
    figures = {
        **{name: figure(accuracy) for name in ("accuracy", "macro_f1", "weighted_f1", "accuracy_of_named")},
        **{name: figure(0.97) for name in ("top_3", "top_5", "family_accuracy", "family_macro_f1")},
        "calibration_error": figure(0.02, 0.01),
        "abstained": figure(0.061),
        **{name: figure(0.71 if unknown else None, why="no image of an unknown generator")
           for name in ("unknown_abstained", "open_set_auroc")},
        "reals_abstained": figure(None, why="no real image, or reals are a class"),
    }  # fmt: skip
    return {
        "n_known": 900, "n_unknown": 120 * unknown, "n_real": 0, "figures": figures,
        "classes": [{"name": name, "n": 225, "recall": figure(accuracy), "precision": figure(accuracy), "f1": figure(accuracy),
                     "abstained": figure(0.06)} for name in names],
        "pairs": [[names[1], names[2], 41], [names[0], names[3], 7]],
        "unknown": [{"name": "gaudi", "n": 120, "abstained": figure(0.71), "nearest": names[3], "nearest_n": 30}] * unknown,
    }  # fmt: skip
