"""MaskCLIP: names and shapes of the reference, and its outputs on formula-filled weights.

MaskCLIP's losses and gradients against the reference's, and what learns.

MaskCLIP's weights: a checkpoint, MAE and CLIP to begin from, another input size.
"""

import math

import pytest
import torch
from PIL import Image
from torch import nn

from benchmarks.seeded import card_with_weights
from ray_app.detectors import load_card
from ray_app.detectors.detector import build_network, load_detector
from ray_app.detectors.families.maskclip import ChannelNorm, MaskClip, fit_relative_positions, initialise, losses, trainable_parameters
from ray_app.detectors.precision import autocast, lower_to_bf16
from ray_app.detectors.weights import load_strictly
from ray_app.errors import DetectorError
from tests.detectors.fill import pattern_image
from tests.detectors.golden_maskclip import (
    ARGUMENTS,
    FULL_MASK_LOSSES,
    GOLDEN,
    GRADIENTS,
    PAIR_LOGITS,
    PAIR_LOSSES,
    PAIR_MEANS,
    PAIR_PIXELS,
    PARTS,
    REAL_LOSSES,
    published_shapes,
)
from tests.detectors.small_maskclip import TOLERANCE, assert_pixels, case_image, filled, filled_weights, normalised, targets, traced


@pytest.fixture(scope="module")
def tiny():
    return filled("tiny256")


def test_every_name_and_shape_is_the_reference_s():
    with torch.device("meta"):
        network = MaskClip()

    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}

    assert len(shapes) == 778
    assert shapes == published_shapes()
    for part, (parameters, tensors) in PARTS.items():
        module = network.get_submodule(part)
        assert sum(parameter.numel() for parameter in module.parameters()) == parameters, part
        assert tensors in (None, len(module.state_dict())), part
    assert sum(parameter.numel() for parameter in network.parameters()) == 546_828_738


def test_the_card_describes_this_network():
    card = load_card("maskclip")
    assert card.masks
    assert card.output.index_among(card.output.labels) == card.output.labels.index("fake") == 1
    assert card.preprocessing.shape == (512, 512)


def test_arguments_that_no_maskclip_has_are_named(tmp_path):
    card = load_card("maskclip")
    card = card.model_copy(update={"architecture": card.architecture.model_copy(update={"arguments": {"depth": 3}})})

    with pytest.raises(DetectorError, match=r"maskclip cannot be built.*depth"):
        build_network(card)


# The published size takes gigabytes; of tiny512, case A is the first image of the batch of two below.
@pytest.mark.parametrize("case", ["A", "B"])
@pytest.mark.parametrize("size", ["tiny256", *(pytest.param(size, marks=pytest.mark.slow) for size in ("tiny512", "full"))])
def test_outputs_are_the_reference_s(size, case):
    check_against_golden(filled(size), size, case)


def check_against_golden(network, size, case):
    golden = GOLDEN[size, case]
    side = 256 if size == "tiny256" else 512
    seen = traced(network, normalised(case_image(side, case)))
    mask = seen.masks[0]

    assert seen.logits[0].tolist() == pytest.approx(golden.logits, abs=TOLERANCE)
    assert_pixels(mask, golden.pixels)
    assert mask.mean().item() == pytest.approx(golden.mean, abs=TOLERANCE)
    assert (mask.min().item(), mask.max().item()) == pytest.approx(golden.low_high, abs=TOLERANCE)
    assert abs(int((mask > 0.5).sum()) - golden.above) <= 20
    check_the_way(network, seen, golden)
    found = losses(seen.logits, seen.mask_logits, *targets(side, case))
    assert [*map(float, found), float(found.total)] == pytest.approx(golden.losses, abs=TOLERANCE)


