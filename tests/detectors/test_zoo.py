"""Every shipped card and every variant: its network has the size that the card says, and its file
loads strictly or says why not.
"""

import functools

import pytest
import torch

from benchmarks.seeded import (
    local_weights,
    seeded_backbone,
    seeded_card,
    seeded_state,
    write_weights,
)
from ray_app.config import named_configs
from ray_app.detectors import load_detector
from ray_app.detectors.checkpoints import load_strictly, read_state_dict
from ray_app.detectors.detector import BACKBONE, build_network
from ray_app.errors import DetectorError
from tests.detectors.fill import with_arguments
from tests.detectors.small_zoo import CARDS, small
from tests.scoring.eight import small_cards


@functools.cache
def counted(architecture, logits):
    """Parameters and tensors of the network that these facts of a card build; variants have their
    card's.
    """
    card = next(
        card
        for card in CARDS.values()
        if (repr(card.architecture_facts), card.output.logits) == (architecture, logits)
    )
    with torch.device("meta"):
        network = build_network(card)
    return sum(parameter.numel() for parameter in network.parameters()), len(network.state_dict())


@pytest.mark.parametrize("name", CARDS)
def test_the_network_is_as_large_as_the_card_says(name):
    card = CARDS[name]
    assert counted(repr(card.architecture_facts), card.output.logits) == (
        card.size.parameters,
        card.size.tensors,
    )


@pytest.mark.parametrize(
    "name", {card.family: name for name, card in reversed(CARDS.items())}.values()
)
def test_an_argument_that_the_family_does_not_know_is_named(name):
    card = CARDS[name]
    with torch.device("meta"), pytest.raises(DetectorError, match=r"wings|are `feature`"):
        build_network(with_arguments(card, {**card.architecture.arguments, "wings": 2}))


# How a file may come: what its state dict lies under, and what stands before its keys. Flat, or as
# DistributedDataParallel and torch.compile leave it; the cards are not asked, so that one which no
# longer unwraps is found out.
TRAINED = [(None, ""), ("model", ""), ("state_dict", "module.")]
TRAINED += [
    ("model", prefix) for prefix in ("module._orig_mod.", "_orig_mod.module.", "_orig_mod.")
]
GRIP = [*TRAINED, ("net", "")]
HEAD = [("model", ""), (None, "")]  # as `save_head` writes it, and bare
OTHERS = {
    "aligned-forensics": GRIP,
    "dda": [("model", ""), ("model", "module.")],
    "gapl": [("model", ""), ("model", "module.")],
    "b-free": [("model", "")],
    "c2p-clip": [(None, ""), (None, "module.")],
    "aeroblade": [(None, "")],
    "clip-cues": [(None, ""), ("state_dict", ""), ("state_dict", "model.classification_head.")],
    "clip-d-10k-plus": GRIP,
    "corvi2023": GRIP,
    "drct-clip-vit-l14": [(None, ""), ("state_dict", "module.")],
    "effort": [(None, ""), ("state_dict", "module.")],
    "fatformer": [("model", ""), ("model", "module.")],
    "rine": [(None, ""), (None, "module.")],
    "unifd": [(None, ""), (None, "fc."), (None, "module.fc.")],
}
# a hub's shards: test_internvl
WRAPPINGS = {name: TRAINED for name in named_configs("detectors") if name != "internvl-prompt"}
WRAPPINGS |= {name: HEAD for name in WRAPPINGS if name.startswith("vfm-")}
WRAPPINGS |= {name: [(None, "")] for name in WRAPPINGS if name.startswith("touchstone-")} | OTHERS


@pytest.mark.parametrize("name", WRAPPINGS)
def test_a_file_in_any_published_wrapping_loads(name, tmp_path):
    card = small(name)
    own, network = seeded_state(card), build_network(card)
    path = write_weights(tmp_path / "file.safetensors", own)
    found = read_state_dict(path, card.weights.model_copy(update={"format": "safetensors"}))
    load_strictly(network, found, card.name, without=f"{BACKBONE}." if card.backbone else None)
    for wrapper, prefix in WRAPPINGS[name]:
        state = {prefix + key: torch.zeros(1) for key in own}
        torch.save({wrapper: state, "optimizer": {}} if wrapper else state, tmp_path / "file.pth")
        assert (
            read_state_dict(
                tmp_path / "file.pth", card.weights.model_copy(update={"format": "torch"})
            ).keys()
            == found.keys()
        )


def with_text_too(folder, *, without=None, **more):
    """A small CLIP-D whose backbone's file holds the text tower, too, and other tensors; and the
    same with its image tower alone.
    """
    card = next(card for card in small_cards() if card.name == "clip-d-10k-plus")
    state = (
        seeded_backbone(card)
        | {
            "text_projection": torch.zeros(3, 3),
            "transformer.resblocks.0.ln_1.weight": torch.zeros(3),
        }
        | more
    )
    path = write_weights(
        folder / "whole.safetensors",
        {key: tensor for key, tensor in state.items() if key != without},
    )
    seeded = seeded_card(card, folder)
    backbone = seeded.backbone.model_copy(
        update={"weights": local_weights(card.backbone.weights, path)}
    )
    return seeded.model_copy(update={"backbone": backbone}), seeded


def test_a_backbone_loads_from_a_file_that_holds_the_text_tower_too(tmp_path):
    both, alone = (load_detector(card).network.state_dict() for card in with_text_too(tmp_path))
    assert all(torch.equal(both[key], tensor) for key, tensor in alone.items())


def test_a_wrong_key_of_a_backbone_is_named_with_its_file(tmp_path):
    with pytest.raises(DetectorError, match=r"whole\.safetensors.*ln_post\.weight"):
        load_detector(with_text_too(tmp_path, without="visual.ln_post.weight")[0])
    with pytest.raises(DetectorError, match=r"whole\.safetensors.*surprise"):
        load_detector(with_text_too(tmp_path, **{"visual.surprise": torch.zeros(1)})[0])
