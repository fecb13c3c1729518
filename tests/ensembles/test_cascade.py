import numpy as np
import pytest

from ray_app.detectors.card import Platt
from ray_app.ensembles import (
    CascadeStage,
    EnsembleCard,
    EnsembleMember,
    combine,
    decide,
    list_second_stage_reasons,
)
from ray_app.ensembles.card import Cascade, Stacking
from ray_app.ensembles.decision import is_audited

NAN = float("nan")
CARD = EnsembleCard(
    name="e", title="e", rule="cascade", members=(EnsembleMember(detector="cheap"), EnsembleMember(detector="slow")),
    cascade=Cascade(first=1, band=(-1, 2), audit_share=0.25),
)  # fmt: skip
NONE = {"cheap": None, "slow": None}


def columns(cheap, slow):
    return {"cheap": np.array(cheap, np.float32), "slow": np.array(slow, np.float32)}


def test_band_and_audit_get_the_score_of_all_detectors():
    scores = columns([-3.0, -1.0, 2.0, 3.0, 3.0], [NAN, 5.0, 4.0, NAN, 1.0])
    drawn = [False, False, False, False, True]
    assert combine(CARD, scores, NONE, audited=drawn).tolist() == [-3.0, 2.0, 3.0, 3.0, 2.0]
    looks = list_second_stage_reasons(CARD, {"cheap": scores["cheap"]}, NONE, drawn)
    assert looks == [None, "band", "band", None, "audit"]


def test_only_a_detector_that_was_asked_is_missed():
    decided = decide(CARD, columns([-3.0, 0.0, NAN], [NAN, NAN, 2.0]), calibrations=NONE)
    assert decided.verdict == ["real", "abstain", "abstain"]
    assert decided.detail == [None, "slow: no score", "cheap: no score"]
    assert decided.second_look == [None, "band", None]


def test_each_stage_has_its_rule_and_its_calibration():
    stacking = Stacking(mean=(0, 0), scale=(1, 1), coefficients=(1, 2), intercept=0.5)
    early = CascadeStage(calibration=Platt(slope=2, intercept=0))
    late = CascadeStage(rule="stacked", stacking=stacking)
    cascade = Cascade(first=1, band=(-1, 1), audit_share=0, early=early, late=late)
    card = CARD.model_copy(update={"cascade": cascade, "bias": 0.25})
    found = combine(card, columns([0.5, 0.6], [3.0, NAN]), NONE)
    assert found.tolist() == pytest.approx([0.5 + 2 * 3 + 0.5 + 0.25, 1.2 + 0.25])


def test_infinite_score_is_missing():
    level = Platt(slope=0.25, intercept=0.25)
    scores = columns([np.inf, 0.5, 0.0], [1.0, np.inf, 1.0])
    decided = decide(CARD, scores, calibrations={"cheap": level, "slow": level})
    assert np.isnan(decided.score).tolist() == [True, True, False]
    assert decided.second_look == [None, "band", "band"]
    assert decided.detail == ["cheap: no score", "slow: no score", None]


def test_audit_draws_the_stated_share_reproducibly():
    drawn = [is_audited(CARD, f"{number:064x}") for number in range(4000)]
    assert sum(drawn) / 4000 == pytest.approx(0.25, abs=0.03)
    assert drawn[:50] == [is_audited(CARD, f"{number:064x}") for number in range(50)]
    cascade = CARD.cascade.model_copy(update={"audit_share": 1.0})
    everyone = CARD.model_copy(update={"cascade": cascade})
    assert is_audited(everyone, "0" * 64)
    assert not is_audited(CARD.model_copy(update={"cascade": None}), "0" * 64)
