"""Means over images under every policy; IMDLBenCo's own figures are those that its code gave."""

import numpy as np
import pytest
from sklearn.metrics import f1_score, jaccard_score

from ray_app.metrics import pixel_figures
from ray_app.metrics.localization import (
    LOCALIZATION,
    MaskMetrics,
    PixelLevels,
    average_masks,
    average_masks_imdlbenco,
    measure_mask,
)

Y, X = np.mgrid[:12, :16]
P = ((37 * X + 91 * Y + 13 * X * Y) % 101) / 100
RECT = ((Y >= 3) & (Y < 8) & (X >= 4) & (X < 11)).astype(float)
GOOD = 0.2 * P + 0.7 * RECT
NONE, ALL = np.zeros_like(P), np.ones_like(P)
VALID = np.s_[:9, :12]

# Mask, truth; F1, IoU, accuracy and mid-rank AUC (None where everything is altered); the first
# three turned round; and the better of each.
GOLDEN = {
    "p/rect": (P, RECT, (0.316547, 0.188034, 0.505208, 0.530846), (0.211382, 0.119266, 0.494792), (0.316547, 0.188034, 0.505208)),
    "p/empty": (P, NONE, (0, 0, 0.458333, 0), (0, 0, 0.541667), (0, 0, 0.541667)),
    "p/full": (P, ALL, (0.702703, 0.541667, 0.541667, None), (0.628571, 0.453125, 0.458333), (0.702703, 0.541667, 0.541667)),
    "zeros/empty": (NONE, NONE, (0, 0, 1, 0), (0, 0, 0), (0, 0, 1)),
    "zeros/rect": (NONE, RECT, (0, 0, 0.817708, 0.5), (0.308370, 0.182292, 0.182292), (0.308370, 0.182292, 0.817708)),
    "ones/full": (ALL, ALL, (1, 1, 1, None), (0, 0, 0), (1, 1, 1)),
    "ones/rect": (ALL, RECT, (0.308370, 0.182292, 0.182292, 0.5), (0, 0, 0.817708), (0.308370, 0.182292, 0.817708)),
    "halves/rect": (ALL / 2, RECT, (0, 0, 0.817708, 0.5), (0.308370, 0, 0.182292), (0.308370, 0, 0.817708)),
    "good/rect": (GOOD, RECT, (1, 1, 1, 1), (0, 0, 0), (1, 1, 1)),
    "p/rect, valid": (
        P[VALID], RECT[VALID], (0.463158, 0.301370, 0.527778, 0.539726), (0.313253, 0.185714, 0.472222), (0.463158, 0.301370, 0.527778),
    ),
}  # fmt: skip


def values(figures):
    assert tuple(figures) == LOCALIZATION
    names = ("pixel_f1", "pixel_iou", "pixel_accuracy", "pixel_auc")
    return [figures[name].value for name in names]


@pytest.mark.parametrize("case", GOLDEN)
def test_imdlbenco_s_own_figures(case):
    mask, truth, origin, turned, double = GOLDEN[case]
    rows = [measure_mask(mask, truth)]
    auc = origin[3]
    turned_auc = auc if auc in (None, 0) else 1 - auc
    best_auc = auc if auc in (None, 0) else max(auc, 1 - auc)
    modes = {"origin": origin, "reverse": (*turned, turned_auc), "double": (*double, best_auc)}
    for mode, expected in modes.items():
        assert values(average_masks_imdlbenco(rows, mode=mode)) == pytest.approx(
            [*expected], abs=1e-6
        ), mode


def test_imdlbenco_s_mean_over_four_images():
    rows = [measure_mask(*pair) for pair in ((P, RECT), (GOOD, RECT), (NONE, RECT), (P, NONE))]
    found = average_masks_imdlbenco(rows)
    assert values(found)[:2] == pytest.approx([0.329137, 0.297009], abs=1e-6)
    assert found["pixel_f1"].n == 4
    skipped = average_masks(rows, empty="skip")
    assert values(skipped)[:2] == pytest.approx([0.438849, 0.396011], abs=1e-6)
    assert {figure.n for figure in skipped.values()} == {3}


