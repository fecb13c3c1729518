"""AIDE against the authors' own code with fewer layers; which patches it chooses; its smallest
image.
"""

import numpy as np
import pytest
import torch
from scipy.fft import dctn

from benchmarks.seeded import card_with_weights, write_weights
from ray_app.detectors import load_card, load_detector
from ray_app.detectors.card import Architecture
from ray_app.detectors.detector import build_network
from ray_app.detectors.families import aide
from ray_app.detectors.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from tests.detectors import golden_forensics as golden
from tests.detectors.fill import Undrawn, fill, source


def thin():
    return load_card("aide").model_copy(
        update={"architecture": Architecture(name="aide", arguments=golden.AIDE_THIN)}
    )


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """The thin network from a filled file in the published format."""
    with Undrawn():
        state = fill(build_network(thin()).state_dict())
    path = write_weights(
        tmp_path_factory.mktemp("aide") / "aide-progan.pth", state, wrapper="model"
    )
    return load_detector(card_with_weights(thin(), path), precision="fp32")


@pytest.mark.parametrize(
    "image",
    [
        pytest.param(image, marks=[pytest.mark.slow] * (image != "97x61"))
        for image in golden.AIDE_LOG_ODDS
    ],
)
def test_log_odds_are_the_authors(image, detector):
    score = detector.score(torch.from_numpy(detector.prepare(source(image)))[None])[0]
    assert score == pytest.approx(golden.AIDE_LOG_ODDS[image], abs=1e-4)


def test_what_the_networks_see_is_what_the_authors_see():
    pixels = torch.from_numpy(np.asarray(source("97x61")) / np.float32(255)).permute(2, 0, 1)[None]
    seen = [*aide.extreme_patches(pixels)[0][:, None], pixels]
    for one, (mean, deviation) in zip(seen, golden.AIDE_SEEN, strict=True):
        sized = aide._sized(one, IMAGENET_MEAN, IMAGENET_STD).double()
        assert (sized.mean().item(), sized.std(correction=0).item()) == pytest.approx(
            (mean, deviation), abs=1e-5
        )


def test_grades_are_those_of_scipys_cosine_transform():
    pixels = np.random.default_rng(0).random((1, 3, 48, 64), dtype=np.float32)
    sums = np.add.outer(np.arange(32), np.arange(32))
    expected = []
    for top, left in ((top, left) for top in (0, 16) for left in (0, 16, 32)):
        spectrum = np.log1p(
            np.abs(dctn(pixels[0, :, top : top + 32, left : left + 32], axes=(1, 2), norm="ortho"))
        )
        bands = ((sums >= 64 / 6 * band) & (sums <= 64 / 6 * (band + 1)) for band in range(6))
        expected.append(
            sum(
                2**number * spectrum[:, band].mean(axis=1).sum()
                for number, band in enumerate(bands)
            )
        )
    torch.testing.assert_close(
        aide.patch_grades(torch.from_numpy(pixels))[0].double(),
        torch.tensor(expected, dtype=torch.float64),
        atol=1e-3,
        rtol=0,
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
