import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, jaccard_score, roc_auc_score

from ray_app.metrics import pixel_figures
from ray_app.metrics.pixels import MaskFigures, PixelLevels, mask_figures

EMPTY = np.zeros((4, 6), np.uint8)


@pytest.mark.parametrize("kind", ["float", "uint8", "tied"])
@pytest.mark.parametrize("threshold", [0.5, 0.3])
def test_figures_of_one_mask_are_scikit_learn_s(kind, threshold):
    rng = np.random.default_rng(7)
    truth = rng.random((23, 31)) < 0.2
    mask = np.clip(rng.random(truth.shape) + 0.2 * truth, 0, 1)
    given = {"float": mask, "uint8": (mask * 255).round().astype(np.uint8), "tied": (mask * 4).round() / 4}[kind]
    chances = given / 255 if kind == "uint8" else given
    found = mask_figures(given, truth, threshold=threshold)
    pair = truth.ravel(), chances.ravel() > threshold
    assert found.f1 == pytest.approx(f1_score(*pair), abs=1e-9)
    assert found.iou == pytest.approx(jaccard_score(*pair), abs=1e-9)
    assert found.accuracy == pytest.approx(accuracy_score(*pair), abs=1e-9)
    assert found.auc == pytest.approx(roc_auc_score(truth.ravel(), chances.ravel()), abs=1e-9)


def test_pixels_counted_in_pieces_are_all_counted():
    rng = np.random.default_rng(0)
    truth = rng.random((1100, 1000)) < 0.1  # more than one piece
    mask = rng.integers(0, 256, truth.shape, np.uint8)
    levels = PixelLevels.of(mask, truth)
    assert (levels.altered == np.bincount(mask[truth], minlength=256)).all()
    assert (levels.intact == np.bincount(mask[~truth], minlength=256)).all()


@pytest.mark.parametrize(
    ("mask", "truth", "expected"),
    [
        (EMPTY, EMPTY, (None, None, 1.0, None)),  # rightly nothing
        (EMPTY + 255, EMPTY, (0.0, 0.0, 0.0, None)),
        (EMPTY, EMPTY + 1, (0.0, 0.0, 0.0, None)),
        (EMPTY + 255, EMPTY + 1, (1.0, 1.0, 1.0, None)),  # altered everywhere: there are no pairs
        (np.full((1, 2), 0.7), np.array([[1, 0]]), (2 / 3, 0.5, 0.5, 0.5)),  # a constant probability is no ranking
        (np.full((1, 1), 0.7), np.array([[1]]), (1.0, 1.0, 1.0, None)),
        (np.full((1, 1), 0.2), np.array([[0]]), (None, None, 1.0, None)),
    ],
)
def test_degenerate_masks(mask, truth, expected):
    found = mask_figures(mask, truth)
    assert (found.f1, found.iou, found.accuracy, found.auc) == expected


def test_grey_levels_are_marked_from_128_on():
    assert mask_figures(np.array([[127, 128]], np.uint8), np.array([[1, 1]])) == MaskFigures(1, 2, 1, 2, None)


def test_a_half_is_not_above_a_half():
    assert mask_figures(np.full((2, 2), 0.5), np.ones((2, 2))) == MaskFigures(0, 4, 0, 4, None, even=4, even_altered=4)
    assert pixel_figures([np.full((2, 2), 0.5)], [np.ones((2, 2))]) == {"pixel_f1": 0.0, "pixel_iou": 0.0, "n": 1}


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


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"\(2, 3\) for a truth of \(3, 2\)"):
        pixel_figures([np.ones((2, 3))], [np.ones((3, 2))])
    with pytest.raises(ValueError, match="not finite"):
        pixel_figures([np.full((2, 2), np.nan)], [np.ones((2, 2))])
    with pytest.raises(ValueError, match="longer"):
        pixel_figures([np.ones((2, 2))], [np.ones((2, 2))] * 2)
    with pytest.raises(ValueError, match="without pixels"):
        mask_figures(np.ones((0, 3)), np.ones((0, 3)))
