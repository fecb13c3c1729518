"""IML-ViT: the authors' masks on formula-filled weights, filling that is neither drawn nor scored,
attention a head at a time.
"""

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.seeded import seeded_card, write_card
from ray_app.detectors import load_card, load_detector
from ray_app.detectors.detector import Normalise, build_network
from ray_app.detectors.families import mae
from ray_app.ensembles import build_ensemble
from ray_app.images import ImageLimits
from ray_app.inference import BatchDecoder, StageClock, make_spec
from ray_app.inference.scorer import EnsembleScorer
from tests.detectors.golden import MASKS, check_mask
from tests.make.images import encoded
from tests.make.networks.fill import filled, pattern_image, with_arguments

NARROW = {"image_size": 256, "width": 96, "heads": 12, "pyramid_width": 32, "head_width": 32}


def small_card():
    card = load_card("iml-vit")
    pixels = card.preprocessing.model_dump() | {
        "center_crop": 256,
        "resize": {"mode": "thumbnail", "size": 256},
    }
    preprocessing = type(card.preprocessing).model_validate(pixels)
    return with_arguments(card.model_copy(update={"preprocessing": preprocessing}), NARROW)


def read(network, card, image):
    """The network's answer, its mask cut to the image's area."""
    prepared = card.preprocessing.prepare(Image.fromarray(image))
    with torch.inference_mode():
        found = network(Normalise(card.preprocessing)(torch.from_numpy(prepared)[None]))
    return found.logits.item(), found.masks[0][
        card.preprocessing.image_area(image.shape[1], image.shape[0])
    ]


@pytest.fixture(scope="module")
def small():
    return filled(build_network(small_card()))


def check(network, card, golden):
    check_mask(*read(network, card, pattern_image(*golden.size)), golden)


def test_masks_are_the_authors(small):
    for golden in MASKS["iml-vit narrow"]:
        check(small, small_card(), golden)


@pytest.mark.slow
def test_masks_are_the_authors_at_full_size():
    card = load_card("iml-vit")
    check(filled(build_network(card)), card, *MASKS["iml-vit"])


def test_filling_and_a_black_border_do_not_score(small):
    image = np.maximum(pattern_image(131, 97), 1)
    score, mask = read(small, small_card(), image)
    assert score == pytest.approx(torch.logit(mask.double()).max().item(), abs=1e-4)
    bordered, wide = read(small, small_card(), np.pad(image, ((0, 20), (0, 30), (0, 0))))
    assert bordered == pytest.approx(score, abs=1e-5)  # the network sees the same picture
    assert wide.shape == (151, 127)
    black, whole = read(small, small_card(), np.zeros((90, 80, 3), np.uint8))
    assert np.isfinite(black)
    assert whole.shape == (90, 80)


def test_a_run_keeps_masks_of_the_image_s_own_shape(tmp_path):
    card = seeded_card(small_card(), tmp_path)
    images = [pattern_image(120, 90), pattern_image(400, 200)]
    ensemble = build_ensemble([str(write_card(card, tmp_path / "card.yaml"))])
    spec = make_spec(ensemble, limits=ImageLimits(), precision="fp32")
    batch = BatchDecoder(spec, StageClock()).decode(
        [(0, encoded(Image.fromarray(image), "PNG")) for image in images]
    )
    outputs = EnsembleScorer(spec, StageClock()).score([batch])
    masks = outputs.get("masks")["iml-vit"]
    assert [mask.shape for mask in masks] == [(120, 90), (256, 128)]
    detector = load_detector(card, precision="fp32")
    prepared = np.stack([detector.prepare(Image.fromarray(image)) for image in images])
    scores = detector.score(prepared)
    assert outputs.scores["iml-vit"].tolist() == pytest.approx(scores.tolist(), abs=1e-5)
    # Of a pixel's 256 steps the mask's peak is the score's sigmoid.
    assert [mask.max() / 255 for mask in masks] == pytest.approx(
        (1 / (1 + np.exp(-scores))).tolist(), abs=0.003
    )


def test_many_tokens_attend_head_by_head_with_equal_results(monkeypatch):
    layer = filled(mae.WindowAttention(24, 3, 6))
    tokens = torch.linspace(-1, 1, 2 * 36 * 24).sin().view(2, 6, 6, 24)
    together = layer(tokens)
    monkeypatch.setattr(mae, "MANY_TOKENS", 36)
    torch.testing.assert_close(layer(tokens), together, atol=1e-6, rtol=0)
