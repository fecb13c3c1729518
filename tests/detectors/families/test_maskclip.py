"""MaskCLIP's outputs, losses and gradients against the reference's; its weights: a checkpoint, MAE
and CLIP to begin from, another size.
"""

import math

import pytest
import torch
from torch import nn

from ray_app.detectors.checkpoints import load_strictly
from ray_app.detectors.families.maskclip import (
    ChannelNorm,
    MaskClip,
    initialise,
    losses,
    trainable_parameters,
)
from ray_app.detectors.precision import autocast, lower_to_bf16
from ray_app.errors import DetectorError
from tests.detectors.golden_maskclip import (
    ARGUMENTS,
    FULL_MASK_LOSSES,
    GOLDEN,
    GRADIENTS,
    PAIR_LOGITS,
    PAIR_LOSSES,
    PAIR_MEANS,
    PAIR_PIXELS,
    REAL_LOSSES,
)
from tests.make.networks.fill import pattern_image
from tests.make.networks.small_maskclip import (
    TOLERANCE,
    assert_pixels,
    case_image,
    filled,
    filled_weights,
    normalised,
    targets,
)


@pytest.fixture(scope="module")
def tiny():
    return filled("tiny256")


def test_all_but_clip_learns():
    with torch.device("meta"):
        network = MaskClip()
    learning = trainable_parameters(network)
    assert len(learning) == 332
    assert sum(parameter.numel() for parameter in learning.values()) == 119_212_225
    parts = {name.split(".")[0] for name in learning}
    assert parts == {"aggregator", "cls_aggregator", "prompt_learner"}
    assert not any(parameter.requires_grad for parameter in network.clip.parameters())


# full: gigabytes
@pytest.mark.parametrize(
    ("size", "case"), [("tiny256", "B"), pytest.param("full", "A", marks=pytest.mark.slow)]
)
def test_outputs_are_the_reference_s(size, case):
    golden = GOLDEN[size, case]
    side = 256 if size == "tiny256" else 512
    with torch.inference_mode():
        logits, mask_logits = filled(size).logits(normalised(case_image(side, case)))
    mask = mask_logits[0].sigmoid()

    assert logits[0].tolist() == pytest.approx(golden.logits, abs=TOLERANCE)
    assert_pixels(mask, golden.pixels)
    assert mask.mean().item() == pytest.approx(golden.mean, abs=TOLERANCE)
    assert (mask.min().item(), mask.max().item()) == pytest.approx(golden.low_high, abs=TOLERANCE)
    assert abs(int((mask > 0.5).sum()) - golden.above) <= 20
    found = losses(logits, mask_logits, *targets(side, case))
    assert [*map(float, found), float(found.total)] == pytest.approx(golden.losses, abs=TOLERANCE)


def test_each_norm_has_the_epsilon_it_was_trained_with(tiny):
    """The goldens cannot see it: their features are large."""
    given = torch.tensor([0, 0.001, 0.002, 0.003])[None, :, None, None]
    assert ChannelNorm(4)(given).flatten().tolist() == pytest.approx(
        [-1, -1 / 3, 1 / 3, 1], abs=1e-3
    )
    for name, norm in tiny.named_modules():
        if isinstance(norm, nn.LayerNorm):
            wider = name.startswith(("clip.", "cls_aggregator.")) or name.endswith("output_proj.1")
            assert norm.eps == (1e-5 if wider else 1e-6), name


def test_bf16_keeps_the_score_and_the_mask(tiny):
    images = normalised(case_image(256, "B"))
    lowered = lower_to_bf16(filled("tiny256"), "cpu")

    with torch.inference_mode():
        exact = tiny(images)
        with autocast("cpu", "bf16"):
            rounded = lowered(images)

    assert lowered.cls_aggregator.projector[0].weight.dtype is torch.float32
    assert lowered.clip.visual.conv1.weight.dtype is torch.bfloat16
    assert rounded.logits.dtype is rounded.masks.dtype is torch.float32
    assert (rounded.logits.diff() - exact.logits.diff()).abs().max() < 0.03
    assert (rounded.masks - exact.masks).abs().max() < 0.02


