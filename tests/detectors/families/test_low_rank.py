"""DDA and GAPL: the authors' own logits on files in their published format, and files that are not
quite that.
"""

import pytest
import torch

from benchmarks.seeded import card_with_weights
from ray_app.detectors import load_card, load_detector
from ray_app.detectors.detector import build_network, own_keys
from ray_app.detectors.families.low_rank import merged
from ray_app.errors import DetectorError
from tests.detectors.fill import fill, filled_tensor, with_arguments
from tests.detectors.golden import check_scores

LOUDER = {"base_model.fc.weight": 4, "fc.weight": 30, "cross_attention.in_proj_weight": 8}
WIDTH, LAYERS = {"dda": 48, "gapl": 64}, 2
# what each file's additions stand beside: the linear layers of a block, as (outputs, inputs) of the
# width
BARE = {
    "dda": {"attn.qkv": (3, 1), "attn.proj": (1, 1), "mlp.fc1": (4, 1), "mlp.fc2": (1, 4)},
    "gapl": {f"self_attn.{part}_proj": (1, 1) for part in "kvq"},
}


def published_shapes(name, width, layers):
    """Names and shapes of the published file's state dict, with as many layers."""
    norm, rank = {"weight": (width,), "bias": (width,)}, {"dda": 8, "gapl": 16}[name]
    own, down, up = {
        "dda": ("original_layer", "lora.lora_A", "lora.lora_B"),
        "gapl": ("base_layer", "lora_A.default.weight", "lora_B.default.weight"),
    }[name]
    block = {}
    for layer, (out, into) in BARE[name].items():
        block[layer] = {f"{own}.weight": (out * width, into * width), f"{own}.bias": (out * width,)}
        block[layer] |= {down: (rank, into * width), up: (out * width, rank)}
    if name == "dda":
        block |= {
            "norm1": norm,
            "norm2": norm,
            "ls1": {"gamma": (width,)},
            "ls2": {"gamma": (width,)},
        }
        parts, head = (
            {"norm": norm, "patch_embed.proj": {"weight": (width, 3, 14, 14), "bias": (width,)}},
            {"weight": (1, width), "bias": (1,)},
        )
        root, blocks, beside = "base_model.model.", "blocks", {"base_model.fc": head}
        tower = {
            "cls_token": (1, 1, width),
            "pos_embed": (1, 37**2 + 1, width),
            "mask_token": (1, width),
        }
    else:
        linear = {"weight": (width, width), "bias": (width,)}
        block |= {"self_attn.out_proj": linear, "layer_norm1": norm, "layer_norm2": norm}
        block |= {
            "mlp.fc1": {"weight": (4 * width, width), "bias": (4 * width,)},
            "mlp.fc2": {"weight": (width, 4 * width), "bias": (width,)},
        }
        parts, root, blocks = (
            {"pre_layrnorm": norm, "post_layernorm": norm},
            "feature_extractor.",
            "encoder.layers",
        )
        beside = {
            "cross_attention": {"in_proj_weight": (384, 128), "in_proj_bias": (384,)},
            "foren_proj": {"weight": (128, width)},
        }
        beside |= {
            "cross_attention.out_proj": {"weight": (128, 128), "bias": (128,)},
            "fc": {"weight": (1, 128)},
        }
        tower = {
            "embeddings.class_embedding": (width,),
            "embeddings.patch_embedding.weight": (width, 3, 14, 14),
        }
        tower |= {"embeddings.position_embedding.weight": (257, width)}
    parts |= {
        f"{blocks}.{layer}.{part}": shapes
        for layer in range(layers)
        for part, shapes in block.items()
    }
    tower |= {
        f"{part}.{last}": shape for part, shapes in parts.items() for last, shape in shapes.items()
    }
    return {root + key: shape for key, shape in tower.items()} | {
        f"{part}.{last}": one for part in beside for last, one in beside[part].items()
    }


def narrow(name):
    arguments = load_card(name).architecture.arguments
    if name == "dda":
        return with_arguments(
            load_card(name),
            {**arguments, "embed_dim": WIDTH[name], "depth": LAYERS, "num_heads": 4},
        )
    return with_arguments(
        load_card(name),
        {
            **arguments,
            "tower": {**arguments["tower"], "width": WIDTH[name], "layers": LAYERS, "heads": 4},
        },
    )


def write_published(name, path, **beside):
    state = fill(
        {
            key: torch.empty(shape)
            for key, shape in published_shapes(name, WIDTH[name], LAYERS).items()
        }
    )
    torch.save(
        {
            "model": {key: tensor * LOUDER.get(key, 1) for key, tensor in state.items()},
            "epoch": 3,
            **beside,
        },
        path,
    )
    return card_with_weights(narrow(name), path)


@pytest.mark.parametrize("name", WIDTH)
def test_the_scores_are_the_authors(name, tmp_path):
    beside = (
        {"prototype": filled_tensor("prototype", torch.empty(64, 128))}
        if name == "gapl"
        else {"optimizer": {"state": {}}}
    )
    detector = load_detector(
        write_published(name, tmp_path / "published.pth", **beside), precision="fp32", slots=1
    )
    check_scores(detector, f"{name} narrow")


def test_a_file_without_its_prototypes_is_refused(tmp_path):
    with pytest.raises(DetectorError, match=r"missing.*prototype"):
        load_detector(write_published("gapl", tmp_path / "published.pth"))


@pytest.mark.parametrize(("name", "numbers"), [("dda", 307_515_393), ("gapl", 305_736_320)])
def test_a_file_of_the_published_size_has_a_place_for_every_tensor(name, numbers):
    """305,736,320 numbers are what a third party counted in GAPL's file, beside the prototypes.
    DDA's 1,255,621,296 bytes are as many as its numbers and, twice over, those of additions and
    head need: the optimiser's state lies beside them.
    """
    shapes = published_shapes(name, 1024, 24)
    with torch.device("meta"):
        state, network = (
            {key: torch.empty(shape) for key, shape in shapes.items()},
            build_network(load_card(name)),
        )
        assert sum(tensor.numel() for tensor in state.values()) == numbers
        named = own_keys(load_card(name), state, network)
    if name == "gapl":
        named["prototype"] = torch.empty(64, 128)
    assert {key: tensor.shape for key, tensor in named.items()} == {
        key: tensor.shape for key, tensor in network.state_dict().items()
    }
    if name == "dda":
        trained = sum(
            torch.Size(shape).numel()
            for key, shape in shapes.items()
            if "lora" in key or ".fc." in key
        )
        assert 0 < 1_255_621_296 - 4 * (numbers + 2 * trained) < 500_000


def test_an_addition_is_scaled_by_its_rank():
    state = {
        "a.base_layer.weight": torch.zeros(3, 2),
        "a.lora_A.default.weight": torch.ones(4, 2),
        "a.lora_B.default.weight": torch.ones(3, 4),
    }
    assert torch.equal(merged(state, 8)["a.weight"], torch.full((3, 2), 8.0))
    with pytest.raises(DetectorError, match=r"a: .* make no \(3, 2\)"):
        merged({**state, "a.lora_B.default.weight": torch.ones(3, 5)}, 8)
    assert merged({key: state[key] for key in list(state)[:2]}, 8).keys() == set(list(state)[:2])
