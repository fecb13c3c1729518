"""B-Free: the authors' own logits, small images repeated and crops that coincide included."""

import pytest
import torch

from benchmarks.seeded import card_with_weights, write_weights
from ray_app.detectors import load_card, load_detector
from ray_app.detectors.detector import build_network
from tests.detectors.golden import check_scores
from tests.make.networks.fill import fill, source, with_arguments

NARROW = {"img_size": 504, "embed_dim": 48, "depth": 2, "num_heads": 4}


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    card = with_arguments(load_card("b-free"), NARROW)
    published = {
        key.removeprefix("network."): tensor
        for key, tensor in build_network(card).state_dict().items()
    }
    state = fill(published)
    state["head.weight"] *= 2
    path = write_weights(
        tmp_path_factory.mktemp("b-free") / "model_epoch_best.pth", state, wrapper="model"
    )
    return load_detector(card_with_weights(card, path), precision="fp32", slots=1)


def test_scores_are_the_authors(detector):
    check_scores(detector, "b-free narrow")


def test_images_of_one_size_score_as_each_alone(detector):
    pixels = torch.from_numpy(detector.prepare(source("530x640"))).repeat(2, 1, 1, 1)
    pixels[1] = pixels[1].flip(0)
    normalised = detector.normalise(pixels)
    together = detector.read(normalised).scores
    alone = torch.cat([detector.read(one[None]).scores for one in normalised])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    assert abs(together[0] - together[1]) > 1e-3
