"""A CLIP of 0.1 M parameters in the published file format, and the card of a detector on it."""

import torch
import yaml
from safetensors.torch import save_file

from ray_app.detectors import load_card
from ray_app.detectors.families.clip_tower import Clip, VisionTower

TOWER = {
    "image_size": 28,
    "patch_size": 14,
    "width": 64,
    "layers": 2,
    "heads": 4,
    "embed_dim": 32,
    "quick_gelu": True,
}
TEXT = {"vocabulary": 50, "context": 9, "width": 48, "layers": 2, "heads": 4, "embed_dim": 32}


def small_clip(seed=0, **tower):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        clip = Clip(VisionTower(**TOWER | tower), quick_gelu=True, **TEXT)
        for name, parameter in clip.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.1)
    return clip.eval().requires_grad_(False)


def small_card(folder, *, feature="class-token", normalise=True, side=28):
    """Write clip.safetensors, the head's weights.pth and card.yaml; returns the card and its path."""
    clip = small_clip()
    save_file(
        {key: tensor.contiguous() for key, tensor in clip.state_dict().items()},
        folder / "clip.safetensors",
    )
    width = TOWER["width"] if feature == "class-token" else TOWER["embed_dim"]
    head = {"fc.weight": torch.linspace(-1, 1, width)[None], "fc.bias": torch.tensor([0.25])}
    torch.save({"model": head}, folder / "weights.pth")
    data = {
        "name": "small-clip",
        "title": "A small CLIP for tests",
        "family": "clip-linear",
        "architecture": {"arguments": {"feature": feature, "normalise": normalise}},
        "backbone": {
            "name": "small-tower",
            "title": "a small tower",
            "architecture": {"arguments": TOWER},
            "weights": {
                "uri": "clip.safetensors",
                "unverified": "seeded",
                "select": "visual.",
                "strip_prefixes": ["module.", "visual."],
            },
            "licence": "MIT",
            "source": "this test",
        },
        "preprocessing": {"resize": {"mode": "squash", "size": side}},
        "weights": {
            "uri": "weights.pth",
            "unverified": "seeded",
            "format": "torch",
            "unwrap": ["model", "state_dict"],
            "strip_prefixes": ["module."],
        },
        "output": {"sign": 1},
        "licence": "MIT",
        "citation": "none",
        "source": "this test",
        "training_data": {"name": "none", "licence": "none"},
    }
    path = folder / "card.yaml"
    path.write_text(yaml.safe_dump(data))
    return load_card(path), path
