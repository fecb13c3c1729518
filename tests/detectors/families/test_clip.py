"""CLIP's towers: published names and sizes, golden scores of the full tower, and torch's own transformer layers as a second opinion."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from benchmarks.seeded import local_weights
from ray_app.detectors import load_card, load_detector
from ray_app.detectors.detector import Detector, Normalise
from ray_app.detectors.families.clip import Clip, FrozenLinear, TextTower, VisionTower, build, published_keys
from ray_app.detectors.precision import autocast, lower_to_bf16
from ray_app.errors import DetectorError
from tests.detectors.fill import fill, source
from tests.detectors.golden import check
from tests.detectors.golden_clip import HEADS, PREPARED, SCORES, TOWER
from tests.detectors.small_clip import TEXT, small_card, small_clip

# ---- names, shapes and counts, without memory


def test_the_whole_clip_has_the_published_tensors():
    with torch.device("meta"):
        clip = Clip(VisionTower(quick_gelu=True), quick_gelu=True)
    shapes = {key: tuple(tensor.shape) for key, tensor in clip.state_dict().items()}
    assert len(shapes) == 446
    assert sum(parameter.numel() for parameter in clip.parameters()) == 427_616_513
    visual = {key.removeprefix("visual."): shape for key, shape in shapes.items() if key.startswith("visual.")}
    assert len(visual) == 296
    assert sum(parameter.numel() for parameter in clip.visual.parameters()) == 303_966_208
    expected = {
        "positional_embedding": (77, 768),
        "text_projection": (768, 768),
        "logit_scale": (),
        "token_embedding.weight": (49408, 768),
        "ln_final.bias": (768,),
        "transformer.resblocks.11.attn.in_proj_weight": (2304, 768),
        "transformer.resblocks.0.mlp.c_fc.weight": (3072, 768),
        "visual.class_embedding": (1024,),
        "visual.positional_embedding": (257, 1024),
        "visual.proj": (1024, 768),
        "visual.conv1.weight": (1024, 3, 14, 14),
        "visual.ln_pre.weight": (1024,),
        "visual.ln_post.weight": (1024,),
        "visual.transformer.resblocks.23.ln_2.weight": (1024,),
        "visual.transformer.resblocks.23.attn.in_proj_weight": (3072, 1024),
        "visual.transformer.resblocks.23.attn.in_proj_bias": (3072,),
        "visual.transformer.resblocks.23.attn.out_proj.weight": (1024, 1024),
        "visual.transformer.resblocks.23.mlp.c_fc.weight": (4096, 1024),
        "visual.transformer.resblocks.23.mlp.c_proj.bias": (1024,),
    }
    assert {key: shapes.get(key) for key in expected} == expected


def test_norms_have_clips_epsilon():
    assert {module.eps for module in small_clip().modules() if isinstance(module, nn.LayerNorm)} == {1e-5}


def test_which_gelu_is_whose():
    assert load_card("unifd").backbone.architecture.arguments["quick_gelu"] is True
    assert load_card("clip-d-10k-plus").backbone.architecture.arguments["quick_gelu"] is False


# ---- golden values of the full tower


@pytest.mark.parametrize("name", PREPARED)
def test_preprocessed_tensor_is_the_authors(name):
    preprocessing = load_card(name).preprocessing
    for image, golden in PREPARED[name].items():
        check(Normalise(preprocessing)(torch.from_numpy(preprocessing.prepare(source(image))[None]))[0], golden)


@pytest.fixture(scope="module")
def tower_state():
    """Made once: both detectors point at it."""
    return filled_tower()


def filled_tower():
    """The filled tower's state dict, 1.2 GB."""
    with torch.device("meta"):
        names = VisionTower(quick_gelu=True).state_dict()
    return {key.removeprefix("visual."): tensor for key, tensor in fill({f"visual.{key}": tensor for key, tensor in names.items()}).items()}


