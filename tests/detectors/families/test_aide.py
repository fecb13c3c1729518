"""AIDE against the authors' own code with fewer layers; which patches it chooses; its smallest
image.
"""

import numpy as np
import pytest
import torch

from benchmarks.seeded import card_with_weights, write_weights
from ray_app.detectors import load_card, load_detector
from ray_app.detectors.detector import build_network
from ray_app.detectors.families import aide
from ray_app.detectors.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from tests.detectors.golden import SCORES, score_image
from tests.make.networks.fill import Undrawn, fill, source, with_arguments

# What `patch_grades` has to choose: of 33x47 there is one patch alone.
NARROW = {"layers": [1, 1, 1, 1], "depths": [1, 1, 1, 0], "dims": [8, 16, 24, 3072]}
# The authors' mean and deviation of the five ImageNet-normalised images that go into the networks of
# 97x61, in order, the last the whole image.
SEEN = (
    (0.1071291, 1.11264783),
    (0.41858291, 1.24737186),
    (0.0586832, 1.10089298),
    (0.22541714, 1.31379559),
    (0.22860747, 1.22652953),
)


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """The narrow network from a filled file in the published format."""
    card = with_arguments(load_card("aide"), NARROW)
    with Undrawn():
        state = fill(build_network(card).state_dict())
    path = write_weights(
        tmp_path_factory.mktemp("aide") / "aide-progan.pth", state, wrapper="model"
    )
    return load_detector(card_with_weights(card, path), precision="fp32")


@pytest.mark.parametrize(
    "image",
    [
        pytest.param(image, marks=[pytest.mark.slow] * (image != "97x61"))
        for image in SCORES["aide narrow"]
    ],
)
def test_log_odds_are_the_authors(image, detector):
    assert score_image(detector, image) == pytest.approx(SCORES["aide narrow"][image], abs=1e-4)


def test_what_the_networks_see_is_what_the_authors_see():
    pixels = torch.from_numpy(np.asarray(source("97x61")) / np.float32(255)).permute(2, 0, 1)[None]
    seen = [*aide.extreme_patches(pixels)[0][:, None], pixels]
    for one, (mean, deviation) in zip(seen, SEEN, strict=True):
        sized = aide._resize_and_normalise(one, IMAGENET_MEAN, IMAGENET_STD).double()
        assert (sized.mean().item(), sized.std(correction=0).item()) == pytest.approx(
            (mean, deviation), abs=1e-5
        )


@torch.inference_mode()
def test_an_image_smaller_than_a_patch_has_no_score(detector):
    assert detector.network(torch.rand(2, 3, 31, 200)).isnan().all()


@torch.inference_mode()
def test_a_batch_scores_like_its_images():
    network = aide.Aide(
        layers=(1, 1, 1, 1), channels=(8, 8, 8, 8), depths=(1, 1, 1, 1), dims=(8, 8, 8, 8)
    ).eval()
    pixels = torch.rand(2, 3, 40, 70)
    together = network(pixels)
    assert not torch.allclose(together[0], together[1])
    torch.testing.assert_close(
        together, torch.cat([network(one[None]) for one in pixels]), atol=1e-5, rtol=0
    )
