"""Which backbones are one, and which only share a name."""

import numpy as np
import pytest

from benchmarks.seeded import seeded_card
from ray_app.detectors import load_detector
from ray_app.detectors.shared_backbone import share_backbones
from tests.scoring.eight import small_cards


@pytest.fixture(scope="module")
def unifd(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharing")
    base = next(card for card in small_cards() if card.name == "unifd")
    return [
        seeded_card(base.model_copy(update={"name": f"head-{seed}"}), folder / str(seed), seed)
        for seed in (1, 2)
    ]


def scores(detectors, pixels):
    return [detector.score(pixels) for detector in detectors]


def pixels():
    return np.random.default_rng(0).integers(0, 256, (3, 224, 224, 3), np.uint8)


def test_a_name_alone_does_not_make_two_backbones_one(unifd):
    expected = scores([load_detector(card, precision="fp32") for card in unifd], pixels())
    together = [load_detector(card, precision="fp32") for card in unifd]
    assert len(share_backbones(together)) == 2
    np.testing.assert_array_equal(scores(together, pixels()), expected)
    assert (
        len(
            share_backbones(
                [load_detector(unifd[0], precision=precision) for precision in ("fp32", "bf16")]
            )
        )
        == 2
    )


def test_features_are_not_kept_beyond_the_next_batch(unifd):
    detector = load_detector(unifd[0], precision="fp32")
    (backbone,) = share_backbones([detector])
    first, second = detector.score(pixels()), detector.score(pixels()[::-1].copy())
    np.testing.assert_array_equal(first[::-1], second)
    assert backbone.runs == 2
