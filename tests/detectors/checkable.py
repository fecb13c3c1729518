"""A small timm card with seeded weights, an image and its score by a path of its own: all that
`detectors verify` looks at.
"""

import hashlib
import math

import numpy as np
import timm
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

NAME = "checkable"
MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]


def write_checkable(folder, **changes):
    """card.yaml, checkable.safetensors and images/any-name.png in `folder`; returns the card's
    path. `changes` replace keys of the card.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / "checkable.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        network = timm.create_model("test_vit", num_classes=1, img_size=64)
        network.head.weight.data.normal_(std=0.1)
    save_file(network.state_dict(), weights)
    image = write_image(folder / "images" / "any-name.png")
    card = {
        "name": NAME,
        "title": "A small ViT for tests",
        "family": "timm-classifier",
        "architecture": {"name": "test_vit", "arguments": {"img_size": 64}},
        "preprocessing": {
            "resize": {"mode": "squash", "size": 64},
            "filter": "bilinear",
            "mean": MEAN,
            "std": STD,
        },
        "weights": {"uri": weights.name, "sha256": sha256(weights)},
        "output": {"sign": 1},
        "size": {
            "parameters": sum(p.numel() for p in network.parameters()),
            "tensors": len(load_file(weights)),
            "gmac": 0.01,
        },
        "licence": "Apache-2.0",
        "terms": "permissive",
        "citation": "none",
        "source": "https://example.org/checkable",
        "training_data": {"name": "none", "licence": "none"},
        "golden": [golden_of(image, published_probability(weights, image))],
    }
    path = folder / "card.yaml"
    path.write_text(yaml.safe_dump(card | changes))
    return path


def write_image(path):
    """Noise that is resized in one direction only: Pillow's versions differ in which direction they
    take first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(3).integers(0, 256, (90, 64, 3), dtype=np.uint8)).save(
        path
    )
    return path


def golden_of(image, probability, tolerance=0.0001):
    return {
        "name": "published.png",
        "sha256": sha256(image),
        "probability": probability,
        "tolerance": tolerance,
        "source": "the authors' page",
    }


def published_probability(weights, image):
    """What an author's own script would print: timm, Pillow and a sigmoid, none of our code."""
    network = timm.create_model("test_vit", num_classes=1, img_size=64).eval()
    network.load_state_dict(load_file(weights))
    pixels = (
        np.asarray(
            Image.open(image).convert("RGB").resize((64, 64), Image.Resampling.BILINEAR), np.float64
        )
        / 255
    )
    normalised = torch.from_numpy((pixels - MEAN) / STD).permute(2, 0, 1)[None].float()
    with torch.inference_mode():
        return 1 / (1 + math.exp(-network(normalised).item()))


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()
