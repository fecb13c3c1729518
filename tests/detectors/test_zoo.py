"""Every shipped card and every variant: its network has the size that the card states, and its file
is read from every published wrapping.
"""

import functools

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.seeded import PUBLISHED_PREFIX
from ray_app.config import named_configs
from ray_app.detectors import load_card, load_detector
from ray_app.detectors.checkpoints import read_state_dict
from ray_app.detectors.detector import BACKBONE, build_network
from ray_app.errors import DetectorError
from tests.make.networks.fill import with_arguments
from tests.make.networks.small_clip import small_card
from tests.make.networks.small_zoo import CARDS, small


@functools.cache
def counted(architecture, logits):
    """Count parameters and tensors of the network that these facts of a card build."""
    card = next(
        card
        for card in CARDS.values()
        if (repr(card.architecture_facts), card.output.logits) == (architecture, logits)
    )
    with torch.device("meta"):
        network = build_network(card)
    return sum(parameter.numel() for parameter in network.parameters()), len(network.state_dict())


def test_network_is_as_large_as_the_card_states():
    for name, card in CARDS.items():
        stated = card.size.parameters, card.size.tensors
        assert counted(repr(card.architecture_facts), card.output.logits) == stated, name


@pytest.mark.parametrize(
    "name", {card.family: name for name, card in reversed(CARDS.items())}.values()
)
def test_argument_unknown_to_the_family_is_named(name):
    card = CARDS[name]
    with (
        torch.device("meta"),
        pytest.raises(DetectorError, match=r"wings|must have exactly two keys, `feature`"),
    ):
        build_network(with_arguments(card, {**card.architecture.arguments, "wings": 2}))


# What a file's state dict is under, and the prefix of its keys: none, or those of
# DistributedDataParallel and torch.compile. The cards are not asked, so that a card that no longer
# unwraps fails.
COMPILED = [
    ("model", prefix) for prefix in ("module._orig_mod.", "_orig_mod.module.", "_orig_mod.")
]
TRAINED = [(None, ""), ("model", ""), ("state_dict", "module."), *COMPILED]
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
# test_internvl reads a hub's shards.
WRAPPINGS = {name: TRAINED for name in named_configs("detectors") if name != "internvl-prompt"}
WRAPPINGS |= {name: HEAD for name in WRAPPINGS if name.startswith("vfm-")}
WRAPPINGS |= {name: [(None, "")] for name in WRAPPINGS if name.startswith("touchstone-")} | OTHERS


@pytest.mark.parametrize("name", WRAPPINGS)
def test_file_in_any_published_wrapping_is_read(name, tmp_path):
    card, path = small(name), tmp_path / "file.pth"
    with torch.device("meta"):
        keys = build_network(card).state_dict().keys()
    if card.backbone is not None:
        keys = {key for key in keys if not key.startswith(f"{BACKBONE}.")}
    published = PUBLISHED_PREFIX.get(name, "")
    bare = [published + key.removeprefix(card.weights.prefix) for key in keys]
    weights = card.weights.model_copy(update={"format": "torch"})
    for wrapper, prefix in WRAPPINGS[name]:
        state = {prefix + key: torch.zeros(1) for key in bare}
        torch.save({wrapper: state, "optimizer": {}} if wrapper else state, path)
        assert read_state_dict(path, weights).keys() == keys, (wrapper, prefix)


def test_wrong_backbone_key_is_named_with_its_file(tmp_path):
    _, path = small_card(tmp_path)
    clip = tmp_path / "clip.safetensors"
    state = load_file(clip)
    save_file({key: state[key] for key in state if key != "visual.ln_post.weight"}, clip)
    with pytest.raises(DetectorError, match=r"clip\.safetensors.*ln_post\.weight"):
        load_detector(load_card(path))
    save_file({**state, "visual.surprise": torch.zeros(1)}, clip)
    with pytest.raises(DetectorError, match=r"clip\.safetensors.*surprise"):
        load_detector(load_card(path))
