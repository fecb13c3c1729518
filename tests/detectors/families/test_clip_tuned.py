"""C2P-CLIP and Effort: the authors' own logits on files in their published format, and files that
are not quite that.
"""

import pytest
import torch

from benchmarks.seeded import card_with_weights, write_weights
from ray_app.detectors import load_card, load_detector
from ray_app.detectors.checkpoints import load_strictly
from ray_app.detectors.families import clip_tuned
from ray_app.errors import DetectorError
from tests.detectors.fill import fill, with_arguments
from tests.detectors.golden import check_scores

NARROW = {
    "c2p-clip": {"width": 64, "layers": 2, "heads": 4},
    "effort": {"layers": 1},  # its authors' head is 1,024 wide
}
LOUDER = {"model.fc.weight": 30, "head.weight": 2}


def published_shapes(name, width, layers, projection=768):
    """Names and shapes of the published file, with as many layers."""
    square = {"weight": (width, width), "bias": (width,)}
    norm = {"weight": (width,), "bias": (width,)}
    linear = {
        "c2p-clip": square,
        "effort": {
            "weight_main": (width, width),
            "bias": (width,),
            "S_residual": (1,),
            "U_residual": (width, 1),
            "V_residual": (1, width),
        },
    }
    block = {f"self_attn.{part}_proj": linear[name] for part in ("k", "v", "q", "out")}
    block |= {
        "layer_norm1": norm,
        "layer_norm2": norm,
        "mlp.fc1": {"weight": (4 * width, width), "bias": (4 * width,)},
    }
    block |= {"mlp.fc2": {"weight": (width, 4 * width), "bias": (width,)}}
    tower = {
        "embeddings.class_embedding": (width,),
        "embeddings.patch_embedding.weight": (width, 3, 14, 14),
    }
    tower |= {"embeddings.position_embedding.weight": (257, width)}
    parts = {"pre_layrnorm": norm, "post_layernorm": norm}
    parts |= {
        f"encoder.layers.{layer}.{part}": shapes
        for layer in range(layers)
        for part, shapes in block.items()
    }
    tower |= {
        f"{part}.{last}": shape for part, shapes in parts.items() for last, shape in shapes.items()
    }
    root, head, read = {
        "c2p-clip": ("model.vision_model.", "model.fc.", projection),
        "effort": ("backbone.", "head.", width),
    }[name]
    outputs = {"c2p-clip": 1, "effort": 2}[name]
    shapes = {root + key: shape for key, shape in tower.items()} | {
        f"{head}weight": (outputs, read),
        f"{head}bias": (outputs,),
    }
    return shapes | (
        {"model.visual_projection.weight": (projection, width)} if name == "c2p-clip" else {}
    )


def published(name):
    """The file's tensors, filled."""
    tower = {"width": 1024, **NARROW[name]}
    shapes = published_shapes(name, tower["width"], tower["layers"])
    state = fill({key: torch.empty(shape) for key, shape in shapes.items()})
    state = {
        key: torch.full((1,), 3.0) if key.endswith("S_residual") else tensor
        for key, tensor in state.items()
    }
    return {key: tensor * LOUDER.get(key, 1) for key, tensor in state.items()}


def narrowed(name, **tower):
    card = load_card(name)
    arguments = dict(card.architecture.arguments)
    return with_arguments(card, {**arguments, "tower": {**arguments["tower"], **tower}})


@pytest.mark.parametrize("name", NARROW)
def test_the_scores_are_the_authors(name, tmp_path):
    path = write_weights(tmp_path / "published.pth", published(name))
    detector = load_detector(
        card_with_weights(narrowed(name, **NARROW[name]), path), precision="fp32", slots=1
    )
    check_scores(detector, f"{name} narrow")


@pytest.mark.parametrize(
    ("name", "tensors", "numbers"), [("c2p-clip", 394, 303_966_977), ("effort", 681, 303_378_530)]
)
def test_a_file_of_the_published_size_has_a_place_for_every_tensor(name, tensors, numbers):
    """681 tensors of 303,378,530 numbers are what a third party counted in Effort's file."""
    with torch.device("meta"):
        state = {key: torch.empty(shape) for key, shape in published_shapes(name, 1024, 24).items()}
        network = clip_tuned.build(load_card(name))
    assert (len(state), sum(tensor.numel() for tensor in state.values())) == (tensors, numbers)
    named = clip_tuned.published_keys(state, network)
    assert {key: tensor.shape for key, tensor in named.items()} == {
        key: tensor.shape for key, tensor in network.state_dict().items()
    }


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        (
            "effort",
            lambda state: state.update(
                {"backbone.encoder.layers.0.self_attn.q_proj.S_residual": torch.ones(2)}
            ),
            r"make no \(1024, 1024\)",
        ),
        (
            "c2p-clip",
            lambda state: state.update({"model.text_model.final_layer_norm.bias": torch.ones(2)}),
            "text_model",
        ),
    ],
)
def test_another_file_is_told_by_name(name, change, said):
    with torch.device("meta"):
        state = {key: torch.empty(shape) for key, shape in published_shapes(name, 1024, 2).items()}
        change(state)
        network = clip_tuned.build(narrowed(name, layers=2))
        with pytest.raises(DetectorError, match=said):
            load_strictly(network, clip_tuned.published_keys(state, network), name)
