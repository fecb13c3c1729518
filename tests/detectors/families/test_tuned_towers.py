"""C2P-CLIP, Effort, DDA, and GAPL: the authors' own scores on files in their published format, and
files that are not quite that.
"""

import itertools
import re

import pytest
import torch

from benchmarks.seeded import card_with_weights
from ray_app.detectors import load_card, load_detector
from ray_app.detectors.checkpoints import load_strictly
from ray_app.detectors.detector import build_network, rename_keys
from ray_app.detectors.families.low_rank import merged
from ray_app.errors import DetectorError
from tests.detectors.golden import check_scores
from tests.make.networks.fill import fill, filled_tensor, with_arguments

# The published state dicts: a name and a shape per line. `*` is each layer, `{a,b}` each choice, W
# the width.
CLIP = """
embeddings.class_embedding W
embeddings.patch_embedding.weight W 3 14 14
embeddings.position_embedding.weight 257 W
{pre_layrnorm,post_layernorm}.{weight,bias} W
encoder.layers.*.layer_norm{1,2}.{weight,bias} W
encoder.layers.*.mlp.fc1.weight 4W W
encoder.layers.*.mlp.fc1.bias 4W
encoder.layers.*.mlp.fc2.weight W 4W
encoder.layers.*.mlp.fc2.bias W
"""
C2P_CLIP = """
encoder.layers.*.self_attn.{k,v,q,out}_proj.weight W W
encoder.layers.*.self_attn.{k,v,q,out}_proj.bias W
"""
EFFORT = """
encoder.layers.*.self_attn.{k,v,q,out}_proj.weight_main W W
encoder.layers.*.self_attn.{k,v,q,out}_proj.bias W
encoder.layers.*.self_attn.{k,v,q,out}_proj.S_residual 1
encoder.layers.*.self_attn.{k,v,q,out}_proj.U_residual W 1
encoder.layers.*.self_attn.{k,v,q,out}_proj.V_residual 1 W
"""
GAPL = """
encoder.layers.*.self_attn.{k,v,q}_proj.base_layer.weight W W
encoder.layers.*.self_attn.{k,v,q}_proj.base_layer.bias W
encoder.layers.*.self_attn.{k,v,q}_proj.lora_A.default.weight 16 W
encoder.layers.*.self_attn.{k,v,q}_proj.lora_B.default.weight W 16
encoder.layers.*.self_attn.out_proj.weight W W
encoder.layers.*.self_attn.out_proj.bias W
"""
DDA = """
cls_token 1 1 W
pos_embed 1 1370 W
mask_token 1 W
patch_embed.proj.weight W 3 14 14
{patch_embed.proj.bias,norm.weight,norm.bias} W
blocks.*.{norm1,norm2}.{weight,bias} W
blocks.*.{ls1,ls2}.gamma W
blocks.*.{attn.qkv,attn.proj,mlp.fc1}.lora.lora_A 8 W
blocks.*.attn.qkv.original_layer.weight 3W W
blocks.*.attn.qkv.original_layer.bias 3W
blocks.*.attn.qkv.lora.lora_B 3W 8
blocks.*.attn.proj.original_layer.weight W W
blocks.*.{attn.proj,mlp.fc2}.original_layer.bias W
blocks.*.{attn.proj,mlp.fc2}.lora.lora_B W 8
blocks.*.mlp.fc1.original_layer.weight 4W W
blocks.*.mlp.fc1.original_layer.bias 4W
blocks.*.mlp.fc1.lora.lora_B 4W 8
blocks.*.mlp.fc2.original_layer.weight W 4W
blocks.*.mlp.fc2.lora.lora_A 8 4W
"""
# By card: the tower's prefix and tensors, and the tensors beside it.
FILES = {
    "c2p-clip": (
        "model.vision_model.",
        CLIP + C2P_CLIP,
        "model.visual_projection.weight 768 W\nmodel.fc.weight 1 768\nmodel.fc.bias 1",
    ),
    "effort": ("backbone.", CLIP + EFFORT, "head.weight 2 W\nhead.bias 2"),
    "dda": ("base_model.model.", DDA, "base_model.fc.weight 1 W\nbase_model.fc.bias 1"),
    "gapl": (
        "feature_extractor.",
        CLIP + GAPL,
        "cross_attention.in_proj_weight 384 128\ncross_attention.in_proj_bias 384\n"
        "cross_attention.out_proj.weight 128 128\ncross_attention.out_proj.bias 128\n"
        "foren_proj.weight 128 W\nfc.weight 1 128",
    ),
}
# Width, layers, and arguments of the tower. The head of Effort's authors is 1,024 wide.
NARROW = {
    "c2p-clip": (64, 2, {"width": 64, "layers": 2, "heads": 4}),
    "effort": (1024, 1, {"layers": 1}),
    "dda": (48, 2, {"embed_dim": 48, "depth": 2, "num_heads": 4}),
    "gapl": (64, 2, {"width": 64, "layers": 2, "heads": 4}),
}
# These tensors are so many times larger, or nothing of the image would reach the score.
LOUDER = {"model.fc.weight": 30, "head.weight": 2, "base_model.fc.weight": 4, "fc.weight": 30,
          "cross_attention.in_proj_weight": 8}  # fmt: skip


