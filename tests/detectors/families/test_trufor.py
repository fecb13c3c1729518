"""TruFor: the authors' masks, scores, confidence and fingerprints on formula-filled weights; from
card to score.
"""

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.seeded import seeded_card
from ray_app.detectors import load_card, load_detector
from ray_app.detectors.detector import Normalise, build_network
from ray_app.detectors.families import trufor
from tests.detectors.golden import MASKS, check_mask, mask_places
from tests.make.networks.fill import filled, pattern_image, with_arguments

NARROW = {
    "widths": [8, 16, 24, 32],
    "heads": [1, 2, 3, 4],
    "depths": [1, 2, 1, 1],
    "ratios": [8, 4, 2, 1],
    "decoder_width": 24,
}
# Of the authors' confidence map of (97, 131) the mean and the second of the places; of their
# fingerprint the norm.
BESIDE = (0.5889044, 0.624466, 0.8345)


def card_of(**arguments):
    return with_arguments(load_card("trufor"), arguments)


@pytest.fixture(scope="module")
def small():
    return filled(build_network(card_of(**NARROW)))


def normalised(size):
    card = load_card("trufor")
    prepared = card.preprocessing.prepare(Image.fromarray(pattern_image(*size)))
    return Normalise(card.preprocessing)(torch.from_numpy(prepared)[None])


def check(network, golden):
    with torch.inference_mode():
        found = network(normalised(golden.size))
    check_mask(found.logits.item(), found.masks[0], golden)


def test_masks_and_scores_are_the_authors(small):
    for golden in MASKS["trufor narrow"]:
        check(small, golden)


@pytest.mark.slow
def test_masks_and_scores_are_the_authors_at_full_size():
    check(filled(build_network(load_card("trufor"))), *MASKS["trufor"])


def test_confidence_and_fingerprint_are_the_authors(small):
    mean, place, norm = BESIDE
    size = (97, 131)
    with torch.inference_mode():
        confidence = small.maps(normalised(size))[1][0].sigmoid()
        fingerprint = small.noiseprint(normalised(size))
    assert confidence.mean().item() == pytest.approx(mean, abs=1e-5)
    assert confidence[mask_places(size)[1]].item() == pytest.approx(place, abs=1e-5)
    assert fingerprint.double().norm().item() == pytest.approx(norm, abs=1e-4)


@pytest.mark.parametrize("band", [40, 131])
def test_a_fingerprint_does_not_depend_on_its_bands(small, band, monkeypatch):
    with torch.inference_mode():
        whole = small.noiseprint(normalised((131, 97)))
        monkeypatch.setattr(trufor, "BAND", band)
        torch.testing.assert_close(
            small.noiseprint(normalised((131, 97))), whole, atol=1e-6, rtol=0
        )


def test_file_in_the_published_format_scores(tmp_path):
    detector = load_detector(seeded_card(card_of(**NARROW), tmp_path), precision="fp32")
    images = np.stack([pattern_image(61, 97), pattern_image(61, 97)[::-1]])
    reading = detector.read(detector.normalise(torch.from_numpy(images)))
    assert reading.scores.isfinite().all()
    assert reading.scores[0] != reading.scores[1]
    assert (reading.masks.shape, reading.masks.dtype) == ((2, 61, 97), torch.uint8)
