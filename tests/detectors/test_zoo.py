"""Every shipped card and every variant: its network has the size that the card says, and its file loads strictly or says why not."""

import pytest
import torch

from benchmarks.seeded import PUBLISHED_PREFIX, local_weights, seeded_backbone, seeded_card, seeded_state, write_weights
from ray_app.config import named_configs
from ray_app.detectors import load_card, load_detector
from ray_app.detectors.detector import BACKBONE, build_network
from ray_app.detectors.weights import load_strictly, read_state_dict
from ray_app.errors import DetectorError
from tests.detectors.fill import Undrawn
from tests.detectors.small_zoo import CARDS, small
from tests.scoring.eight import small_cards

LARGE = 150_000_000  # parameters: more is built without memory, for which torch imports much, first


@pytest.fixture(scope="module")
def full_size():
    """Networks of full size, built once each; the largest without memory."""
    built = {}

    def network(name):
        card = CARDS[name]
        key = repr((card.architecture_facts, card.output.logits))  # variants have their card's
        if key not in built:
            with Undrawn(), torch.device("meta" if card.size.parameters > LARGE else "cpu"):
                built[key] = build_network(card)
        return built[key]

    return network


@pytest.mark.parametrize("name", CARDS)
def test_the_network_is_as_large_as_the_card_says(name, full_size):
    network, size = full_size(name), CARDS[name].size
    assert size is not None
    assert sum(parameter.numel() for parameter in network.parameters()) == size.parameters
    assert len(network.state_dict()) == size.tensors


@pytest.mark.parametrize("name", CARDS)
def test_a_wrong_key_is_named_at_full_size(name, full_size):
    card, network = CARDS[name], full_size(name)
    own = {key: tensor for key, tensor in network.state_dict().items() if card.backbone is None or not key.startswith(BACKBONE)}
    key, tensor = next(iter(own.items()))
    for wrong, said in (({**own, "no.such.key": tensor}, "no.such.key"), ({k: t for k, t in own.items() if k != key}, key)):
        with pytest.raises(DetectorError, match=said.replace(".", r"\.")):
            load_strictly(network, wrong, name, without=f"{BACKBONE}." if card.backbone else None)


# How a file may come: what its state dict lies under, and what stands before its keys. Flat, or as DistributedDataParallel and
# torch.compile leave it; the cards are not asked, so that one which no longer unwraps is found out.
TRAINED = [(None, ""), ("model", ""), ("state_dict", "module.")]
TRAINED += [("model", prefix) for prefix in ("module._orig_mod.", "_orig_mod.module.", "_orig_mod.")]
GRIP = [*TRAINED, ("net", "")]
HEAD = [("model", ""), (None, "")]  # as `save_head` writes it, and bare
WRAPPINGS = {
    "aide": TRAINED,
    "b-free": [("model", "")],
    "c2p-clip": [(None, ""), (None, "module.")],
    "aeroblade": [(None, "")],
    "clip-cues": [(None, ""), ("state_dict", ""), ("state_dict", "model.classification_head.")],
    "clip-d-10k-plus": GRIP,
    "cnndetection": TRAINED,
    "community-forensics-vits384": TRAINED,
    "corvi2023": GRIP,
    "drct-clip-vit-l14": [(None, ""), ("state_dict", "module.")],
    "drct-convnext-b": TRAINED,
    "effort": [(None, ""), ("state_dict", "module.")],
    "fatformer": [("model", ""), ("model", "module.")],
    "ferretnet-s": TRAINED,
    "freqnet": TRAINED,
    "iml-vit": TRAINED,
    "ladeda9": TRAINED,
    "maskclip": TRAINED,
    "npr": TRAINED,
    "safe": TRAINED,
    "openfake-swinv2-small": TRAINED,
    "rine": [(None, ""), (None, "module.")],
    "siglip2-open-deepfake": TRAINED,
    "tiny-ladeda": TRAINED,
    "touchstone-photo": [(None, "")],
    "touchstone-photo-detail": [(None, "")],
    "touchstone-photo-permissive": [(None, "")],
    "touchstone-crop-permissive": [(None, "")],
    "touchstone-tiny": [(None, "")],
    "trufor": TRAINED,
    "unifd": [(None, ""), (None, "fc."), (None, "module.fc.")],
    "vfm-dinov3-convnext": HEAD,
    "vfm-dinov3-l16": HEAD,
    "vfm-metaclip2-h14": HEAD,
    "vfm-pe-l14": HEAD,
    "vfm-siglip2-so400m": HEAD,
}


