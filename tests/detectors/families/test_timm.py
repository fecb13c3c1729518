"""Files that an earlier timm, or the authors of a network, saved with other names than the installed
timm has.
"""

import pytest
import torch

from benchmarks.seeded import card_with_weights, seeded_state, write_weights
from ray_app.detectors import DetectorCard, load_detector
from ray_app.detectors.checkpoints import load_strictly
from ray_app.detectors.detector import build_network
from ray_app.detectors.families.frozen import TimmBackbone, published_keys
from ray_app.errors import DetectorError
from tests.make.cards import UNPUBLISHED
from tests.make.networks.fill import filled, pattern_image

SWIN = {"embed_dim": 12, "depths": [1, 2, 1, 1], "num_heads": [1, 2, 3, 3]}
CONVNEXT = {"depths": [1, 1, 2, 1], "dims": [8, 16, 24, 32]}
VIT = {"img_size": 64}


def timm_card(name, arguments, *, family="timm-classifier", side=224):
    return DetectorCard.model_validate(
        {
            "name": "old",
            "title": "An old file",
            "family": family,
            "architecture": {"name": name, "arguments": arguments},
            "preprocessing": {"resize": {"mode": "squash", "size": side}, "filter": "bilinear"},
            **UNPUBLISHED,
        }
    )


def swin_before_0_9(state, network):
    """Names before timm 0.9: masks are buffers, `downsample` ends a stage, the head is one layer."""
    old = {}
    for key, tensor in state.items():
        parts = key.split(".")
        if parts[0] == "layers" and parts[2] == "downsample":
            parts[1] = str(int(parts[1]) - 1)
        old[".".join(parts).replace("head.fc.", "head.")] = tensor
    buffers = dict(network.named_buffers())
    names = ("relative_position_index", "relative_coords_table", "attn_mask")
    return old | {key: buffer for key, buffer in buffers.items() if key.endswith(names)}


def authors_convnext(state, network):
    """Names of the authors' own code."""
    del network
    replaced = {
        "stem.": "downsample_layers.0.",
        ".blocks.": ".",
        "conv_dw": "dwconv",
        "mlp.fc": "pwconv",
        "head.fc.": "head.",
        "head.norm.": "norm.",
    }
    old = {}
    for key, tensor in state.items():
        if ".downsample." in key:
            _, stage, _, rest = key.split(".", 3)
            key = f"downsample_layers.{stage}.{rest}"
        for new, published in replaced.items():
            key = key.replace(new, published)
        old[key] = tensor
    return old


def nested(state, network):
    """A file with the state dict of another wrapper, as `unwrap` of a card cannot state it."""
    del network
    return {f"visual.trunk.{key}": tensor for key, tensor in state.items()}


OLD = {
    "swin_tiny_patch4_window7_224": (SWIN, 224, swin_before_0_9),
    "swinv2_tiny_window8_256": (SWIN, 256, swin_before_0_9),
    "convnext_tiny": (CONVNEXT, 64, authors_convnext),
    "test_vit": (VIT, 64, nested),
}


@pytest.mark.parametrize("name", OLD)
def test_old_timm_file_scores_as_the_new_one(name, tmp_path):
    arguments, side, rename = OLD[name]
    card = timm_card(name, arguments, side=side)
    state = seeded_state(card)
    scores = []
    for file, tensors in (("new", state), ("old", rename(state, build_network(card)))):
        path = write_weights(tmp_path / f"{file}.pth", tensors)
        detector = load_detector(card_with_weights(card, path), precision="fp32", slots=1)
        scores.append(detector.score(pattern_image(side, side)[None])[0])
    assert tensors.keys() != state.keys()
    assert scores[0] == scores[1] != 0


@pytest.mark.parametrize(
    ("arguments", "change", "said"),
    [
        (SWIN, {"layers.3.downsample.norm.bias": None}, "missing"),
        (SWIN, {"aux.weight": torch.zeros(3)}, r"1 unexpected \(aux.weight\)"),
        ({**SWIN, "img_size": 384, "window_size": 12}, {}, "of another shape"),
    ],
)
def test_old_timm_file_that_does_not_fit_is_refused(arguments, change, said, tmp_path):
    state = seeded_state(timm_card("swin_tiny_patch4_window7_224", SWIN)) | change
    state = {key: tensor for key, tensor in state.items() if tensor is not None}
    card = timm_card("swin_tiny_patch4_window7_224", arguments)
    old = swin_before_0_9(state, build_network(card))
    path = write_weights(tmp_path / "old.pth", old)
    with pytest.raises(DetectorError, match=said):
        load_detector(card_with_weights(card, path))


@pytest.mark.parametrize(("family", "prefix"), [("embedding", "model."), ("b-free", "network.")])
def test_old_timm_file_fits_networks_around_timm_s(family, prefix, tmp_path):
    arguments = {"width": 8, **CONVNEXT} if family == "embedding" else VIT
    name, rename = (
        ("convnext_tiny", authors_convnext) if family == "embedding" else ("test_vit", nested)
    )
    card = timm_card(name, arguments, family=family, side=64)
    state = seeded_state(card)
    inner = {key.removeprefix(prefix): value for key, value in state.items() if prefix in key}
    old = {prefix + key: value for key, value in rename(inner, None).items()}
    old |= {key: value for key, value in state.items() if prefix not in key}
    path = write_weights(tmp_path / "old.pth", old)
    network = load_detector(card_with_weights(card, path), precision="fp32").network
    for key, tensor in network.state_dict().items():
        assert torch.equal(tensor, state[key]), key


def test_old_timm_file_fits_a_frozen_backbone():
    backbone = TimmBackbone(filled(build_network(timm_card("convnext_tiny", CONVNEXT))))
    state = {key.removeprefix("network."): value for key, value in backbone.state_dict().items()}
    load_strictly(backbone, published_keys(authors_convnext(state, None), backbone), "old")
