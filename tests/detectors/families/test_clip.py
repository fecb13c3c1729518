"""CLIP's towers against torch's own transformer layers; the linear family. Scores: test_golden."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from benchmarks.seeded import local_weights
from ray_app.detectors import load_card, load_detector
from ray_app.detectors.families.frozen import FrozenLinear, build
from ray_app.detectors.precision import autocast, lower_to_bf16
from ray_app.errors import DetectorError
from tests.make.networks.fill import source, with_arguments
from tests.make.networks.small_clip import small_card, small_clip


def torchs_layer(block, width, heads, gelu):
    """torch's pre-norm encoder layer with a block's weights."""
    layer = nn.TransformerEncoderLayer(
        width, heads, 4 * width, dropout=0, activation=gelu, norm_first=True, batch_first=True
    ).eval()
    names = {"attn": "self_attn", "ln_1": "norm1", "ln_2": "norm2", "mlp.c_fc": "linear1",
             "mlp.c_proj": "linear2"}  # fmt: skip
    state = {}
    for key, tensor in block.state_dict().items():
        ours = next(name for name in names if key.startswith(name))
        state[names[ours] + key.removeprefix(ours)] = tensor
    layer.load_state_dict(state)
    return layer.requires_grad_(False)


def quick_gelu(features):
    return features * torch.sigmoid(1.702 * features)


@pytest.mark.parametrize("quick", [True, False])
def test_vision_tower_is_torchs_transformer(quick):
    tower = small_clip(quick_gelu=quick).visual
    assert {module.eps for module in tower.modules() if isinstance(module, nn.LayerNorm)} == {1e-5}
    tower.taps = (1, 0)
    pixels = torch.randn(3, 3, 28, 28, generator=torch.Generator().manual_seed(0)).to(
        memory_format=torch.channels_last
    )
    patches = (
        functional.unfold(pixels, 14, stride=14).transpose(1, 2) @ tower.conv1.weight.flatten(1).T
    )
    tokens = (
        torch.cat([tower.class_embedding.expand(3, 1, -1), patches], dim=1)
        + tower.positional_embedding
    )
    tokens, taps = tower.ln_pre(tokens), []
    for block in tower.transformer.resblocks:
        layer = torchs_layer(block, 64, 4, quick_gelu if quick else functional.gelu)
        hooked = layer.norm2.register_forward_hook(lambda *told: taps.append(told[2]))
        tokens = layer(tokens)
        hooked.remove()
    seen = tower(pixels)
    class_token = tower.ln_post(tokens[:, 0])
    assert torch.allclose(seen.class_token, class_token, atol=1e-5)
    assert torch.allclose(seen.projected, class_token @ tower.proj, atol=1e-5)
    for ours, theirs in zip(seen.taps, reversed(taps), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)
    assert seen.taps[0].shape == (3, 5, 64)
    class_tokens = torch.stack([tap[:, 0] for tap in taps], dim=1)
    assert torch.allclose(seen.class_tokens, class_tokens, atol=1e-5)


def test_bf16_lowers_every_product_and_no_norm():
    network = (
        FrozenLinear(small_clip().visual, feature="class-token", width=64, normalise=True)
        .eval()
        .requires_grad_(False)
    )
    pixels = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    exact = network(pixels)
    lowered = lower_to_bf16(copy.deepcopy(network), "cpu")
    kinds = {key: parameter.dtype for key, parameter in lowered.named_parameters()}
    layers = ("in_proj", "out_proj", "mlp", "conv1")
    products = [key for key in kinds if any(layer in key for layer in layers)]
    assert len(products) == 2 * 8 + 1
    assert {kinds[key] for key in products} == {torch.bfloat16}
    assert {kind for key, kind in kinds.items() if key not in products} == {torch.float32}
    assert set(lowered.state_dict()) == set(network.state_dict())
    with autocast("cpu", "bf16"):
        scores = lowered(pixels)
    assert scores.dtype == torch.float32
    assert not torch.equal(scores, exact)
    assert torch.allclose(scores, exact, atol=0.02)


def test_unknown_feature_and_missing_backbone_are_refused(tmp_path):
    card, _ = small_card(tmp_path)
    for arguments in ({}, {"feature": "pooled", "normalise": True}):
        with pytest.raises(DetectorError, match="feature"):
            build(with_arguments(card, arguments))
    with pytest.raises(DetectorError, match="backbone"):
        build(card.model_copy(update={"backbone": None}))


def test_two_layers_with_nothing_between_them_are_one_head(tmp_path):
    torch.manual_seed(0)
    inner, outer = nn.Linear(64, 8), nn.Linear(8, 1)
    head = {"layers.0": inner.state_dict(), "to_logits": outer.state_dict()}
    state = {f"{layer}.{key}": tensor for layer in head for key, tensor in head[layer].items()}
    state = {f"model.classification_head.{key}": tensor for key, tensor in state.items()}
    torch.save({"state_dict": state, "model_type": "clip"}, tmp_path / "orthogonal.ckpt")
    card, _ = small_card(tmp_path, feature="class-token", normalise=False)
    prefixes = load_card("clip-cues").weights.strip_prefixes
    weights = local_weights(card.weights, tmp_path / "orthogonal.ckpt").model_copy(
        update={"unwrap": ("state_dict",), "strip_prefixes": prefixes, "prefix": ""}
    )
    detector = load_detector(
        card.model_copy(update={"weights": weights}), precision="fp32", slots=1
    )
    pixels = detector.prepare(source("97x61"))[None]
    feature = small_clip().visual(detector.normalise(torch.from_numpy(pixels))).class_token
    assert detector.score(pixels)[0] == pytest.approx(outer(inner(feature)).item(), abs=1e-5)
