"""A training as the engine tells it, with figures computed from scores that look like a network's."""

import io
import math
from typing import Any

import numpy as np
from PIL import Image

from ray_app.metrics import detection_figures

GENERATORS = {
    "flux-1-dev": 2.4,
    "sdxl-turbo": 3.4,
    "midjourney-6": 1.1,
    "stylegan3": 4.5,
    "gpt-image-1": 0.4,
}
SOURCES = ("real:camera", "real:scan")
STEPS = 2000


def example_facts(**changes: Any) -> dict[str, Any]:
    return {**_FACTS, **changes}


def picture(seed: int, side: int = 96) -> bytes:
    """A small JPEG of soft colours."""
    coarse = np.random.default_rng(seed).integers(30, 230, (5, 5, 3), np.uint8)
    data = io.BytesIO()
    Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(data, "JPEG")
    return data.getvalue()


def figures(skill: float, seed: int, n: int = 1500) -> dict[str, Any]:
    """Figures of a network of that skill, 0 to 1."""
    rng = np.random.default_rng(seed)
    names = rng.choice([*SOURCES, *SOURCES, *SOURCES, *GENERATORS], n)
    middles = np.array([GENERATORS.get(name, -2.6) for name in names])
    labels = np.array([name in GENERATORS for name in names], int)
    return detection_figures(skill * middles + rng.normal(0, 1.3, n), labels, names.tolist())


def _history() -> list[dict[str, float]]:
    rng = np.random.default_rng(1)
    return [
        {
            "step": step,
            "loss": 0.08 + 0.62 * math.exp(-step / 500) * float(rng.lognormal(0, 0.25)),
            "rate": 1e-4 * min(1, (step + 1) / 100) * (1 + math.cos(math.pi * step / STEPS)) / 2,
            "gradient_norm": 0.4 + 2 * math.exp(-step / 300) * float(rng.lognormal(0, 0.4)),
            "images_per_s": 118 + float(rng.normal(0, 4)),
        }
        for step in range(STEPS)
    ]


def _mistakes() -> list[dict[str, Any]]:
    fakes = [
        ("fake", name, -3.1 + 0.2 * index)
        for index, name in enumerate(["gpt-image-1", "midjourney-6"] * 5)
    ]
    reals = [("real", "real:scan", 2.9 - 0.3 * index) for index in range(5)]
    return [
        {
            "jpeg": picture(index),
            "label": label,
            "generator": name,
            "score": score,
            "name": f"s3://lab/validation/{name}/{index:06d}.jpg",
        }
        for index, (label, name, score) in enumerate(fakes + reals)
    ]


_FACTS: dict[str, Any] = {
    "name": "openfake-swinv2",
    "title": "OpenFake SwinV2 small, fine-tuned on the picture desk’s set",
    "out": "s3://lab/touchstone/openfake-swinv2",
    "metric": "worst_generator_auc",
    "best_step": 1600,
    "steps": STEPS,
    "seconds": 5214.0,
    "history": _history(),
    "validations": [
        {"step": step, **figures(1.2 * (1 - math.exp(-step / 500)) - (step > 1600) * 0.15, 7)}
        for step in range(200, STEPS + 1, 200)
    ],
    "validation": figures(1.2 * (1 - math.exp(-3.2)), 7),
    "test": figures(1.0, 8),
    "unreadable": 3,
    "calibration": {"slope": 0.91, "intercept": -0.12},
    "calibration_error": 0.0143,
    "mistakes": _mistakes(),
    "data": {
        "splits": {
            name: {"images": 2 * n, "real": n, "fake": n, "digest": "5e" * 32}
            | {
                "generators": {"real:camera": n // 2, "real:scan": n - n // 2}
                | {generator: n // 5 for generator in generators}
            }
            for name, n, generators in (
                ("train", 48_000, list(GENERATORS)[:3]),
                ("validation", 3_000, list(GENERATORS)[2:]),
                ("test", 3_000, GENERATORS),
            )
        },
        "set_aside": {
            "images": 412,
            "why": {"fakes of held-out generators in groups that stay": 412},
        },
        "leakage": {
            "checked": {"sha256": True, "phash": False},
            "unhashed": {"sha256": 2, "phash": 102_000},
            "pairs": {
                "validation in train": {
                    "image_id": 0,
                    "sha256": 3,
                    "phash": 0,
                    "group": 0,
                    "examples": ["s3://lab/set/scan/0007.png"],
                },
                "test in train": {
                    "image_id": 0,
                    "sha256": 0,
                    "phash": 0,
                    "group": 0,
                    "examples": [],
                },
                "test in validation": {
                    "image_id": 0,
                    "sha256": 0,
                    "phash": 0,
                    "group": 0,
                    "examples": [],
                },
            },
        },
    },
    "recipe": {
        "name": "openfake-swinv2",
        "detector": "openfake-swinv2-small",
        "source": "OpenFake, arXiv:2509.09495",
        "departures": ["bf16 in place of fp16"],
        "loop": {"batch": 64, "epochs": 10, "seed": 0},
        "optimiser": {"name": "adamw", "rate": 1e-4, "weight_decay": 0.05},
    },
    "environment": {
        "touchstone": "0.5.0",
        "torch": "2.14.0",
        "workers": 2,
        "device": "NVIDIA H200",
    },
    "card": {
        "name": "openfake-swinv2-ours",
        "licence": "CC-BY-NC-4.0",
        "calibration": {"slope": 0.91, "intercept": -0.12},
    },
}
