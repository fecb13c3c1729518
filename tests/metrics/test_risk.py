import numpy as np
import pytest

from ray_app.metrics import ScoreHistogram, risk_coverage
from tests.metrics.drawn import BOTH, EMPTY, histograms, joined


def by_hand(fakes, reals, threshold, strict):
    """For each image the coverage and the risk of all that are at least so sure."""
    labels, scores = joined(fakes, reals)
    flagged = scores > threshold if strict else scores >= threshold
    sure, wrong = np.abs(scores - threshold), flagged != (labels == 1)
    return [((sure >= one).mean(), wrong[sure >= one].mean()) for one in sure]


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("threshold", [0.0, 0.25, -1.0])
@pytest.mark.parametrize("case", [case for case in BOTH if sum(map(len, BOTH[case])) < 3000])
def test_area_and_points_are_those_by_hand(case, threshold, strict):
    wanted = np.array(by_hand(*BOTH[case], threshold, strict))
    found = risk_coverage(*histograms(*BOTH[case]), threshold, strict=strict)
    assert found["aurc"].value == pytest.approx(wanted[:, 1].mean(), abs=1e-9)
    assert all(np.abs(wanted - point).max(1).min() < 1e-12 for point in found["points"])
    assert 1 <= len(found["points"]) <= 128
    assert found["points"][-1] == pytest.approx([1, wanted[wanted[:, 0].argmax(), 1]])
    assert found["points"][0][0] == pytest.approx(wanted[:, 0].min())


def test_thinned_points_cover_the_whole_curve():
    rng = np.random.default_rng(1)
    points = np.array(risk_coverage(*histograms(rng.normal(1, 1, 20_000), rng.normal(-1, 1, 30_000)))["points"])
    assert np.diff(points[:, 0]).min() > 0
    assert np.diff(points[:, 0]).max() < 0.1
    assert len(points) <= 128


def test_the_area_does_not_depend_on_how_many_points_are_kept():
    scores = histograms(*BOTH["ties"])
    areas = [risk_coverage(*scores, most=most)["aurc"].value for most in (16, 17, 128, 5000)]
    assert areas == pytest.approx([areas[0]] * 4, abs=1e-12)


def test_without_images_there_is_no_risk():
    found = risk_coverage(EMPTY, EMPTY)
    assert found["points"] == []
    assert found["aurc"].why == "there are no images"


def test_one_class_and_scores_of_no_image():
    resampled = ScoreHistogram(np.array([-1.0, 2.0, 9.0]), np.array([1, 3, 0]))
    found = risk_coverage(resampled, EMPTY)
    assert found["points"] == [[0.75, 0.0], [1.0, 0.25]]
    assert found["aurc"].value == pytest.approx(0.25 / 4)
