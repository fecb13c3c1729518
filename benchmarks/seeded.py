"""Random weights in the published files' own formats, so that tests and benchmarks run published networks without their weights.

Knows cards and file formats. The scores mean nothing; the work per image is the published network's own.
"""

from collections.abc import Mapping
from pathlib import Path

import torch

from ray_app.detectors import DetectorCard, load_card, verify_weights
from ray_app.detectors.families import build_network

# What the published file writes before the network's own key names.
PUBLISHED_PREFIX = {"community-forensics-vits384": "vit."}


def seeded_state(card: DetectorCard, seed: int = 0) -> dict[str, torch.Tensor]:
    """The state dict of the card's network as its library initialises it under a seed, under the published key names."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build_network(card)
    prefix = PUBLISHED_PREFIX.get(card.name, "")
    return {prefix + key: tensor.contiguous() for key, tensor in network.state_dict().items()}


def write_weights(path: Path, state: Mapping[str, torch.Tensor], *, wrapper: str | None = None, prefix: str = "") -> Path:
    """Save a state dict by the file's suffix: .safetensors, or .pth, there optionally under `wrapper` beside other training state."""
    named = {prefix + key: tensor for key, tensor in state.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(named, path)
    else:
        torch.save({wrapper: named, "epoch": 3, "optimizer": {"state": {}}} if wrapper else named, path)
    return path


def card_with_weights(card: DetectorCard, path: Path) -> DetectorCard:
    """The card with its weights replaced by a local file, verified by that file's own hash."""
    form = "safetensors" if path.suffix == ".safetensors" else "torch"
    unchecked = card.weights.model_copy(
        update={"uri": str(path.resolve()), "sha256": None, "format": form, "config": None, "unverified": "seeded"}
    )
    card = card.model_copy(update={"weights": unchecked})
    verified = unchecked.model_copy(update={"sha256": verify_weights(card, path), "unverified": None})
    return card.model_copy(update={"weights": verified})


def seeded_card(name: str, folder: Path, seed: int = 0) -> DetectorCard:
    """A shipped card with seeded weights written into `folder` in the published format, ready for `load_detector`."""
    card = load_card(name)
    path = write_weights(folder / f"{name}.safetensors", seeded_state(card, seed))
    return card_with_weights(card, path)
