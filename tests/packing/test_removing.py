from ray_app.packing.removing import Reasons

REASONS = Reasons("desk", "max", ("corvi", "npr"), 1.5)
ROW = {"status": "ok", "detail": None, "verdict": "fake", "score": 3.25, "probability": 0.9626, "calibrated": True, "verdict_reason": None}


def test_a_flag_names_ensemble_threshold_and_calibration():
    assert REASONS.reason(ROW) == (
        "fake by ensemble desk (max of corvi, npr): score +3.25 is not below the threshold 1.5; probability 0.9626 (calibrated)"
    )


def test_an_abstention_gives_its_own_reason():
    row = ROW | {"verdict": "abstain", "verdict_reason": "no_score", "verdict_detail": "npr: no score", "score": None, "probability": None}
    assert REASONS.reason(row) == (
        "abstain by ensemble desk (max of corvi, npr): a detector that the ensemble needs gave no score: npr: no score; no probability"
    )


def test_a_member_without_a_score_says_why():
    row = ROW | {"status": "source_missing", "detail": "not there", "verdict": None}
    assert REASONS.reason(row) == "no score: listed, but gone when it was read (source_missing): not there"
