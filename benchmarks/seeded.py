"""Random weights in the published files' own formats, so that tests and benchmarks run published
networks without their weights.

Knows cards and file formats. The scores mean nothing; the work per image is the published network's
own.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
import yaml

from ray_app.detectors import DetectorCard, load_card
from ray_app.detectors.card import Weights
from ray_app.detectors.detector import BACKBONE, build_network

# What the published file writes before the network's own key names.
PUBLISHED_PREFIX = {"community-forensics-vits384": "vit."}


def seeded_state(card: DetectorCard, seed: int = 0) -> dict[str, torch.Tensor]:
    """The state dict of the card's own file as its library initialises it under a seed, under the
    published key names.
    """
    own = {
        key: tensor
        for key, tensor in _state(card, seed).items()
        if card.backbone is None or not key.startswith(f"{BACKBONE}.")
    }
    prefix = PUBLISHED_PREFIX.get(card.name, "")
    return {prefix + key.removeprefix(card.weights.prefix): tensor for key, tensor in own.items()}


def seeded_backbone(card: DetectorCard, seed: int = 0) -> dict[str, torch.Tensor]:
    """The same for the file of its backbone; equal for all cards that name one and a seed."""
    assert card.backbone is not None
    # a library's own network, under its names
    inner = f"{BACKBONE}.network." if card.family == "frozen-linear" else f"{BACKBONE}."
    own = {
        key.removeprefix(inner): tensor
        for key, tensor in _state(card, seed).items()
        if key.startswith(inner)
    }
    # what is selected keeps its name otherwise
    prefix = card.backbone.weights.select if card.backbone.weights.strip_prefixes else ""
    return {prefix + key: tensor for key, tensor in own.items()}


def _state(card: DetectorCard, seed: int) -> dict[str, torch.Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build_network(card)
    return {key: tensor.contiguous() for key, tensor in network.state_dict().items()}


def write_weights(
    path: Path, state: Mapping[str, torch.Tensor], *, wrapper: str | None = None, prefix: str = ""
) -> Path:
    """Save a state dict by the file's suffix: .safetensors, or .pth, there optionally under
    `wrapper` beside other training state.
    """
    named = {prefix + key: tensor for key, tensor in state.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(named, path)
    else:
        torch.save(
            {wrapper: named, "epoch": 3, "optimizer": {"state": {}}} if wrapper else named, path
        )
    return path


def local_weights(weights: Weights, path: Path) -> Weights:
    """Weights as a card describes them, but this local file, known by its own hash."""
    form = "safetensors" if path.suffix == ".safetensors" else "torch"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    here = {
        "uri": str(path.resolve()),
        "sha256": digest,
        "format": form,
        "config": None,
        "unverified": None,
        "beside": {},
    }
    return weights.model_copy(update=here)


def card_with_weights(card: DetectorCard, path: Path) -> DetectorCard:
    """The card with its weights replaced by a local file, verified by that file's own hash."""
    return card.model_copy(update={"weights": local_weights(card.weights, path)})


def seeded_card(name_or_card: str | DetectorCard, folder: Path, seed: int = 0) -> DetectorCard:
    """A card (or a shipped one by name) with seeded weights written into `folder` in the published
    format, ready for `load_detector`.
    """
    card = load_card(name_or_card) if isinstance(name_or_card, str) else name_or_card
    suffix = "safetensors" if card.weights.format == "safetensors" else "pth"
    wrapper = next(iter(card.weights.unwrap), None)
    path = write_weights(
        folder / f"{card.name.replace(':', '-')}.{suffix}",
        seeded_state(card, seed),
        wrapper=wrapper,
    )
    if card.backbone is not None:
        shared = write_weights(
            folder / f"{card.backbone.name}.safetensors", seeded_backbone(card, seed)
        )
        backbone = card.backbone.model_copy(
            update={"weights": local_weights(card.backbone.weights, shared)}
        )
        card = card.model_copy(update={"backbone": backbone})
    return card_with_weights(card, path)


def write_card(card: DetectorCard, path: Path) -> Path:
    """A card as YAML, for commands that take a path."""
    path.write_text(
        yaml.safe_dump(
            card.model_dump(mode="json", exclude_none=True), sort_keys=False, allow_unicode=True
        )
    )
    return path