def test_a_batch_of_two_and_its_losses_are_the_reference_s():
    upright = pattern_image(512, 512)
    with torch.inference_mode():
        logits, mask_logits = filled("tiny512").logits(
            torch.cat([normalised(upright), normalised(upright[::-1].copy())])
        )
    label, mask, edge = targets(512, "A")
    none = torch.zeros_like(mask)

    expected = [*PAIR_LOGITS[0], *PAIR_LOGITS[1]]
    assert logits.flatten().tolist() == pytest.approx(expected, abs=TOLERANCE)
    masks = mask_logits.sigmoid()
    assert masks.mean((1, 2)).tolist() == pytest.approx(PAIR_MEANS, abs=TOLERANCE)
    assert_pixels(masks[1], PAIR_PIXELS)

    def told(count, *of):
        found = losses(logits[:count], mask_logits[:count], *of)
        return [*map(float, found), float(found.total)]

    both = told(2, torch.tensor([1, 0]), torch.cat([mask, none]), torch.cat([edge, none]))
    assert both == pytest.approx(PAIR_LOSSES, abs=TOLERANCE)
    assert told(1, 0 * label, none, none) == pytest.approx(REAL_LOSSES, abs=TOLERANCE)
    assert told(1, label, torch.ones_like(mask)) == pytest.approx(FULL_MASK_LOSSES, abs=TOLERANCE)


def test_gradients_are_the_reference_s():
    network = filled("tiny256")
    learning = trainable_parameters(network)

    losses(
        *network.logits(normalised(pattern_image(256, 256))), *targets(256, "A")
    ).total.backward()

    norms = {name: parameter.grad.norm().item() for name, parameter in learning.items()}
    norms["all"] = math.hypot(*norms.values())
    assert len(norms) == 333
    assert {name: norms[name] for name in GRADIENTS} == pytest.approx(GRADIENTS, rel=2e-4)


def published_beginnings():
    """The MAE file's and CLIP's tensors in the layout in which they are published, at small sizes."""
    state = filled_weights("tiny256")
    vit, clip = "aggregator.vit_model.", "clip."
    mae = {key.removeprefix(vit): state[key] for key in state if key.startswith(vit)}
    mae = {key: tensor for key, tensor in mae.items() if ".rel_pos_" not in key}
    mae |= {"cls_token": torch.zeros(1, 1, 96), "norm.weight": torch.ones(96), "norm.bias": torch.zeros(96)}  # fmt: skip
    return mae, {key.removeprefix(clip): state[key] for key in state if key.startswith(clip)}


def test_training_begins_from_mae_and_clip():
    mae, clip = published_beginnings()
    network = MaskClip(**ARGUMENTS["tiny256"])

    initialise(network, mae, {**clip, "vocab_size": torch.tensor(49408)})

    vit = network.aggregator.vit_model.state_dict()
    tables = [key for key in vit if ".rel_pos_" in key]
    assert len(clip) == 446
    assert len(tables) == 24
    assert all(not vit[key].any() for key in tables)
    assert all(torch.equal(vit[key], tensor) for key, tensor in mae.items() if key in vit)
    assert all(torch.equal(tensor, clip[key]) for key, tensor in network.clip.state_dict().items())
    for prompt in network.prompt_learner.parameters():
        assert prompt.std().item() == pytest.approx(0.02, rel=0.2)


def test_other_initial_weights_are_refused_by_key():
    mae, clip = published_beginnings()
    network = MaskClip(**ARGUMENTS["tiny256"])
    with pytest.raises(DetectorError, match=r"unexpected.*visual\.head\.weight"):
        initialise(network, mae, {**clip, "visual.head.weight": torch.zeros(1)})
    del mae["blocks.3.mlp.fc1.weight"]
    with pytest.raises(DetectorError, match=r"missing.*blocks\.3\.mlp\.fc1\.weight"):
        initialise(network, mae, clip)


def test_a_checkpoint_of_another_size_is_refused(tiny):
    state = filled_weights("tiny512")

    with pytest.raises(DetectorError, match=r"8 of another shape.*rel_pos"):
        load_strictly(tiny, state, "maskclip.pth")
