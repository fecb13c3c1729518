"""A published transformers ViT by YAML alone: its file has the names of an older transformers, and its scores are golden ones."""

import re
import sys

import pytest
import torch
import yaml

from benchmarks.seeded import write_weights
from ray_app.detectors import load_card, load_detector
from ray_app.detectors.detector import build_network
from ray_app.errors import DetectorError
from tests.detectors.conftest import filled_state
from tests.detectors.fill import Undrawn, source

CARD = """
name: hf-port
title: Community Forensics as a third party's transformers ViT
family: transformers-classifier
architecture:
  name: vit
  arguments: {image_size: 384, patch_size: 16, hidden_size: 384, num_hidden_layers: 12, num_attention_heads: 6, intermediate_size: 1536,
              hidden_act: gelu, layer_norm_eps: EPS}
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
# By LayerNorm epsilon the logit of 300x400 of timm's filled weights in the port's file: fp32, CPU, batch 1, transformers 5.23.
GOLDEN = {"1.0e-06": -2.23134685, "1.0e-12": -2.23226975}
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "image_size": 32}

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
            published |= {key.replace("attn.qkv", f"attention.attention.{name}"): part.contiguous() for name, part in parts}
        else:
            published[key] = tensor
    return published


def card_in(folder, eps="1.0e-06"):
    path = folder / f"card-{eps}.yaml"
    path.write_text(CARD.replace("EPS", eps))
    return load_card(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("port")
    write_weights(folder / "model.safetensors", ported(filled_state("community-forensics-vits384")))
    return folder


@pytest.mark.parametrize("eps", GOLDEN)
def test_the_score_of_a_file_in_published_names_is_the_authors(eps, folder):
    with Undrawn():
        detector = load_detector(card_in(folder, eps), precision="fp32", slots=1)
    assert detector.score(detector.prepare(source("300x400"))[None])[0] == pytest.approx(GOLDEN[eps], abs=3e-4)


@pytest.fixture
def small(tmp_path):
    """A small ViT's card and its state dict in today's and in published names."""
    described = yaml.safe_load(CARD.replace("EPS", "1.0e-06"))
    described["architecture"]["arguments"] |= SMALL
    described["preprocessing"] = {"resize": {"mode": "squash", "size": 32}}
    (tmp_path / "card.yaml").write_text(yaml.safe_dump(described))
    card = load_card(tmp_path / "card.yaml")
    todays = {key: torch.randn(tensor.shape) for key, tensor in build_network(card).state_dict().items()}
    old = [
        (r"\.layers\.", ".encoder.layer."),
        (r"attention\.q_proj", "attention.attention.query"),
        (r"attention\.k_proj", "attention.attention.key"),
        (r"attention\.v_proj", "attention.attention.value"),
        (r"attention\.o_proj", "attention.output.dense"),
        (r"mlp\.fc1", "intermediate.dense"),
        (r"mlp\.fc2", "output.dense"),
    ]
    published = {}
    for key, tensor in todays.items():
        for new, name in old:
            key = re.sub(new, name, key)
        published[key] = tensor
    assert published.keys() != todays.keys()
    return card, todays, published


def test_either_set_of_names_gives_the_same_network(small, tmp_path):
    card, todays, published = small
    for state in (todays, published):
        write_weights(tmp_path / "model.safetensors", state)
        loaded = load_detector(card, precision="fp32").network.state_dict()
        assert all(torch.equal(loaded[key], tensor) for key, tensor in todays.items())


def test_two_keys_for_one_tensor_are_refused(small, tmp_path):
    card, _, published = small
    write_weights(tmp_path / "model.safetensors", published | {"vit.layers.0.mlp.fc1.bias": torch.zeros(64)})
    with pytest.raises(DetectorError, match=r"intermediate\.dense\.bias and vit\.layers\.0\.mlp\.fc1\.bias"):
        load_detector(card)


def test_a_transformers_that_does_not_tell_its_old_names_is_said_to(small, monkeypatch, tmp_path):
    card, todays, published = small
    monkeypatch.setitem(sys.modules, "transformers.conversion_mapping", None)
    write_weights(tmp_path / "model.safetensors", published)
    with pytest.raises(DetectorError, match="does not say what it renamed") as told:
        load_detector(card)
    assert "5.23" in told.value.hint
    write_weights(tmp_path / "model.safetensors", todays)
    load_detector(card)
