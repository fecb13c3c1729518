"""DRCT's two networks against the authors' own code, thin, and the ConvNeXt at full size: every
value a number in `golden_forensics.py`.
"""

import pytest
import torch

from benchmarks.seeded import local_weights, seeded_backbone, write_weights
from ray_app.detectors import load_card, load_detector
from ray_app.detectors.detector import build_network
from ray_app.detectors.preprocessing import Preprocessing
from tests.detectors import golden_forensics as golden
from tests.detectors.fill import Undrawn, fill, filled, source, with_arguments, with_tower
from tests.detectors.golden import check
from tests.detectors.test_convnets import prepared

CLIP, CONVNEXT = "drct-clip-vit-l14", "drct-convnext-b"


def thin(name):
    """The card with the narrow network of the golden values."""
    card, arguments = load_card(name), golden.THIN[name]
    return (
        with_arguments(card, arguments) if card.backbone is None else with_tower(card, **arguments)
    )


def published(card):
    """The filled state dict under the names of the authors' file: all of the network, of CLIP the
    text tower, too.
    """
    network = build_network(card)
    if card.backbone is None:
        return fill(network.state_dict())
    shapes = {
        "model.fc.weight": (1024, 768),
        "model.fc.bias": (1024,),
        "fc.weight": (2, 1024),
        "fc.bias": (2,),
    }
    heads = {name: torch.empty(shape) for name, shape in shapes.items()}
    clip = {
        f"model.model.visual.{key}": tensor for key, tensor in network.backbone.state_dict().items()
    }
    return fill(
        {
            **heads,
            **clip,
            "model.model.logit_scale": torch.tensor(0.0),
            "model.model.text_projection": torch.empty(64, 768),
        }
    )


def detector(name, folder, left_out=None):
    """The thin network from files in the published formats, perhaps without a tensor."""
    card, state = thin(name), published(thin(name))
    own = {key: tensor for key, tensor in state.items() if key != left_out}
    weights = local_weights(card.weights, write_weights(folder / "drct.pth", own))
    if card.backbone is None:
        return load_detector(card.model_copy(update={"weights": weights}), precision="fp32")
    visual = {key: state[f"model.model.{key}"] for key in seeded_backbone(card)}
    shared = local_weights(
        card.backbone.weights, write_weights(folder / "clip.safetensors", visual)
    )
    card = card.model_copy(
        update={
            "weights": weights,
            "backbone": card.backbone.model_copy(update={"weights": shared}),
        }
    )
    return load_detector(card, precision="fp32")


@pytest.mark.parametrize("name", [CLIP, CONVNEXT])
def test_log_odds_of_the_thin_network_are_the_authors(name, tmp_path):
    thin_detector = detector(name, tmp_path)
    for image, expected in golden.THIN_LOG_ODDS[name].items():
        score = thin_detector.score(torch.from_numpy(thin_detector.prepare(source(image)))[None])[0]
        assert score == pytest.approx(expected, abs=1e-4), image


@pytest.mark.slow
@torch.inference_mode()
def test_log_odds_of_the_whole_convnext_are_the_authors():
    with Undrawn():
        network = build_network(load_card(CONVNEXT))
    network = filled(network)
    for image, expected in golden.FULL_LOG_ODDS.items():
        real, fake = network(prepared(CONVNEXT, image))[0].tolist()
        assert fake - real == pytest.approx(expected, abs=1e-4), image


@pytest.mark.parametrize("name", [CLIP, CONVNEXT])
def test_prepared_tensors_are_the_authors(name):
    for image, tensor in golden.CROPPED.items():
        check(prepared(name, image)[0], tensor)


def test_the_crop_rounds_down_where_the_card_says_so():
    # of 227, three are cut: torchvision begins at the third column, albumentations at the second
    image = source("230x227")
    even, down = (
        Preprocessing(center_crop=224, crop_rounding=rounding).prepare(image)
        for rounding in ("even", "down")
    )
    pixels = torch.from_numpy(Preprocessing().prepare(image))
    assert torch.equal(torch.from_numpy(even), pixels[3:227, 2:226])
    assert torch.equal(torch.from_numpy(down), pixels[3:227, 1:225])
    assert "crop_rounding" not in Preprocessing(center_crop=224).model_dump(mode="json"), (
        "or runs of before had another identity"
    )