def published(name, width=1024, layers=24):
    """The state dict of a published file, empty."""
    root, tower, beside = FILES[name]
    state = {}
    for line in [*(root + line for line in tower.split("\n") if line), *beside.split("\n")]:
        key, *sizes = line.replace("*", f"{{{','.join(map(str, range(layers)))}}}").split()
        shape = [
            int(size.removesuffix("W") or 1) * width if size.endswith("W") else int(size)
            for size in sizes
        ]
        choices = [part.split(",") for part in re.split(r"[{}]", key)]
        state |= {"".join(parts): torch.empty(shape) for parts in itertools.product(*choices)}
    return state


def narrow_card(name):
    card, (_, _, changes) = load_card(name), NARROW[name]
    arguments = dict(card.architecture.arguments)
    if name != "dda":
        changes = {"tower": {**arguments["tower"], **changes}}
    return with_arguments(card, arguments | changes)


def write_published(name, path, **beside):
    """Write a narrow, filled file in the published format, and return its card."""
    width, layers, _ = NARROW[name]
    state = fill(published(name, width, layers))
    for key, tensor in state.items():
        state[key] = torch.full((1,), 3.0) if key.endswith("S_residual") else tensor
        state[key] = state[key] * LOUDER.get(key, 1)
    is_bare = name in ("c2p-clip", "effort")
    torch.save(state if is_bare else {"model": state, "epoch": 3, **beside}, path)
    return card_with_weights(narrow_card(name), path)


@pytest.mark.parametrize("name", FILES)
def test_scores_are_the_authors(name, tmp_path):
    beside = (
        {"prototype": filled_tensor("prototype", torch.empty(64, 128))}
        if name == "gapl"
        else {"optimizer": {"state": {}}}
    )
    card = write_published(name, tmp_path / "published.pth", **beside)
    check_scores(load_detector(card, precision="fp32", slots=1), f"{name} narrow")


# Third parties counted 681 tensors of 303,378,530 numbers in Effort's file, and 305,736,320 in
# GAPL's, in addition to the prototypes.
@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("c2p-clip", 303_966_977),
        ("effort", 303_378_530),
        ("dda", 307_515_393),
        ("gapl", 305_736_320),
    ],
)
def test_every_tensor_of_a_published_file_has_a_place(name, numbers):
    with torch.device("meta"):
        state, network = published(name), build_network(load_card(name))
        assert sum(tensor.numel() for tensor in state.values()) == numbers
        assert name != "effort" or len(state) == 681
        named = rename_keys(load_card(name), state, network)
    if name == "gapl":
        named["prototype"] = torch.empty(64, 128)
    shapes = {key: tensor.shape for key, tensor in network.state_dict().items()}
    assert {key: tensor.shape for key, tensor in named.items()} == shapes


def test_size_of_the_published_dda_file_is_explained():
    """The file has the optimiser's state of the additions and of the head: each number twice."""
    with torch.device("meta"):
        sizes = {key: tensor.numel() for key, tensor in published("dda").items()}
    trained = sum(sizes[key] for key in sizes if "lora" in key or ".fc." in key)
    assert 0 < 1_255_621_296 - 4 * (sum(sizes.values()) + 2 * trained) < 500_000


@pytest.mark.parametrize(
    ("name", "key", "said"),
    [
        (
            "effort",
            "backbone.encoder.layers.0.self_attn.q_proj.S_residual",
            r"do not fit a weight \(1024, 1024\)",
        ),
        ("c2p-clip", "model.text_model.final_layer_norm.bias", "text_model"),
    ],
)
def test_wrong_tensor_is_named(name, key, said):
    with torch.device("meta"):
        state = {**published(name), key: torch.ones(2)}
        network = build_network(load_card(name))
        with pytest.raises(DetectorError, match=said):
            load_strictly(network, rename_keys(load_card(name), state, network), name)


def test_file_without_its_prototypes_is_refused(tmp_path):
    with pytest.raises(DetectorError, match=r"missing.*prototype"):
        load_detector(write_published("gapl", tmp_path / "published.pth"))


def test_low_rank_addition_is_scaled_by_its_rank():
    state = {
        "a.base_layer.weight": torch.zeros(3, 2),
        "a.lora_A.default.weight": torch.ones(4, 2),
        "a.lora_B.default.weight": torch.ones(3, 4),
    }
    assert torch.equal(merged(state, 8)["a.weight"], torch.full((3, 2), 8.0))
    with pytest.raises(DetectorError, match=r"a: .* do not fit a weight \(3, 2\)"):
        merged({**state, "a.lora_B.default.weight": torch.ones(3, 5)}, 8)
    del state["a.lora_B.default.weight"]
    assert merged(state, 8).keys() == state.keys()
