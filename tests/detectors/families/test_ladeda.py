"""LaDeDa9 and Tiny-LaDeDa with filled weights, and the steps before the published files; their own
logits: `test_published_files`.
"""

import json

import pytest
import torch

from ray_app.detectors import load_card
from ray_app.detectors.card import with_run_facts
from ray_app.detectors.detector import build_network
from ray_app.detectors.families.ladeda import LaDeDa9, TinyLaDeDa
from ray_app.detectors.families.resnet import residual_of
from tests.detectors.fill import filled
from tests.detectors.golden import check
from tests.detectors.golden_convnets import TINY
from tests.detectors.test_convnets import prepared


@pytest.mark.parametrize("kind", TINY)
@torch.inference_mode()
def test_residual_and_tiny_ladeda_are_the_authors(kind):
    residual, logit = TINY[kind]
    pixels = prepared("tiny-ladeda", "97x61")
    check(residual_of(pixels, kind)[0], residual)
    assert filled(TinyLaDeDa(kind))(pixels).item() == pytest.approx(logit, abs=1e-4)


def test_a_run_keeps_the_residual_that_it_was_scored_with():
    """Up to 0.11 the card meant the right diagonal; such a run goes on with it, under the card's
    own name.
    """
    today = load_card("tiny-ladeda")
    noted = json.loads(json.dumps(today.scoring_facts))
    noted["architecture"]["arguments"] = {"residual": "right_diag"}
    continued = with_run_facts(today, noted)
    assert (continued.name, build_network(continued).residual) == ("tiny-ladeda", "right_diag")
    assert continued.weights == today.weights
    residuals = {
        name: build_network(load_card(f"tiny-ladeda{name}")).residual
        for name in ("", ":right-diag", ":forensynth")
    }
    assert residuals == {"": "left_diag", ":right-diag": "right_diag", ":forensynth": "npr"}, (
        "each published file has its own"
    )


@torch.inference_mode()
def test_a_patch_is_9_pixels_wide_and_every_eighth_pixel_begins_one():
    network = filled(LaDeDa9("raw", layers=(1, 1, 1, 1), width=8))
    pixels = torch.randn(1, 3, 41, 57, generator=torch.Generator().manual_seed(0))
    maps = network.logit_map(pixels)
    assert maps.shape == (1, 1, 5, 7)
    torch.testing.assert_close(
        network(pixels[..., 16:25, 24:33])[0], maps[0, :, 2, 3], atol=1e-5, rtol=0
    )
    torch.testing.assert_close(maps.mean(dim=(2, 3)), network(pixels), atol=1e-6, rtol=0)
