"""An audit of labels as `touchstone data labels` writes it, of made-up findings, and pictures for it."""

import base64
import io

import numpy as np
from PIL import Image

DIFFERENCES = [
    ("format", 1.0, 0.0, "strong", "All fakes are PNG, and none of the real images."),
    ("camera", 0.14, 2e-5, "notable", "All fakes name no camera in EXIF, and 86 % of the real images."),
    ("mode", 0.01, 1.0, "none", "All fakes have the colour mode RGB, and over 99 % of the real images."),
]


def figure(value, interval=(0.97, 0.99), why=None):
    return {"value": value, "interval": None if value is None else list(interval), "method": "delong", "n": 4000, "why": why}


def difference(name, effect, p, strength, text):
    return {"name": name, "n_real": 1991, "n_fake": 2009, "effect": effect, "p": p, "p_holm": p, "value": "PNG", "real": 0.0,
            "fake": 1.0, "psi": None, "medians": None, "strength": strength, "text": text}  # fmt: skip


def image(number, label):
    return {"image_id": number, "uri": f"s3://bucket/photographs/{number:06}.png", "member": f"{number}.png", "label": label}


def example_labels(*, found=True):
    """`found`: whether anything was."""
    differences = [difference(*one) for one in DIFFERENCES] if found else []
    pairs = [[image(1, "real"), image(2, "fake")], [image(3, "real"), image(4, "fake")]] if found else []
    suspects = [
        image(number, ("real", "fake")[number % 2])
        | {"generator": "flux", "likely_label": ("fake", "real")[number % 2], "confidence": 0.999 - number / 900}
        for number in range(5, 17)
    ]
    return {
        "schema": 1, "version": "0.9.0", "made_at": "2026-11-22T02:00:00+00:00", "at": "s3://bucket/run",
        "labels": "s3://bucket/index", "warnings": [], "n": 4000, "n_real": 1991, "n_fake": 2009, "known": ["format"],
        "headline": DIFFERENCES[0][4] if found else "Nothing alarming in what could be looked at.",
        "shortcut": {"auc": figure(0.982) if found else figure(None, why="all files are alike in their metadata"),
                     "features": ["format", "width"], "confounded": found,
                     "finding": "a shortcut, since the interval lies above 0.5" if found else "not known: all files are alike"},
        "differences": differences,
        "generators": [{"generator": "flux", "n": 1200, "strongest": differences[0] if found else None, "why": None},
                       {"generator": "rare", "n": 3, "strongest": None, "why": "too few images"}],
        "conflicts": [
            {"kind": "bytes", "what": "the same bytes", "known": 4000, "values": 2 * found, "images": 4 * found, "examples": pairs},
            {"kind": "looks", "what": "pictures that look alike", "known": 0, "values": 0, "images": 0, "examples": []},
        ],
        "suspicious": {"source": "the embeddings of unifd", "n": 4000, "left_out": 0, "auc": figure(0.953),
                       "thresholds": [0.8, 0.8], "expected": {"real": 71.4, "fake": 83.2}, "count": {"real": 70, "fake": 77},
                       "why": None if found else "the classifier tells the classes apart with an AUC of 0.55 only",
                       "images": suspects if found else []},
        "remarks": ["A doubted label is not a wrong one: look at them."],
    }  # fmt: skip


def example_pictures():
    """Small pictures of its images, by id."""
    rng, made = np.random.default_rng(0), {}
    for number in range(1, 17):
        buffer = io.BytesIO()
        size = (160, 107) if number % 3 else (96, 160)
        Image.fromarray(rng.integers(0, 255, (4, 5, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG")
        made[number] = base64.b64encode(buffer.getvalue()).decode()
    return made