@pytest.mark.parametrize("name", WRAPPINGS)
def test_a_file_in_any_published_wrapping_loads(name, tmp_path):
    card = small(name)
    own, network = seeded_state(card), build_network(card)
    for wrapper, prefix in WRAPPINGS[name]:
        state = {prefix + key: tensor for key, tensor in own.items()}
        torch.save({wrapper: state, "optimizer": {}} if wrapper else state, tmp_path / "file.pth")
        found = read_state_dict(tmp_path / "file.pth", card.weights.model_copy(update={"format": "torch"}))
        load_strictly(network, found, card.name, without=f"{BACKBONE}." if card.backbone else None)
    path = write_weights(tmp_path / "file.safetensors", own)
    found = read_state_dict(path, card.weights.model_copy(update={"format": "safetensors"}))
    load_strictly(network, found, card.name, without=f"{BACKBONE}." if card.backbone else None)


@pytest.mark.parametrize("name", ["clip-d-10k-plus", "unifd"])
def test_a_backbone_loads_from_a_file_that_holds_the_text_tower_too(name, tmp_path):
    card = next(card for card in small_cards() if card.name == name)
    whole = seeded_backbone(card) | {"text_projection": torch.zeros(3, 3), "transformer.resblocks.0.ln_1.weight": torch.zeros(3)}
    seeded = seeded_card(card, tmp_path)
    path = write_weights(tmp_path / "whole.safetensors", whole)
    backbone = seeded.backbone.model_copy(update={"weights": local_weights(card.backbone.weights, path)})
    both = load_detector(seeded.model_copy(update={"backbone": backbone})).network.state_dict()
    for key, tensor in load_detector(seeded).network.state_dict().items():
        assert torch.equal(both[key], tensor)


@pytest.mark.parametrize(("name", "change"), [("clip-d-10k-plus", "missing"), ("unifd", "extra")])
def test_a_wrong_key_of_a_backbone_is_named_with_its_file(name, change, tmp_path):
    card = next(card for card in small_cards() if card.name == name)
    state, key = seeded_backbone(card), "visual.ln_post.weight"
    state = {k: t for k, t in state.items() if k != key} if change == "missing" else state | {"visual.surprise": torch.zeros(1)}
    seeded = seeded_card(card, tmp_path)
    path = write_weights(tmp_path / "wrong.safetensors", state)
    backbone = seeded.backbone.model_copy(update={"weights": local_weights(card.backbone.weights, path)})
    with pytest.raises(DetectorError, match=r"ln_post\.weight" if change == "missing" else "surprise") as caught:
        load_detector(seeded.model_copy(update={"backbone": backbone}))
    assert "wrong.safetensors" in caught.value.message


def test_variants_share_the_file_and_differ_in_pixels():
    native, thumbnail = load_card("corvi2023"), load_card("corvi2023:thumb1024")
    assert thumbnail.name == "corvi2023:thumb1024"
    assert native.weights == thumbnail.weights
    assert native.preprocessing != thumbnail.preprocessing


def test_every_shipped_card_says_in_which_wrappings_its_file_may_come():
    assert set(WRAPPINGS) == set(named_configs("detectors")) - {"internvl-prompt"}  # a hub's shards: test_internvl


def test_shipped_cards_state_their_terms():
    for name, path in named_configs("detectors").items():
        assert "\nterms: " in path.read_text(), name


def test_published_prefixes_belong_to_cards():
    assert set(PUBLISHED_PREFIX) <= set(CARDS)
