"""Linear heads on foundation models: published keys and shapes, features as the libraries give
them, other sizes, shared work.
"""

import numpy as np
import pytest
import timm
import torch
import transformers
from safetensors.torch import load_file, save_file
from timm.models import eva, vision_transformer
from torch.nn import functional

from benchmarks.seeded import local_weights
from ray_app.detectors import load_card, load_detector
from ray_app.detectors.detector import build_network
from ray_app.errors import DetectorError
from tests.make.networks.fill import pattern_image, source, with_part, with_tower
from tests.make.networks.small_frozen import BACKBONES, seeded_frozen, small_frozen

NAMES = list(BACKBONES)


def library_network(card):
    """The library's own network by the name on the card, built by none of our code."""
    library, _, name = card.backbone.architecture.name.partition("/")
    arguments = dict(card.backbone.architecture.arguments)
    if library == "timm":
        return timm.create_model(name, pretrained=False, **arguments).eval()
    return transformers.MetaClip2VisionModelWithProjection(
        transformers.MetaClip2VisionConfig(**arguments)
    ).eval()


@torch.inference_mode()
def library_score(network, card, pixels):
    """The card's head on the library's own feature."""
    head = torch.load(card.weights.uri, weights_only=True)["model"]
    if card.name.startswith("vfm-metaclip2-h14"):
        feature = network(pixel_values=pixels).image_embeds
    else:
        feature = network.forward_head(network.forward_features(pixels), pre_logits=True)
    feature = functional.normalize(feature, dim=-1)
    return (feature @ head["fc.weight"][0] + head["fc.bias"]).item()


@pytest.mark.parametrize("name", [name for name in NAMES if name != "vfm-metaclip2-h14"])
def test_the_preprocessing_is_timm_s(name):
    """The transform that timm makes of its own entry gives the same pixels."""
    card = load_card(name)
    entry = timm.get_pretrained_cfg(card.backbone.architecture.name.partition("/")[2])
    assert (card.preprocessing.mean, card.preprocessing.std) == (entry.mean, entry.std)
    assert card.preprocessing.shape == entry.input_size[1:]
    assert (card.preprocessing.filter, card.preprocessing.resize.size) == (
        entry.interpolation,
        int(entry.input_size[1] / entry.crop_pct),
    )
    assert (
        {"apache-2.0": "Apache-2.0", "dinov3-license": "DINOv3 License"}[entry.license]
        == card.licence
        == card.backbone.licence
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_score_is_the_head_on_the_library_s_feature(name, tmp_path):
    card = seeded_frozen(name, tmp_path)
    detector = load_detector(card, precision="fp32", slots=1)
    network = library_network(card)
    # Strict: the published names.
    network.load_state_dict(load_file(card.backbone.weights.uri))
    pixels = detector.prepare(source("300x400"))[None]
    expected = library_score(network, card, detector.normalise(torch.from_numpy(pixels)))
    assert detector.score(pixels)[0] == pytest.approx(expected, abs=1e-5)
    lowered = load_detector(card, precision="bf16").score(pixels)[0]
    assert lowered == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize(
    "name", [f"{name}:{size}" for name in NAMES for size in load_card(name).variants]
)
def test_another_size_takes_the_same_file(name, tmp_path):
    """The positions are resampled as the library does it when it loads a network of that size."""
    base, size = name.split(":")
    card = seeded_frozen(name, tmp_path)
    assert card.preprocessing.shape == (int(size), int(size))
    detector = load_detector(card, precision="fp32", slots=1)
    pixels = detector.prepare(source("500x600"))[None]
    score = detector.score(pixels)[0]
    assert np.isfinite(score)
    if base in ("vfm-pe-l14", "vfm-siglip2-so400m"):
        fixed = {"img_size": int(size), "dynamic_img_size": False}
        loaded = library_network(with_tower(card, **fixed))
        module = eva if base == "vfm-pe-l14" else vision_transformer
        state = module.checkpoint_filter_fn(load_file(card.backbone.weights.uri), loaded)
        loaded.load_state_dict(state)
        expected = library_score(loaded, card, detector.normalise(torch.from_numpy(pixels)))
        assert score == pytest.approx(expected, abs=1e-5)


def test_a_file_with_the_text_tower_is_read_by_its_image_part(tmp_path):
    card = seeded_frozen("vfm-metaclip2-h14", tmp_path)
    whole = load_file(card.backbone.weights.uri) | {
        "text_model.embeddings.token_embedding.weight": torch.zeros(3, 3),
        "logit_scale": torch.ones(1),
    }
    pixels = np.stack([pattern_image(224, 224)])
    expected = load_detector(card, precision="fp32").score(pixels)
    file = tmp_path / "whole.safetensors"
    save_file(whole, file)
    card = with_part(card, "backbone", weights=local_weights(card.backbone.weights, file))
    assert load_detector(card, precision="fp32").score(pixels) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("architecture", "said"),
    [
        ({"name": "open_clip/ViT-L-14"}, "must be timm"),
        ({"name": "timm/no_such"}, "timm cannot build no_such"),
        (
            {"name": "transformers/CLIPVisionModelWithProjection", "arguments": {"hiden_size": 3}},
            "unknown keys .*hiden_size",
        ),
    ],
)
def test_a_backbone_that_cannot_be_built_is_told(architecture, said):
    card = small_frozen(load_card("vfm-pe-l14"))
    built = card.backbone.architecture.model_copy(update={"arguments": {}} | architecture)
    with pytest.raises(DetectorError, match=said):
        build_network(with_part(card, "backbone", architecture=built))
