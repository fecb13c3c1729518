"""DRCT's two networks against the authors' own code, on narrow files in the published format."""

import pytest
import torch

from benchmarks.seeded import local_weights, seeded_backbone, write_weights
from ray_app.detectors import load_card, load_detector
from ray_app.detectors.detector import build_network
from ray_app.detectors.preprocessing import Preprocessing
from tests.detectors.golden import check_scores
from tests.make.networks.fill import fill, source, with_arguments, with_tower

# A ConvNeXt, and a CLIP of two layers whose projection is 768 wide.
NARROW = {
    "drct-convnext-b": {"width": 1024, "depths": [1, 1, 2, 1], "dims": [16, 32, 48, 64]},
    "drct-clip-vit-l14": {"width": 64, "layers": 2, "heads": 1, "embed_dim": 768},
}
# In addition to CLIP's image tower, the authors' file has the heads and the text tower.
BESIDE = {
    "model.fc.weight": (1024, 768),
    "model.fc.bias": (1024,),
    "fc.weight": (2, 1024),
    "fc.bias": (2,),
    "model.model.logit_scale": (),
    "model.model.text_projection": (64, 768),
}


def seeded_narrow(name, folder):
    """Return the card of the narrow network with filled files in the published formats."""
    card = load_card(name)
    if card.backbone is None:
        card = with_arguments(card, NARROW[name])
        state = fill(build_network(card).state_dict())
    else:
        card = with_tower(card, **NARROW[name])
        network = build_network(card)
        tower = network.backbone.state_dict()
        shapes = {key: torch.empty(shape) for key, shape in BESIDE.items()}
        state = fill(shapes | {f"model.model.visual.{key}": tower[key] for key in tower})
        visual = {key: state[f"model.model.{key}"] for key in seeded_backbone(card)}
        shared = write_weights(folder / "clip.safetensors", visual)
        backbone = {"weights": local_weights(card.backbone.weights, shared)}
        card = card.model_copy(update={"backbone": card.backbone.model_copy(update=backbone)})
    weights = local_weights(card.weights, write_weights(folder / "drct.pth", state))
    return card.model_copy(update={"weights": weights})


@pytest.mark.parametrize("name", NARROW)
def test_scores_are_the_authors(name, tmp_path):
    detector = load_detector(seeded_narrow(name, tmp_path), precision="fp32")
    check_scores(detector, f"{name} narrow")


def test_crop_rounds_down_if_the_card_says_so():
    # Three of 227 are cut: torchvision begins at the third column, albumentations at the second.
    image = source("230x227")
    even, down = (
        torch.from_numpy(Preprocessing(center_crop=224, crop_rounding=rounding).prepare(image))
        for rounding in ("even", "down")
    )
    pixels = torch.from_numpy(Preprocessing().prepare(image))
    assert torch.equal(even, pixels[3:227, 2:226])
    assert torch.equal(down, pixels[3:227, 1:225])
    assert "crop_rounding" not in Preprocessing(center_crop=224).model_dump(mode="json"), (
        "or older runs would have another identity"
    )
