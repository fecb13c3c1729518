import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score
from sklearn.metrics import classification_report as their_report

from ray_app.metrics.curves import risk_coverage
from ray_app.metrics.detection import (
    VerdictCounts,
    average_rates,
    build_classification_report,
    measure_verdicts,
)
from ray_app.metrics.uncertainty import proportion_interval
from tests.metrics.drawn import BOTH, images, joined


def by_hand(fakes, reals, threshold, strict):
    """For each image the coverage and the risk of all that are at least so sure."""
    labels, scores = joined(fakes, reals)
    flagged = scores > threshold if strict else scores >= threshold
    sure, wrong = np.abs(scores - threshold), flagged != (labels == 1)
    return [((sure >= one).mean(), wrong[sure >= one].mean()) for one in sure]


@pytest.mark.parametrize(("threshold", "strict"), [(0.0, True), (0.25, False)])
@pytest.mark.parametrize("case", [case for case in BOTH if sum(map(len, BOTH[case])) < 3000])
def test_area_and_points_are_those_by_hand(case, threshold, strict):
    wanted = np.array(by_hand(*BOTH[case], threshold, strict))
    found = risk_coverage(images(*BOTH[case], threshold=threshold, strict=strict))
    assert found.aurc.value == pytest.approx(wanted[:, 1].mean(), abs=1e-9)
    assert all(np.abs(wanted - point).max(1).min() < 1e-12 for point in found.points)
    assert 1 <= len(found.points) <= 128
    assert found.points[-1] == pytest.approx([1, wanted[wanted[:, 0].argmax(), 1]])
    assert found.points[0][0] == pytest.approx(wanted[:, 0].min())


# 10,000 fakes with recall .9155, 9,999 reals with recall .9734 (specs/detectors.md §6)
SIGLIP2 = (9155, 845, 266, 9733)


@pytest.mark.parametrize("counts", [SIGLIP2, (1, 0, 0, 1), (3, 1, 70, 9), (0, 5, 2, 6)])
def test_the_report_is_scikit_learns(counts):
    truth = np.repeat(["fake", "fake", "real", "real"], counts)
    told = np.repeat(["fake", "real", "fake", "real"], counts)
    theirs = their_report(truth, told, output_dict=True)
    found = build_classification_report(*counts)
    assert list(found) == list(theirs)
    assert found["accuracy"] == pytest.approx(theirs["accuracy"], abs=1e-12)
    for name in ("fake", "real", "macro avg", "weighted avg"):
        assert found[name] == pytest.approx(theirs[name], abs=1e-12)


def test_what_divides_by_nothing_is_not_zero():
    nothing_flagged = build_classification_report(0, 5, 0, 5)
    assert nothing_flagged["fake"] == {"precision": None, "recall": 0, "f1-score": 0, "support": 5}
    assert nothing_flagged["macro avg"]["precision"] is None
    assert nothing_flagged["macro avg"]["recall"] == 0.5


def test_abstentions_are_left_out_and_then_counted_wrong():
    fakes = {"fake_fake": 6, "fake_real": 2, "fake_abstain": 3, "fake_unscored": 1}
    reals = {"real_fake": 1, "real_real": 8, "real_abstain": 4, "real_unscored": 2}
    found = measure_verdicts(VerdictCounts(**fakes, **reals))
    assert {name: figure.value for name, figure in found.items()} == pytest.approx(
        {
            "coverage": 17 / 27,
            "accuracy_of_decided": 14 / 17,
            "tpr_of_decided": 6 / 8,
            "tnr_of_decided": 8 / 9,
            "accuracy_strict": 14 / 27,
            "balanced_accuracy_strict": (6 / 12 + 8 / 15) / 2,
            "tpr_strict": 6 / 12,
            "tnr_strict": 8 / 15,
        }
    )
    # Counted wrong, they are as good as the other verdict.
    truth, told = np.repeat([1, 0], [12, 15]), np.repeat([1, 0, 0, 1], [6, 6, 8, 7])
    strict = found["balanced_accuracy_strict"].value
    assert strict == pytest.approx(balanced_accuracy_score(truth, told))
    assert found["tpr_of_decided"].interval == proportion_interval(6, 8)
    assert found["coverage"].n == 27


def test_the_two_averages_of_generators_have_two_names():
    found = average_rates({"sd15": (90, 100), "flux": (1, 2), "none left": (0, 0)})
    assert found["tpr_mean"].value == pytest.approx(0.7)
    assert found["tpr_weighted"].value == pytest.approx(91 / 102)
    assert found["tpr_weighted"].interval == proportion_interval(91, 102)
    assert (found["tpr_mean"].n, found["tpr_weighted"].n) == (102, 102)
    for rates in ({}, {"sd15": (0, 0)}):
        assert {figure.why for figure in average_rates(rates).values()} == {"there are no fakes"}