def drawn(seed, images=9):
    """Masks and truths of all sizes and shares; the first three are empty, marked or not, and the
    last is altered everywhere.
    """
    rng = np.random.default_rng(seed)
    shapes = rng.integers(1, 20, (images, 2))
    shares = [0, 0, 0, *rng.random(images - 4), 1]
    truths = [rng.random(shape) < share for shape, share in zip(shapes, shares, strict=True)]
    masks = [rng.random(shape) for shape in shapes]
    masks[0] = masks[0] / 2
    return masks, truths


@pytest.mark.parametrize("empty", ["skip", "zero", "one"])
def test_policies_equal_scikit_learn_with_its_zero_division(empty):
    masks, truths = drawn(0)
    rows = [measure_mask(*pair) for pair in zip(masks, truths, strict=True)]
    found = average_masks(rows, empty=empty)
    pairs = [
        (truth.ravel(), mask.ravel() > 0.5)
        for mask, truth in zip(masks, truths, strict=True)
        if empty != "skip" or truth.any()
    ]
    division = 1.0 if empty == "one" else 0.0
    for name, reference in (("pixel_f1", f1_score), ("pixel_iou", jaccard_score)):
        expected = np.mean([reference(*pair, zero_division=division) for pair in pairs])
        assert found[name].value == pytest.approx(expected, abs=1e-9)
        assert found[name].n == len(pairs)
    accuracy = np.mean([np.mean(truth == mask) for truth, mask in pairs])
    assert found["pixel_accuracy"].value == pytest.approx(accuracy, abs=1e-9)


def test_localization_without_images_has_reasons():
    for figure in average_masks([], empty="skip").values():
        assert figure.why == "no image with a mask and a truth"
    skipped = average_masks([measure_mask(P, NONE)], empty="skip")
    for name in ("pixel_f1", "pixel_iou", "pixel_accuracy"):
        assert skipped[name].why == "no image with altered pixels"
    only_full = average_masks([measure_mask(P, ALL)], empty="skip")
    assert only_full["pixel_auc"].why == "no image with both altered and intact pixels"
    assert only_full["pixel_f1"].value is not None


EMPTY = np.zeros((4, 6), np.uint8)


def test_pixels_counted_in_pieces_are_all_counted():
    rng = np.random.default_rng(0)
    truth = rng.random((1100, 1000)) < 0.1  # more than one piece
    mask = rng.integers(0, 256, truth.shape, np.uint8)
    levels = PixelLevels.from_mask(mask, truth)
    assert (levels.altered == np.bincount(mask[truth], minlength=256)).all()
    assert (levels.intact == np.bincount(mask[~truth], minlength=256)).all()


def test_empty_mask_has_no_f1_and_a_half_is_unmarked():
    nothing = measure_mask(EMPTY, EMPTY)
    assert (nothing.f1, nothing.iou, nothing.auc) == (None, None, None)
    wrong = measure_mask(EMPTY + 255, EMPTY)
    assert (wrong.f1, wrong.iou, wrong.auc) == (0.0, 0.0, None)
    levels = measure_mask(np.array([[127, 128]], np.uint8), np.array([[1, 1]]))
    assert levels == MaskMetrics(1, 2, 1, 2, None)
    halves = measure_mask(np.full((2, 2), 0.5), np.ones((2, 2)))
    assert halves == MaskMetrics(0, 4, 0, 4, None, even=4, even_altered=4)


def test_masks_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"equal shapes, got \(2, 3\) and \(3, 2\)"):
        pixel_figures([np.ones((2, 3))], [np.ones((3, 2))])
    with pytest.raises(ValueError, match="not finite"):
        pixel_figures([np.full((2, 2), np.nan)], [np.ones((2, 2))])
    with pytest.raises(ValueError, match="longer"):
        pixel_figures([np.ones((2, 2))], [np.ones((2, 2))] * 2)
    with pytest.raises(ValueError, match="no pixels"):
        measure_mask(np.ones((0, 3)), np.ones((0, 3)))
