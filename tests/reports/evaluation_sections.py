"""Sections of an evaluation that need masks, an identifier or pictures, with made-up figures."""

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

from ray_app.metrics.intervals import proportion
from ray_app.metrics.values import MetricValue, undefined
from tests.reports.training_example import picture


def further() -> dict[str, Any]:
    """Masks, prompts, groups of generators, and overlays."""
    rng = np.random.default_rng(11)
    f1 = rng.beta(3, 2, 120)
    masks = {
        "pixel_f1": _mean(f1),
        "pixel_iou": _mean(f1 / (2 - f1)),
        "pixel_auc": undefined("a mask without an unaltered pixel has no AUC", 120).to_dict(),
        "pixel_accuracy": _mean(0.9 + f1 / 12),
    }
    return {
        "localization": {
            "policy": {"empty": "skip", "threshold": 0.5, "name": "opensdi"},
            "systems": [
                {
                    "name": "maskclip",
                    "resolution": "network",
                    "figures": masks,
                    "views": [],
                    "counts": {},
                }
                | {
                    "generators": [
                        {"name": "flux-1-fill, edits", "kind": "local", "n": 120, "figures": masks}
                    ]
                }
                | {"imdlbenco": {"counts": {}, "modes": {"origin": masks, "reverse": masks}}}
                | {
                    "opensdi": {
                        "counts": {},
                        "figures": {key: masks[key] for key in ("pixel_f1", "pixel_iou")},
                    }
                }
            ],
        },
        "prompts": {
            "clip_image": _mean(rng.beta(6, 2, 200)),
            "clip_image_chance": undefined(
                "needs images made from the predicted prompts: --regenerated"
            ).to_dict(),
            "with_both": 200,
            "notes": ["LPIPS is not computed."],
        },
        "groups": {"by": "identifier", "groups": [group(rng, *one) for one in GROUPS]},
        "overlays": [
            {
                "image_id": index,
                "uri": f"s3://desk/edits/{index:04d}.png",
                "f1": float(f1[index]),
                "iou": float(f1[index] / (2 - f1[index])),
            }
            | {"picture": base64.b64encode(overlay(index)).decode()}
            for index in range(6)
        ],
    }


GROUPS = (
    ("generators of the training", "in", ["flux-1-dev", "ideogram-3.0", "sd-3.5"], 1240),
    ("other generators of their families", "out", ["flux-1.1-pro"], 310),
    ("other families", "out", ["nano-banana-pro", "midjourney-7"], 170),
)


def group(rng: Any, name: str, distribution: str, generators: list[str], n: int) -> dict[str, Any]:
    """A group of fakes; those that nobody could name have no accuracy."""
    named = (
        _share(n - n // 4, n)
        if distribution == "in"
        else undefined("no image of a known generator").to_dict()
    )
    figures = {
        "accuracy": named,
        "top_3": named,
        "family_accuracy": _share(n // 2, n),
        "abstained": _share(n // 9, n),
    }
    detection = {"ensemble": {"tpr": _share(n - n // 8, n), "auc": _mean(rng.beta(9, 1, 30))}}
    return {"name": name, "distribution": distribution, "total": False, "generators": generators, "n": n, "detection": detection,
            "identification": figures, "prompts": {"clip_image": _mean(rng.beta(2, 6, 60))}}  # fmt: skip


def _share(right: int, n: int) -> dict[str, Any]:
    return proportion(right, n, "").to_dict()


def _mean(values: Any) -> dict[str, Any]:
    half = 1.96 * float(np.std(values)) / len(values) ** 0.5
    middle = float(np.mean(values))
    return MetricValue(middle, middle - half, middle + half, len(values), "jackknife").to_dict()


def overlay(seed: int) -> bytes:
    """A soft picture with what is altered outlined by light and what was marked by red."""
    rng = np.random.default_rng(seed)
    pixels = np.array(Image.open(io.BytesIO(picture(seed, 192))).convert("RGB"))
    top, left = rng.integers(20, 90, 2)
    pixels[top : top + 70, left : left + 70] = pixels[top : top + 70, left : left + 70] // 2 + 120
    pixels[top + 12 : top + 78, left + 9 : left + 74, 0] = 235
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "JPEG")
    return data.getvalue()
