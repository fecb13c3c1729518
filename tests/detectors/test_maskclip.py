"""MaskCLIP: names and shapes of the reference, and its outputs on formula-filled weights."""

import pytest
import torch
from torch import nn

from ray_app.detectors import load_card
from ray_app.detectors.families import build_network
from ray_app.detectors.mask_decoder import ChannelNorm
from ray_app.detectors.maskclip import MaskClip
from ray_app.detectors.maskclip_losses import losses, trainable_parameters
from ray_app.detectors.precision import autocast, lower_to_bf16
from ray_app.errors import DetectorError
from tests.detectors.golden_maskclip import GOLDEN, PARTS, published_shapes
from tests.detectors.small_maskclip import TOLERANCE, assert_pixels, case_image, filled, normalised, targets, traced


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
    with torch.device("meta"):
        network = build_network(card)

    assert card.size.tensors == len(network.state_dict())
    assert card.size.parameters == sum(parameter.numel() for parameter in network.parameters())
    assert card.masks
    assert card.output.index_among(card.output.labels) == card.output.labels.index("fake") == 1
    assert card.preprocessing.shape == (512, 512)


def test_arguments_that_no_maskclip_has_are_named(tmp_path):
    card = load_card("maskclip")
    card = card.model_copy(update={"architecture": card.architecture.model_copy(update={"arguments": {"depth": 3}})})

    with pytest.raises(DetectorError, match=r"maskclip cannot be built.*depth"):
        build_network(card)


@pytest.mark.parametrize(
    ("size", "case"), [("tiny256", "A"), ("tiny256", "B"), ("tiny512", "A"), ("tiny512", "B")], ids=lambda value: value
)
def test_outputs_are_the_reference_s(size, case):
    check_against_golden(filled(size), size, case)


@pytest.mark.slow
def test_outputs_at_the_published_size_are_the_reference_s():
    network = filled("full")
    for case in "AB":
        check_against_golden(network, "full", case)


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
    images = torch.cat([normalised(case_image(256, "A")), normalised(case_image(256, "B")), torch.zeros(1, 3, 256, 256)])

    with torch.inference_mode():
        together, alone = tiny(images), tiny(images[1:2])

    assert together.masks.shape == (3, 256, 256)
    assert together.logits.shape == (3, 2)
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
    images = torch.cat([normalised(case_image(256, case)) for case in "AB"])
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