def filled(name, tower_state, head=None):
    """The published detector in fp32, one image at a time, with this head or a filled one."""
    card = load_card(name)
    with torch.device("meta"):
        network = build(card).eval().requires_grad_(False)
    head = head or fill({f"fc.{key}": tensor for key, tensor in network.fc.state_dict().items()})
    tower_state = tower_state | fill_places(network.backbone.positional_embedding)
    network.load_state_dict({f"backbone.{key}": tensor for key, tensor in tower_state.items()} | head, assign=True)
    return Detector(card, network, fake=0, device="cpu", precision="fp32", resize="exact", slots=1, weights_sha256="0" * 64)


def fill_places(places):
    """The one tensor in which towers for larger images differ."""
    return {"positional_embedding": fill({"visual.positional_embedding": places})["visual.positional_embedding"]}


@pytest.mark.slow  # seconds of sums; were one weight in a thousand another, the scores below would be others, too
def test_fill_made_the_authors_tower(tower_state):
    tensors, elements, total, absolute = TOWER
    assert len(tower_state) == tensors
    assert sum(tensor.numel() for tensor in tower_state.values()) == elements
    assert sum(tensor.sum(dtype=torch.float64).item() for tensor in tower_state.values()) == pytest.approx(total, abs=1e-3)
    assert sum(tensor.abs().sum(dtype=torch.float64).item() for tensor in tower_state.values()) == pytest.approx(absolute, abs=0.1)


@pytest.mark.parametrize("name", HEADS)
def test_fill_made_the_authors_head(name):
    with torch.device("meta"):
        head = build(load_card(name)).fc
    state = fill({f"fc.{key}": tensor for key, tensor in head.state_dict().items()})
    elements, total, absolute = HEADS[name]
    assert sum(tensor.numel() for tensor in state.values()) == elements
    assert sum(tensor.double().sum().item() for tensor in state.values()) == pytest.approx(total, abs=1e-5)
    assert sum(tensor.double().abs().sum().item() for tensor in state.values()) == pytest.approx(absolute, abs=1e-3)


# One image goes through each network in every run; what differs before it, the prepared tensors show.
QUICK = [("clip-d-10k-plus", "300x400"), ("unifd", "97x61")]
SCORED = [
    pytest.param(name, image, id=f"{name}-{image}", marks=[pytest.mark.slow] * ((name, image) not in QUICK))
    for name, scores in SCORES.items()
    for image in scores
]


@pytest.mark.parametrize(("name", "image"), SCORED)
def test_score_and_feature_are_the_authors(name, image, tower_state):
    logit, norm, first = SCORES[name][image]
    detector = filled(name, tower_state)
    pixels = detector.normalise(torch.from_numpy(detector.prepare(source(image))[None]))
    with torch.inference_mode():
        seen = detector.network.backbone(pixels)
        feature = seen.projected if detector.network.feature == "projected" else seen.class_token
        # The head alone, so that a test costs one pass: `backbone` is asked again with the very same batch.
        detector.network.set_submodule("backbone", Once(seen))
    score = detector.read(pixels).scores.item()
    assert score == pytest.approx(logit, abs=1e-4 * max(1, abs(logit)))
    assert feature.norm().item() == pytest.approx(norm, rel=1e-4)
    assert feature[0, :4].tolist() == pytest.approx(first, abs=1e-3)


class Once(nn.Module):
    def __init__(self, seen):
        super().__init__()
        self.seen, self.asked = seen, []

    def forward(self, pixels):
        self.asked.append(pixels)
        return self.seen


# ---- small towers against torch's own layers


def torchs_layer(block, width, heads, gelu):
    """torch's pre-norm encoder layer with a block's weights."""
    layer = nn.TransformerEncoderLayer(width, heads, 4 * width, dropout=0, activation=gelu, norm_first=True, batch_first=True).eval()
    names = {"attn": "self_attn", "ln_1": "norm1", "ln_2": "norm2", "mlp.c_fc": "linear1", "mlp.c_proj": "linear2"}
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
    tower.taps = (1, 0)
    pixels = torch.randn(3, 3, 28, 28, generator=torch.Generator().manual_seed(0)).to(memory_format=torch.channels_last)
    patches = functional.unfold(pixels, 14, stride=14).transpose(1, 2) @ tower.conv1.weight.flatten(1).T
    tokens = torch.cat([tower.class_embedding.expand(3, 1, -1), patches], dim=1) + tower.positional_embedding
    tokens, taps = tower.ln_pre(tokens), []
    for block in tower.transformer.resblocks:
        layer = torchs_layer(block, 64, 4, quick_gelu if quick else functional.gelu)
        hooked = layer.norm2.register_forward_hook(lambda module, inputs, output: taps.append(output))
        tokens = layer(tokens)
        hooked.remove()
    seen = tower(pixels)
    class_token = tower.ln_post(tokens[:, 0])
    assert torch.allclose(seen.class_token, class_token, atol=1e-5)
    assert torch.allclose(seen.projected, class_token @ tower.proj, atol=1e-5)
    assert len(seen.taps) == 2
    assert all(torch.allclose(ours, theirs, atol=1e-5) for ours, theirs in zip(seen.taps, reversed(taps), strict=True))
    assert seen.taps[0].shape == (3, 5, 64)
    assert torch.allclose(seen.class_tokens, torch.stack([tap[:, 0] for tap in taps], dim=1), atol=1e-5)


