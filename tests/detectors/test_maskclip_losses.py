"""MaskCLIP's losses and gradients against the reference's, and what learns."""

import math

import pytest
import torch

from ray_app.detectors.maskclip import MaskClip
from ray_app.detectors.maskclip_losses import losses, trainable_parameters
from tests.detectors.fill import pattern_image
from tests.detectors.golden_maskclip import FULL_MASK_LOSSES, GRADIENTS, PAIR_LOGITS, PAIR_LOSSES, PAIR_MEANS, PAIR_PIXELS, REAL_LOSSES
from tests.detectors.small_maskclip import TOLERANCE, assert_pixels, filled, normalised, targets, traced


def test_what_learns_is_everything_but_clip():
    with torch.device("meta"):
        network = MaskClip()

    learning = trainable_parameters(network)

    assert len(learning) == 332
    assert sum(parameter.numel() for parameter in learning.values()) == 119_212_225
    assert {name.split(".")[0] for name in learning} == {"aggregator", "cls_aggregator", "prompt_learner"}
    assert not any(parameter.requires_grad for parameter in network.clip.parameters())


def test_a_batch_of_two_and_its_losses_are_the_reference_s():
    upright = pattern_image(512, 512)
    seen = traced(filled("tiny512"), torch.cat([normalised(upright), normalised(upright[::-1].copy())]))
    label, mask, edge = targets(512, "A")
    none = torch.zeros_like(mask)

    assert seen.logits.flatten().tolist() == pytest.approx([*PAIR_LOGITS[0], *PAIR_LOGITS[1]], abs=TOLERANCE)
    assert seen.masks.mean((1, 2)).tolist() == pytest.approx(PAIR_MEANS, abs=TOLERANCE)
    assert_pixels(seen.masks[1], PAIR_PIXELS)

    def told(count, *of):
        found = losses(seen.logits[:count], seen.mask_logits[:count], *of)
        return [*map(float, found), float(found.total)]

    both = told(2, torch.tensor([1, 0]), torch.cat([mask, none]), torch.cat([edge, none]))
    assert both == pytest.approx(PAIR_LOSSES, abs=TOLERANCE)
    assert told(1, 0 * label, none, none) == pytest.approx(REAL_LOSSES, abs=TOLERANCE)
    assert told(1, label, torch.ones_like(mask)) == pytest.approx(FULL_MASK_LOSSES, abs=TOLERANCE)


@pytest.mark.parametrize("size", ["tiny256", pytest.param("tiny512", marks=pytest.mark.slow)])
def test_gradients_are_the_reference_s(size):
    network = filled(size)
    learning = trainable_parameters(network)
    side = 256 if size == "tiny256" else 512

    losses(*network.logits(normalised(pattern_image(side, side))), *targets(side, "A")).total.backward()

    norms = {name: parameter.grad.norm().item() for name, parameter in learning.items()}
    norms["all"] = math.hypot(*norms.values())
    assert len(norms) == 333
    assert {name: norms[name] for name in GRADIENTS[size]} == pytest.approx(GRADIENTS[size], rel=2e-4)
