"""A published transformers ViT by its card alone: its file has the names of an older transformers, and
its scores are the authors'.
"""

import re

import pytest
import timm
import torch
from transformers import CLIPImageProcessor

from benchmarks.seeded import card_with_weights, write_weights
from ray_app.detectors import load_card, load_detector
from tests.detectors.golden import SCORES, filled_state, near, score_image
from tests.make.networks.fill import Undrawn, source, with_arguments

ORIGINAL = "community-forensics-vits384"
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
    """Rename timm's state dict as the port's file has it."""
    published = {}
    for key, tensor in state.items():
        for timms, ports in PUBLISHED:
            key = re.sub(timms, ports, key)
        if ".attn.qkv." in key:
            for name, part in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                place = key.replace("attn.qkv", f"attention.attention.{name}")
                published[place] = part.contiguous()
        else:
            published[key] = tensor
    return published


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    """The shipped card, with the filled weights of the authors' own network."""
    path = tmp_path_factory.mktemp("port") / "model.safetensors"
    write_weights(path, ported(filled_state(ORIGINAL)))
    return card_with_weights(load_card("community-forensics-port"), path)


def loaded(card):
    with Undrawn():
        return load_detector(card, precision="fp32", slots=1)


def test_port_scores_as_the_authors_after_their_preprocessing(port):
    # The port's norms have the epsilon of transformers, the authors' that of timm.
    card = with_arguments(port, {**port.architecture.arguments, "layer_norm_eps": 1e-6})
    preprocessing = load_card(ORIGINAL).preprocessing
    detector = loaded(card.model_copy(update={"preprocessing": preprocessing}))
    assert score_image(detector, "300x400") == near(SCORES[ORIGINAL]["300x400"])


def test_shipped_port_scores_as_transformers_does(port):
    """Its processor's steps, as users state them, before transformers' own network."""
    detector, crop = loaded(port), {"height": 384, "width": 384}
    processor = CLIPImageProcessor(size={"shortest_edge": 440}, crop_size=crop, resample=3)
    pixels = processor(images=source("300x400"), return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        expected = float(detector.network(pixels)[0])
    assert score_image(detector, "300x400") == pytest.approx(expected, abs=1e-4)
    assert abs(expected - SCORES[ORIGINAL]["300x400"]) > 0.01, "the preprocessing is another"


def test_either_set_of_names_gives_the_same_network(tmp_path):
    widths = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    widths |= {"intermediate_size": 64, "image_size": 32}
    card = load_card("community-forensics-port")
    card = with_arguments(card, {**card.architecture.arguments, **widths})
    network = timm.create_model("vit_small_patch16_224", img_size=32, embed_dim=32, depth=2,
                                num_heads=2, mlp_ratio=2, num_classes=1)  # fmt: skip
    published = ported({f"vit.{key}": tensor for key, tensor in network.state_dict().items()})

    def read(name, state):
        path = write_weights(tmp_path / f"{name}.safetensors", state)
        network = load_detector(card_with_weights(card, path), precision="fp32").network
        return {key: tensor.contiguous() for key, tensor in network.state_dict().items()}

    todays = read("published", published)
    assert published.keys() != todays.keys()
    again = read("todays", todays)
    assert all(torch.equal(again[key], tensor) for key, tensor in todays.items())
