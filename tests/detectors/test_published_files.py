"""Golden values that only the published files give. They are no part of this repository, so each
file has one test, which skips without it.

To run one: `touchstone detectors fetch NAME --accept-licence NAME` (CLIP-D and UnivFD need no
acceptance), then this file.
"""

import pytest
import torch

from ray_app.detectors import load_card
from ray_app.detectors.checkpoints import load_strictly, read_state_dict
from ray_app.detectors.detector import build_network
from ray_app.detectors.weights import find_local_file, list_parts, resolve_part
from tests.detectors.golden import (
    filled_detector,
    filled_network,
    near,
    prepared,
    score_image,
)

# By card and image: the published head on the tower that `fill` makes, fp32, CPU, batch 1.
HEADS = {
    "clip-d-10k-plus": {
        ("clip-d-10k-plus", "97x61"): -0.36187491,
        ("clip-d-10k-plus:thumb1024", "1100x1500"): 0.33927903,
    },
    "clip-cues": {("clip-cues", "97x61"): -0.97743201},
    "clip-cues:synthclic": {("clip-cues:synthclic", "97x61"): -1.59389799},
    "clip-cues:orthogonal-combined": {("clip-cues:orthogonal-combined", "97x61"): -0.83152956},
    "unifd": {
        ("unifd", "640x480"): 0.55777276,
        ("unifd", "97x61"): 2.45788527,
        ("unifd:squash256-crop224", "97x61"): -6.05645704,
    },
}
# By image the logit and the tolerance relative to one above 1. Tiny-LaDeDa's in float64, because
# the authors' float32 average is off by up to 0.005 where the features cancel; FerretNet-S, fp32:
# the authors' own code gives the same to the last digit.
NETWORKS = {
    "tiny-ladeda": ({"300x400": 4.346835, "640x480": 32.429401, "97x61": 2.533329}, 1e-4),
    "tiny-ladeda:right-diag": (
        {"300x400": 45.093251, "640x480": 117.617072, "97x61": -21.646464},
        1e-4,
    ),
    "tiny-ladeda:forensynth": (
        {"300x400": 8.279046, "640x480": 18.556538, "97x61": -38.295886},
        1e-3,
    ),
    "ferretnet-s": ({"640x480": 30.694454, "97x61": 0.01903945}, 1e-4),
    "ferretnet-s:native": ({"97x61": 11.086955}, 1e-4),
}
# RINE of two classes: the only file of its four that we had. The authors' own code gives these on
# the same tower.
RINE = {"224x224": -1.4858775, "301x227": -2.5890355, "97x131": 1.7437764}
if not any(
    find_local_file(list_parts(load_card(name))[0]) for name in (*HEADS, *NETWORKS, "rine:2class")
):
    pytest.skip("no published file is on this machine", allow_module_level=True)


def published(card):
    """The state dict of the card's own file, whose SHA-256 is the card's; skips where it is not on
    this machine.
    """
    part, *_ = list_parts(card)
    if find_local_file(part) is None:
        pytest.skip(f"the published file of {card.name} is not on this machine")
    return read_state_dict(resolve_part(part, offline=True), part.weights)


@pytest.mark.parametrize("name", HEADS)
def test_published_head_on_the_filled_tower_scores_as_theirs(name):
    network = filled_network(name, published(load_card(name)))
    for (card, image), expected in HEADS[name].items():
        detector = filled_detector(load_card(card), network)
        assert score_image(detector, image) == near(expected), (card, image)


@torch.inference_mode()
def test_the_published_head_of_rine_scores_as_the_authors():
    network = filled_network("rine:2class", published(load_card("rine:2class")))
    for image, expected in RINE.items():
        assert network(prepared("rine:2class", image)).item() == near(expected), image


@pytest.mark.parametrize("name", NETWORKS)
@torch.inference_mode()
def test_the_published_network_scores_as_the_authors(name):
    card = load_card(name)
    network = build_network(card)
    load_strictly(network, published(card), name)
    images, relative = NETWORKS[name]
    for image, expected in images.items():
        assert network(prepared(name, image)).item() == near(expected, relative), image