def check_the_way(network, seen, golden):
    """What the parts give between input and output, which tells where a difference begins."""
    assert [tap.double().norm().item() for tap in seen.taps] == pytest.approx(golden.taps, rel=TOLERANCE)
    texts = network.text_features()
    for text, expected in zip(texts, golden.texts, strict=True):
        assert text[:4].tolist() == pytest.approx(expected, abs=1e-4)
    for row, column, expected in golden.tokens:
        assert seen.tokens[0, :3, row, column].tolist() == pytest.approx(expected, abs=1e-4)
    decoder = network.aggregator.mask_decoder
    with torch.inference_mode():
        fused = decoder.fuse(seen.tokens)
        answer = decoder.answer(fused, seen.fake_text)[0]
    assert fused.double().norm().item() == pytest.approx(golden.fused, rel=TOLERANCE)
    assert answer[:4].tolist() == pytest.approx(golden.answer[0], abs=1e-4)
    assert answer.norm().item() == pytest.approx(golden.answer[1], rel=TOLERANCE)
    assert seen.low.mean().item() == pytest.approx(golden.low[0], abs=TOLERANCE)
    assert seen.low.double().norm().item() == pytest.approx(golden.low[1], rel=TOLERANCE)
    assert seen.head[0, :4].tolist() == pytest.approx(golden.head[0], abs=1e-4)
    assert seen.head.norm().item() == pytest.approx(golden.head[1], rel=TOLERANCE)


def test_an_image_s_answer_does_not_depend_on_its_batch(tiny):
    images = torch.cat([normalised(case_image(256, "A")), normalised(case_image(256, "B"))])

    with torch.inference_mode():
        together, alone = tiny(images), tiny(images[1:2])

    assert together.masks.shape == (2, 256, 256)
    assert together.logits.shape == (2, 2)
    assert torch.allclose(together.logits[1], alone.logits[0], atol=2e-6)
    assert torch.allclose(together.masks[1], alone.masks[0], atol=2e-6)


def test_each_norm_has_the_epsilon_it_was_trained_with(tiny):
    """The goldens cannot see it: their features are large."""
    given, wide = torch.tensor([0, 0.001, 0.002, 0.003]), [-0.447214, -0.149071, 0.149071, 0.447214]
    assert ChannelNorm(4)(given[None, :, None, None]).flatten().tolist() == pytest.approx([-1, -1 / 3, 1 / 3, 1], abs=1e-3)
    assert nn.LayerNorm(4, eps=1e-5)(given).tolist() == pytest.approx(wide, abs=1e-3)

    for name, norm in tiny.named_modules():
        if isinstance(norm, nn.LayerNorm):
            wider = name.startswith(("clip.", "cls_aggregator.")) or name.endswith("output_proj.1")
            assert norm.eps == (1e-5 if wider else 1e-6), name


def test_texts_are_embedded_once_for_as_long_as_nothing_changes():
    network = filled("tiny256")
    calls = []
    network.clip.ln_final.register_forward_hook(lambda *given: calls.append(1))

    with torch.inference_mode():
        network.text_features()
    first = network.text_features()
    assert len(calls) == 1

    with torch.no_grad():
        network.prompt_learner.ctx_pos.mul_(2)
    second = network.text_features()
    assert len(calls) == 2
    assert torch.equal(first[0], second[0])
    assert not torch.allclose(first[1], second[1])

    lower_to_bf16(network, "cpu")
    with autocast("cpu", "bf16"):
        lowered = network.text_features()
    assert len(calls) == 3
    assert torch.allclose(lowered, second, atol=0.02)


def test_texts_follow_the_prompts_while_these_learn(tiny):
    network = filled("tiny256")
    trainable_parameters(network)
    network.text_features()

    assert network.text_features().requires_grad
    assert not network.train().requires_grad_(False).text_features().requires_grad
    assert network._known_texts is None


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


def test_what_learns_is_everything_but_clip():
    with torch.device("meta"):
        network = MaskClip()

    learning = trainable_parameters(network)

    assert len(learning) == 332
    assert sum(parameter.numel() for parameter in learning.values()) == 119_212_225
    assert {name.split(".")[0] for name in learning} == {"aggregator", "cls_aggregator", "prompt_learner"}
    assert not any(parameter.requires_grad for parameter in network.clip.parameters())


@pytest.mark.slow  # of one image at half the size, outputs and losses are the reference's in every run, and a batch changes none of them
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


