import numpy as np
import pytest
from sklearn.metrics import f1_score, jaccard_score

from ray_app.metrics import pixel_figures

EMPTY = np.zeros((4, 6), np.uint8)


def test_figures_are_the_mean_over_images_not_over_pixels():
    rng = np.random.default_rng(0)
    masks = [rng.random((9, 12)), rng.random((5, 5))]
    truths = [(rng.random(mask.shape) < 0.3).astype(np.uint8) for mask in masks]
    found = pixel_figures(masks, truths)
    pairs = [(truth.ravel(), mask.ravel() > 0.5) for mask, truth in zip(masks, truths, strict=True)]
    assert found == pytest.approx(
        {"pixel_f1": np.mean([f1_score(*pair) for pair in pairs]), "pixel_iou": np.mean([jaccard_score(*pair) for pair in pairs]), "n": 2}
    )


def test_images_without_altered_pixels_are_left_out():
    altered = EMPTY.copy()
    altered[0, :2] = 1
    found = pixel_figures([altered * 0.9, EMPTY + 0.0, EMPTY + 0.9], [altered, EMPTY, EMPTY])
    assert found == {"pixel_f1": 1.0, "pixel_iou": 1.0, "n": 1}
    assert pixel_figures([EMPTY + 0.9], [EMPTY]) == {"pixel_f1": None, "pixel_iou": None, "n": 0}


def test_a_half_is_not_above_a_half():
    assert pixel_figures([np.full((2, 2), 0.5)], [np.ones((2, 2))]) == {"pixel_f1": 0.0, "pixel_iou": 0.0, "n": 1}


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"\(2, 3\) for a truth of \(3, 2\)"):
        pixel_figures([np.ones((2, 3))], [np.ones((3, 2))])
    with pytest.raises(ValueError, match="not finite"):
        pixel_figures([np.full((2, 2), np.nan)], [np.ones((2, 2))])
    with pytest.raises(ValueError, match="longer"):
        pixel_figures([np.ones((2, 2))], [np.ones((2, 2))] * 2)
