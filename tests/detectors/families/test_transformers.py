"""A published transformers ViT by YAML alone: its file has the names of an older transformers, and
its scores are golden ones.
"""

import re

import pytest
import timm
import torch
import yaml
from transformers import CLIPImageProcessor

from benchmarks.seeded import card_with_weights, write_weights
from ray_app.detectors import load_card, load_detector
from tests.detectors.fill import Undrawn, source
from tests.detectors.golden import filled_state

CARD = """
name: hf-port
title: Community Forensics as a third party's transformers ViT
family: transformers-classifier
architecture:
  name: vit
  arguments: {image_size: 384, patch_size: 16, hidden_size: 384, num_hidden_layers: 12, num_attention_heads: 6, intermediate_size: 1536,
              hidden_act: gelu, layer_norm_eps: 1.0e-06}
preprocessing:
  resize: {mode: short_side, size: 440}
  filter: bilinear
  resampler: pillow
  center_crop: 384
  mean: [0.485, 0.456, 0.406]
  std: [0.229, 0.224, 0.225]
weights: {uri: model.safetensors, unverified: filled by formula}
output: {sign: 1}
licence: MIT
citation: none
source: this test
training_data: {name: none, licence: none}
"""
# Of timm's filled weights in the port's file the logit of 300x400: fp32, CPU, batch 1, transformers
# 5.23.
GOLDEN = -2.23134685
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
}

# timm's names → those of the port's file; `qkv` is one tensor here and three there.
PUBLISHED = [
    (r"^vit\.(cls_token)$", r"vit.embeddings.\1"),
    (r"^vit\.pos_embed$", "vit.embeddings.position_embeddings"),
    (r"^vit\.patch_embed\.proj\.", "vit.embeddings.patch_embeddings.projection."),
    (r"^vit\.norm\.", "vit.layernorm."),
    (r"^vit\.head\.", "classifier."),
    (r"^vit\.blocks\.", "vit.encoder.layer."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
]


def ported(state):
    """timm's state dict as the port's file has it."""
    published = {}
    for key, tensor in state.items():
        for timms, ports in PUBLISHED:
            key = re.sub(timms, ports, key)
        if ".attn.qkv." in key:
            parts = zip(("query", "key", "value"), tensor.chunk(3), strict=True)
            published |= {
                key.replace("attn.qkv", f"attention.attention.{name}"): part.contiguous()
                for name, part in parts
            }
        else:
            published[key] = tensor
    return published


def card_in(folder, arguments=None, **changes):
    described = yaml.safe_load(CARD) | changes
    described["architecture"]["arguments"] |= arguments or {}
    (folder / "card.yaml").write_text(yaml.safe_dump(described))
    return load_card(folder / "card.yaml")


def test_the_score_of_a_file_in_published_names_is_the_authors(tmp_path):
    write_weights(
        tmp_path / "model.safetensors", ported(filled_state("community-forensics-vits384"))
    )
    with Undrawn():
        detector = load_detector(card_in(tmp_path), precision="fp32", slots=1)
    assert detector.score(detector.prepare(source("300x400"))[None])[0] == pytest.approx(
        GOLDEN, abs=1e-4 * abs(GOLDEN)
    )


@pytest.fixture
def small(tmp_path):
    """A small ViT's card and its state dict in today's and in published names."""
    card = card_in(tmp_path, SMALL, preprocessing={"resize": {"mode": "squash", "size": 32}})
    sizes = {
        "img_size": 32,
        "embed_dim": 32,
        "depth": 2,
        "num_heads": 2,
        "mlp_ratio": 2,
        "num_classes": 1,
    }
    timms = timm.create_model("vit_small_patch16_224", **sizes).state_dict()
    published = ported({f"vit.{key}": tensor for key, tensor in timms.items()})
    write_weights(tmp_path / "model.safetensors", published)
    todays = load_detector(card, precision="fp32").network.state_dict()
    return card, {key: tensor.contiguous() for key, tensor in todays.items()}, published


def test_either_set_of_names_gives_the_same_network(small, tmp_path):
    card, todays, published = small
    assert published.keys() != todays.keys()
    write_weights(tmp_path / "model.safetensors", todays)
    loaded = load_detector(card, precision="fp32").network.state_dict()
    assert all(torch.equal(loaded[key], tensor) for key, tensor in todays.items())


def test_the_shipped_port_scores_as_transformers_does(tmp_path):
    """Its processor's steps, as users state them, before transformers' own network."""
    state = ported(filled_state("community-forensics-vits384"))
    card = card_with_weights(
        load_card("community-forensics-port"), write_weights(tmp_path / "model.safetensors", state)
    )
    with Undrawn():
        detector = load_detector(card, precision="fp32", slots=1)
    processor = CLIPImageProcessor(
        size={"shortest_edge": 440}, crop_size={"height": 384, "width": 384}, resample=3
    )
    picture = source("300x400")
    pixels = processor(images=picture, return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        expected = float(detector.network(pixels)[0])
    assert detector.score(detector.prepare(picture)[None])[0] == pytest.approx(expected, abs=1e-4)
    assert abs(expected - GOLDEN) > 0.01  # the authors' preprocessing is another