def test_text_tower_is_torchs_transformer_under_a_causal_mask():
    clip = small_clip()
    tokens = torch.randint(0, 50, (3, 9), generator=torch.Generator().manual_seed(0))
    end = torch.tensor([8, 3, 5])
    hidden = clip.token_embedding(tokens) + clip.positional_embedding
    for block in clip.transformer.resblocks:
        hidden = torchs_layer(block, 48, 4, quick_gelu)(hidden, src_mask=nn.Transformer.generate_square_subsequent_mask(9))
    expected = torch.stack([hidden[0, 8], hidden[1, 3], hidden[2, 5]])
    expected = clip.ln_final(expected) @ clip.text_projection
    assert torch.allclose(clip(clip.token_embedding(tokens), end), expected, atol=1e-5)


def test_what_follows_the_end_of_a_text_does_not_matter_and_what_precedes_it_does():
    clip = small_clip()
    embedded = clip.token_embedding(torch.arange(9)[None])
    end = torch.tensor([4])
    text = clip(embedded, end)
    after, before = embedded.clone(), embedded.clone()
    after[:, 5:] = 7
    before[:, 1] = 7
    assert torch.allclose(clip(after, end), text, atol=1e-6)
    assert not torch.allclose(clip(before, end), text, atol=1e-2)


def test_gradients_reach_the_prompts_through_the_text_tower():
    clip = small_clip()
    prompts = clip.token_embedding(torch.arange(9)[None]).requires_grad_()
    clip(prompts, torch.tensor([4])).sum().backward()
    assert prompts.grad[:, :5].abs().sum() > 0
    assert prompts.grad[:, 5:].abs().sum() == 0


def test_text_tower_stands_alone_too():
    tower = TextTower(quick_gelu=True, **TEXT)
    assert set(tower.state_dict()) == {key for key in small_clip().state_dict() if not key.startswith("visual.")} - {"logit_scale"}


def test_bf16_lowers_every_product_and_no_norm():
    network = FrozenLinear(small_clip().visual, feature="class-token", width=64, normalise=True).eval().requires_grad_(False)
    pixels = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    exact = network(pixels)
    lowered = lower_to_bf16(copy.deepcopy(network), "cpu")
    kinds = {key: parameter.dtype for key, parameter in lowered.named_parameters()}
    products = [key for key in kinds if "in_proj" in key or "out_proj" in key or "mlp" in key or "conv1" in key]
    assert len(products) == 2 * 8 + 1
    assert {kinds[key] for key in products} == {torch.bfloat16}
    assert {kind for key, kind in kinds.items() if key not in products} == {torch.float32}
    assert set(lowered.state_dict()) == set(network.state_dict())
    with autocast("cpu", "bf16"):
        scores = lowered(pixels)
    assert scores.dtype == torch.float32
    assert not torch.equal(scores, exact)
    assert torch.allclose(scores, exact, atol=0.02)


# ---- the family