def test_one_missing_and_one_extra_key_are_named(tiny):
    state = dict(filled_weights("tiny256"))
    del state["aggregator.vit_model.blocks.5.attn.rel_pos_w"]
    state["aggregator.vit_model.cls_token"] = torch.zeros(1, 1, 96)

    with pytest.raises(DetectorError) as failure:
        load_strictly(tiny, state, "maskclip.pth")

    assert "missing (aggregator.vit_model.blocks.5.attn.rel_pos_w)" in str(failure.value)
    assert "unexpected (aggregator.vit_model.cls_token)" in str(failure.value)


def test_a_card_and_a_file_give_the_reference_s_score_and_mask(tmp_path):
    golden = GOLDEN["tiny256", "B"]
    path = tmp_path / "maskclip.pth"
    torch.save({"model": filled_weights("tiny256")}, path)
    card = card_with_weights(load_card("maskclip"), path)
    preprocessing = card.preprocessing.model_copy(update={"resize": card.preprocessing.resize.model_copy(update={"size": 256})})
    architecture = card.architecture.model_copy(update={"arguments": ARGUMENTS["tiny256"]})
    card = card.model_copy(update={"preprocessing": preprocessing, "architecture": architecture})

    detector = load_detector(card, precision="fp32", offline=True, slots=2)
    pixels = torch.from_numpy(detector.prepare(Image.fromarray(pattern_image(360, 480))))[None]
    reading = detector.read(detector.normalise(pixels))

    assert reading.scores.tolist() == pytest.approx([golden.logits[1] - golden.logits[0]], abs=TOLERANCE)
    assert reading.masks.dtype is torch.uint8
    assert [int(reading.masks[0, row, column]) for row, column, _ in golden.pixels] == [round(255 * value) for *_, value in golden.pixels]


def published_beginnings():
    """The MAE file's and CLIP's tensors in the layout in which they are published, at small sizes."""
    state = filled_weights("tiny256")
    vit, clip = "aggregator.vit_model.", "clip."
    mae = {key.removeprefix(vit): tensor for key, tensor in state.items() if key.startswith(vit) and ".rel_pos_" not in key}
    mae |= {"cls_token": torch.zeros(1, 1, 96), "norm.weight": torch.ones(96), "norm.bias": torch.zeros(96)}
    return mae, {key.removeprefix(clip): tensor for key, tensor in state.items() if key.startswith(clip)}


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


@pytest.mark.parametrize(
    ("part", "key", "fault"),
    [
        ("mae", "blocks.3.mlp.fc1.weight", "missing"),
        ("mae", "decoder_embed.weight", "unexpected"),
        ("mae", "blocks.2.attn.rel_pos_h", "relative positions"),
        ("clip", "visual.proj", "missing"),
        ("clip", "visual.head.weight", "unexpected"),
    ],
)
def test_other_beginnings_are_refused_by_the_name_of_a_key(part, key, fault):
    beginnings = dict(zip(("mae", "clip"), published_beginnings(), strict=True))
    if fault == "missing":
        del beginnings[part][key]
    else:
        beginnings[part][key] = torch.zeros(1)

    with pytest.raises(DetectorError, match=fault) as failure:
        initialise(MaskClip(**ARGUMENTS["tiny256"]), beginnings["mae"], beginnings["clip"])

    assert key in str(failure.value)


def test_a_checkpoint_of_another_size_loads_only_when_its_tables_are_fitted(tiny):
    state = filled_weights("tiny512")

    with pytest.raises(DetectorError, match=r"8 of another shape.*rel_pos"):
        load_strictly(tiny, state, "maskclip.pth")
    fitted = fit_relative_positions(state, tiny)

    load_strictly(filled("tiny256"), fitted, "maskclip.pth")
    key = "aggregator.vit_model.blocks.2.attn.rel_pos_h"
    assert (len(state[key]), len(fitted[key])) == (63, 31)
    # Rows 30 to 32 stand at −1, 0 and 1: the middle of either table is the distance zero.
    assert torch.allclose(fitted[key][15], state[key][31], atol=1e-6)
    assert all(fitted[name] is tensor for name, tensor in state.items() if fitted[name].shape == tensor.shape)
