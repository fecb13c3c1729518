import json
import subprocess
import sys

import numpy as np
import pytest

from ray_app.ensembles import Stacking, fit_stacking, out_of_fold_scores
from ray_app.ensembles.rules import stacked
from ray_app.errors import ConfigError

PER_CLASS = 150


def labelled(informative=(1.5, 0.7, 0.0), per_class=PER_CLASS, seed=3):
    """Members whose scores lie `informative` further up on fakes, on scales that differ."""
    rng = np.random.default_rng(seed)
    labels = np.repeat([0, 1], per_class)
    scores = rng.normal(size=(2 * per_class, len(informative))) + labels[:, None] * np.array(informative)
    return scores * np.array([1.0, 20.0, 0.1]) + np.array([0.0, -7.0, 3.0]), labels


def accuracy(scores, labels):
    return float(((scores > 0) == labels).mean())


def test_a_fit_uses_what_informs_and_not_the_scale():
    scores, labels = labelled()
    stacking = fit_stacking(scores, labels)
    strong, weak, noise = stacking.coefficients
    assert strong > weak > 3 * abs(noise)
    rescaled = fit_stacking(scores * 5 + 2, labels)
    assert rescaled.coefficients == pytest.approx(stacking.coefficients, abs=1e-6)
    assert accuracy(stacked(scores, stacking), labels) > accuracy(scores[:, 0] - scores[:, 0].mean(), labels)


def test_log_odds_match_the_share_of_fakes():
    scores, labels = labelled()
    probability = 1 / (1 + np.exp(-stacked(scores, fit_stacking(scores, labels))))
    assert probability.mean() == pytest.approx(labels.mean(), abs=1e-4)


def test_it_goes_through_a_card_and_back_unchanged():
    scores, labels = labelled()
    stacking = fit_stacking(scores, labels)
    assert Stacking.model_validate(json.loads(stacking.model_dump_json())) == stacking
    assert fit_stacking(scores, labels.astype(bool)) == stacking


def test_a_member_that_always_says_the_same_counts_for_nothing():
    scores, labels = labelled()
    scores[:, 2] = 0.1
    stacking = fit_stacking(scores, labels)
    other = scores[:1] + np.array([0.0, 0.0, 5.0])
    assert stacked(other, stacking) == pytest.approx(stacked(scores[:1], stacking))


def test_out_of_fold_figures_do_not_flatter():
    rng = np.random.default_rng(0)
    noise, labels = rng.normal(size=(30, 15)), np.repeat([0, 1], 15)
    assert accuracy(stacked(noise, fit_stacking(noise, labels)), labels) > 0.8
    assert accuracy(out_of_fold_scores(noise, labels), labels) < 0.65


def test_a_fold_s_own_labels_do_not_reach_its_scores():
    scores, labels = labelled(per_class=10)
    for row in (0, 15):
        changed = scores.copy()
        changed[row] += 100
        others = np.arange(len(labels)) != row
        before, after = out_of_fold_scores(scores, labels), out_of_fold_scores(changed, labels)
        assert (before[others] == after[others]).any()  # its fold's companions
        assert (before[others] != after[others]).any()  # those whose fit it joined


def test_folds_are_drawn_by_the_seed_and_shrink_with_the_rarer_class():
    scores, labels = labelled(per_class=20)
    assert np.array_equal(out_of_fold_scores(scores, labels, seed=1), out_of_fold_scores(scores, labels, seed=1))
    assert not np.array_equal(out_of_fold_scores(scores, labels, seed=1), out_of_fold_scores(scores, labels, seed=2))
    assert np.isfinite(out_of_fold_scores(scores[17:], labels[17:])).all()


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([[1.0], [float("nan")]], [0, 1], "1 of 2 images lack a member's score"),
        ([[1.0], [2.0]], [1, 1], "both present"),
        ([[1.0], [2.0]], [0, 2], "0 .real. and 1 .fake."),
        ([[1.0], [2.0]], [0, 1, 1], r"scores \(2, 1\) and labels \(3,\)"),
        ([1.0, 2.0], [0, 1], r"expected \(n, members\)"),
    ],
)
def test_what_cannot_be_fitted_is_said(scores, labels, message):
    with pytest.raises(ConfigError, match=message):
        fit_stacking(np.array(scores), np.array(labels))


def test_out_of_fold_needs_two_of_each():
    with pytest.raises(ConfigError, match="two images of each class"):
        out_of_fold_scores(np.array([[0.0], [1.0], [2.0]]), np.array([0, 1, 1]))


def test_deciding_does_not_wait_for_scikit_learn():
    code = "import sys, ray_app.ensembles; print('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"