@pytest.mark.parametrize(("feature", "normalise"), [("class-token", True), ("projected", False)])
def test_score_is_the_head_on_the_feature_of_the_file(tmp_path, feature, normalise):
    card, _ = small_card(tmp_path, feature=feature, normalise=normalise)
    detector = load_detector(card, precision="fp32", slots=2)
    pixels = detector.prepare(source("97x61"))[None]
    normalised = detector.normalise(torch.from_numpy(pixels))
    seen = small_clip().visual(normalised)
    expected = functional.normalize(seen.class_token, dim=-1) if normalise else seen.projected
    weight = torch.linspace(-1, 1, expected.shape[1])
    assert detector.score(pixels)[0] == pytest.approx((expected[0] @ weight).item() + 0.25, abs=1e-5)


def test_a_head_hands_its_backbone_the_very_batch_that_it_was_given():
    tower = small_clip().visual
    network = FrozenLinear(tower, feature="projected", width=32, normalise=False).eval()
    pixels = torch.randn(1, 3, 28, 28)
    expected = network(pixels)
    network.set_submodule("backbone", Once(tower(pixels)))
    assert torch.equal(network(pixels), expected)
    assert network.backbone.asked[0] is pixels


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: state.pop("visual.proj"), "1 missing (proj"),
        (lambda state: state.update({"visual.extra": torch.zeros(1)}), "1 unexpected (extra"),
        (lambda state: state.update({"visual.conv1.weight": torch.zeros(64, 3, 7, 7)}), "conv1.weight (64, 3, 7, 7)"),
    ],
)
def test_a_tower_that_does_not_fit_is_told_by_name(tmp_path, change, said):
    from safetensors.torch import save_file

    card, _ = small_card(tmp_path)
    state = {key: tensor.contiguous() for key, tensor in small_clip().state_dict().items()}
    change(state)
    save_file(state, tmp_path / "clip.safetensors")
    with pytest.raises(DetectorError) as caught:
        load_detector(card)
    assert said in caught.value.message


@pytest.mark.parametrize("arguments", [{}, {"feature": "pooled", "normalise": True}, {"feature": "projected", "normalise": 1, "x": 2}])
def test_arguments_that_are_not_understood_are_refused(tmp_path, arguments):
    card, _ = small_card(tmp_path)
    card = card.model_copy(update={"architecture": card.architecture.model_copy(update={"arguments": arguments})})
    with pytest.raises(DetectorError, match="feature"):
        build(card)


def test_a_card_without_a_backbone_is_refused(tmp_path):
    card, _ = small_card(tmp_path)
    with pytest.raises(DetectorError, match="backbone"):
        build(card.model_copy(update={"backbone": None}))


def test_two_layers_with_nothing_between_them_are_one_head(tmp_path):
    generator = torch.Generator().manual_seed(0)
    inner, outer = nn.Linear(64, 8), nn.Linear(8, 1)
    state = {}
    for name, layer in (("layers.0", inner), ("to_logits", outer)):
        layer.load_state_dict({key: torch.randn(tensor.shape, generator=generator) for key, tensor in layer.state_dict().items()})
        state |= {f"model.classification_head.{name}.{key}": tensor for key, tensor in layer.state_dict().items()}
    torch.save({"state_dict": state, "model_type": "clip"}, tmp_path / "orthogonal.ckpt")
    card, _ = small_card(tmp_path, feature="class-token", normalise=False)
    prefixes = load_card("clip-cues").weights.strip_prefixes
    weights = local_weights(card.weights, tmp_path / "orthogonal.ckpt").model_copy(
        update={"unwrap": ("state_dict",), "strip_prefixes": prefixes, "prefix": ""}
    )
    detector = load_detector(card.model_copy(update={"weights": weights}), precision="fp32", slots=1)
    pixels = detector.prepare(source("97x61"))[None]
    feature = small_clip().visual(detector.normalise(torch.from_numpy(pixels))).class_token
    assert detector.score(pixels)[0] == pytest.approx(outer(inner(feature)).item(), abs=1e-5)


@pytest.mark.parametrize("odd", [{"to_logits.weight": torch.zeros(1, 7)}, {"layers.2.weight": torch.zeros(8, 8)}])
def test_other_layers_are_left_for_the_loader_to_name(odd):
    state = {"layers.0.weight": torch.zeros(8, 64), "layers.0.bias": torch.zeros(8)}
    state |= {"to_logits.weight": torch.zeros(1, 8), "to_logits.bias": torch.zeros(1)} | odd
    assert published_keys(state, nn.Identity()) is state
