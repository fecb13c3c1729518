"""Recipes of small networks, and labelled batches drawn from a step's number: what the tests of
learning train.
"""

import numpy as np

from ray_app.training.config import Recipe

VIT = {
    "architecture": {
        "name": "vit_tiny_patch16_224",
        "arguments": {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2},
    },
    "preprocessing": {"resize": {"mode": "squash", "size": 32}, "center_crop": None},
}
RESIDUAL = {"preprocessing": {"center_crop": 32}}
SWIN = {
    "architecture": {
        "arguments": {
            "image_size": 32,
            "patch_size": 2,
            "embed_dim": 16,
            "depths": [2, 2],
            "num_heads": [2, 2],
            "window_size": 4,
        }
        | {"pretrained_window_sizes": [0, 0], "drop_path_rate": 0.2}
    },
    "preprocessing": {"resize": {"size": 32}},
}
SIGLIP = {
    "architecture": {
        "arguments": {
            "vision_config": {
                "image_size": 32,
                "patch_size": 8,
                "hidden_size": 32,
                "num_hidden_layers": 2,
            }
            | {"num_attention_heads": 2, "intermediate_size": 64}
        }
    },
    "preprocessing": {"resize": {"size": 32}},
}
# transformers' own, whose tensors its version 5 calls otherwise than the files that it reads and
# writes.
HF_VIT = {
    "architecture": {
        "name": "vit",
        "arguments": {
            "image_size": 32,
            "patch_size": 8,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
        }
        | {"intermediate_size": 64, "vision_config": None},
    },
    "preprocessing": {
        "resize": {"mode": "short_side", "size": 40},
        "filter": "bilinear",
        "center_crop": 32,
    },
}
MASKCLIP = {
    "architecture": {
        "arguments": {
            "image_size": 64,
            "vision": {
                "image_size": 28,
                "patch_size": 14,
                "width": 64,
                "layers": 24,
                "heads": 2,
                "embed_dim": 32,
            },
            "text": {"width": 32, "layers": 1, "heads": 2, "embed_dim": 32, "vocabulary": 49408},
            "mae_width": 32,
            "mae_heads": 2,
            "decoder_width": 32,
        }
    },
    "preprocessing": {"resize": {"size": 64}},
}
# By recipe that reads a published set: a card of its family, tiny.
TINY = {
    "community-forensics": VIT | {"preprocessing": {"resize": {"size": 36}, "center_crop": 32}},
    "openfake-swinv2": SWIN,
    "openfake-swinv2-v2": SWIN,
    "siglip2": SIGLIP,
    "maskclip": MASKCLIP,
}

DETECTORS = {
    "vit": ("community-forensics-vits384", VIT),
    "residual": ("touchstone-tiny", RESIDUAL),
    "swin": ("openfake-swinv2-small", SWIN),
    "siglip": ("siglip2-open-deepfake", SIGLIP),
    "hf-vit": ("siglip2-open-deepfake", HF_VIT),
    "maskclip": ("maskclip", MASKCLIP),
}


def recipe(kind="vit", *, batch=8, precision="fp32", loop=None, **sections):
    """A recipe that begins from nothing; `sections` replace or add to it."""
    detector, card = DETECTORS[kind]
    loss = {"name": "maskclip" if kind == "maskclip" else "binary"}
    facts = {
        "name": f"small-{kind}",
        "detector": detector,
        "card": card,
        "initial": {"start": "random"},
        "data": {},
        "loss": loss,
    }
    facts |= {
        "optimiser": {"rate": 1e-3},
        "loop": {"batch": batch, "steps": 50, "precision": precision, **(loop or {})},
    }
    return Recipe.model_validate(facts | sections)


def batch(step, count=8, side=32, *, masks=False, unusable=()):
    """The batch of a step: pairs of which the second is the fake, with every other line darkened;
    the rows in `unusable` are black.
    """
    rng = np.random.default_rng([3, step])
    label = np.arange(count) % 2
    image = rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    image[label == 1, ::2] //= 2
    usable = ~np.isin(np.arange(count), unusable)
    image[~usable] = 0
    made = {
        "image": image,
        "label": label,
        "usable": usable,
        "group": step * count + np.arange(count) // 2,
    }
    made |= {
        "row": step * count + np.arange(count),
        "detail": np.where(usable, "", "corrupt_image: no bytes"),
    }
    if masks:
        made["mask"] = np.zeros((count, side, side), np.uint8)
        made["mask"][label == 1, : side // 2] = 1
        made["edge"] = np.zeros_like(made["mask"])
        made["edge"][label == 1, side // 2 - 2 : side // 2 + 2] = 1
    return made


def share(made, rank, world):
    """One process's part of a batch."""
    size = len(made["label"]) // world
    return {name: values[rank * size : (rank + 1) * size] for name, values in made.items()}
