import copy
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest

from ray_app.ensembles import Thresholds
from ray_app.errors import ConfigError, DetectorError
from ray_app.evaluation.evidence.record import digest, make_evidence
from ray_app.evaluation.evidence.verify import verify_evidence
from ray_app.inference.stability import Stability
from ray_app.runs import RunDirectory
from ray_app.runs.schema import UNLIKE
from ray_app.scoring.guarantee import unlike_rows
from tests.evaluation.evidence.real_run import score_here


@pytest.fixture(scope="module")
def told(promised_run, photos):
    return make_evidence(promised_run, str(photos / "photo-3.jpg"))


def outcomes(told, *image):
    return [(check.name, check.outcome) for check in verify_evidence(told, *image)]


def differing(told, *image):
    return [name for name, outcome in outcomes(told, *image) if outcome == "differs"]


def changed(told, change, *, forged=True):
    """The record after `change` of it, its digest made anew (`forged`) or not."""
    other = copy.deepcopy(told)
    change(other["record"])
    return other | ({"sha256": digest(other["record"])} if forged else {})


def test_a_record_agrees_with_itself(told):
    assert outcomes(told) == [
        *[(name, "agrees") for name in ("record", "run", "ensemble", "rule", "touchstone-tiny", "sections", "sentences", "decision")],
        ("image", "not checked"),
    ]
    assert next(check.told for check in verify_evidence(told) if check.name == "decision").endswith("to the last bit")


def test_with_the_image_it_is_hashed_and_scored_again(told, photos):
    found = list(verify_evidence(told, photos / "photo-3.jpg"))
    assert {check.outcome for check in found} == {"agrees"}
    assert [check.name for check in found[8:]] == ["file", "decoding", "touchstone-tiny", "touchstone-tiny", "verdict"]
    assert "0 apart, 0.0027 allowed" in found[11].told


def test_another_image_is_told_and_not_scored(told, photos):
    assert outcomes(told, photos / "photo-2.jpg")[-2:] == [("file", "differs"), ("scores", "not checked")]
    with pytest.raises(ConfigError, match="No such file"):
        list(verify_evidence(told, photos / "none.jpg"))


def test_any_change_shows_in_the_digest(told):
    assert "record" in differing(changed(told, lambda record: record["row"].update(score=0.1), forged=False))
    assert differing(changed(told, lambda record: record.update(made_at="2020-01-01"), forged=False)) == ["record"]


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda record: record["row"].update(verdict="fake"), {"sections", "sentences", "decision"}),
        (lambda record: record["decision"].update(verdict="fake"), {"sections"}),
        (lambda record: record["row"]["scores"].update({"touchstone-tiny": -9.0}), {"sections", "decision"}),
        (lambda record: record["image"].update(sha256="0" * 64), {"sections"}),
        (lambda record: record["hashes"].update(run="0" * 64), {"run", "sections"}),
        (lambda record: record["ensemble"]["thresholds"].update(real_below=-9.0), {"ensemble", "rule", "sections", "decision"}),
        (lambda record: record["ensemble"]["guarantee"].update(target_fpr=0.001), {"ensemble", "sections", "sentences"}),
        (lambda record: record["detectors"]["touchstone-tiny"]["card"].update(masks=True), {"touchstone-tiny", "sections"}),
        (lambda record: record["limits"].clear(), {"sentences"}),
    ],
)  # fmt: skip
def test_a_part_that_was_changed_is_named_though_the_digest_was_made_anew(told, change, found):
    names = set(differing(changed(told, change)))
    assert "record" not in names
    assert names == found


def test_last_bits_of_a_number_are_another_processors(told):
    def rounded(record):
        for part in (record["row"], record["decision"]):
            part["probability"] = float(np.nextafter(part["probability"], 1))
        for one in record["decision"]["at_other_prevalences"]:
            one["probability"] = float(np.nextafter(one["probability"], 1))

    other = changed(told, rounded)
    assert differing(other) == []
    assert next(check.told for check in verify_evidence(other) if check.name == "decision").endswith("but for the last bits of a number")


@pytest.mark.parametrize("gone", ["row", "run", "detectors", "decision"])
def test_a_record_that_lacks_a_part_is_refused(told, gone):
    with pytest.raises(ConfigError, match="not whole"):
        list(verify_evidence(changed(told, lambda record: record.pop(gone))))


@pytest.mark.parametrize("name", ["notes.txt", "cut.jpg"])
def test_records_without_a_score_are_verified_too(plain_run, photos, name):
    told = make_evidence(plain_run, str(photos / name))
    assert differing(told, photos / name) == []
    assert ("decoding", "agrees") in outcomes(told, photos / name)


def test_a_score_that_weights_here_do_not_give_differs(told, photos):
    def other(record):
        record["row"]["scores"]["touchstone-tiny"] += 0.01

    found = [check for check in verify_evidence(changed(told, other), photos / "photo-3.jpg") if check.outcome == "differs"]
    assert "0.01 apart" in found[-1].told


def test_a_verdict_that_the_run_withdrew_is_withdrawn_again(promised_run, photos, tmp_path):
    run, why = RunDirectory.open(str(shutil.copytree(promised_run, tmp_path / "run"))), f"{UNLIKE}: jpeg_quality (PSI 1.2)"
    run.rewrite_all(lambda rows: unlike_rows(rows, why, Thresholds()))
    withdrawn = {"holds": False, "why": "images differ in jpeg_quality (PSI 1.2)", "unlike": why, "waived": False, "shifts": []}
    run.write_json("summary.json", run.read_json("summary.json") | {"guarantee": withdrawn})
    told = make_evidence(run.store.url, str(photos / "photo-3.jpg"))
    decision = told["record"]["decision"]
    assert (decision["verdict"], decision["reason"], decision["detail"]) == ("abstain", "unlike_archive", "jpeg_quality (PSI 1.2)")
    assert told["record"]["guarantee"]["words"][-1].startswith("That is beyond the limit")
    assert differing(told, photos / "photo-3.jpg") == []
    assert "decision" in differing(changed(told, lambda record: record["guarantee"].update(run=None)))


def test_a_cascade_is_recorded_and_decided_again(two_stages, photos, tmp_path):
    url = score_here(two_stages, photos, tmp_path / "run")
    told = make_evidence(url, str(photos / "photo-3.jpg"))
    assert told["record"]["decision"]["second_look"] in ("band", "audit")
    assert len(told["record"]["detectors"]) == 2
    assert differing(told, photos / "photo-3.jpg") == []
    assert "decision" in differing(changed(told, lambda record: record["row"].update(second_look=None)))


def test_a_verdict_that_views_took_back_is_taken_back_again(plain_run, promised, photos, tmp_path):
    at = make_evidence(plain_run, str(photos / "photo-3.jpg"))["record"]["row"]["score"]
    cuts = promised.thresholds.model_copy(update={"real_below": at + 0.2, "fake_above": at + 0.2})
    near = promised.model_copy(update={"calibration": None, "guarantee": None, "population": None, "thresholds": cuts})
    url = score_here(near, photos, tmp_path / "run", stability=Stability(4, 1.0))
    told = make_evidence(url, str(photos / "photo-3.jpg"))
    decision = told["record"]["decision"]
    assert (decision["verdict"], decision["reason"]) == ("abstain", "unstable")
    assert "recompressed views" in decision["detail"]
    assert [view["verdict"] for view in decision["views"]] == ["fake", "real"] * 2
    assert decision["rederived"]
    assert differing(told, photos / "photo-3.jpg") == []
    assert "decision" in differing(changed(told, lambda record: record["row"].update(stability=None)))


def test_a_record_is_checked_where_cards_and_weights_are_not(two_stages, photos, tmp_path):
    second = tmp_path / "second.yaml"
    kept = Path(two_stages.members[1].detector)
    shutil.copy(kept, second)
    shutil.copytree(kept.parent / "weights", tmp_path / "weights")
    second.write_text(second.read_text().replace(str(kept.parent), str(tmp_path)))
    members = (two_stages.members[0], two_stages.members[1].model_copy(update={"detector": str(second)}))
    url = score_here(two_stages.model_copy(update={"members": members}), photos, tmp_path / "run")
    told = make_evidence(url, str(photos / "photo-3.jpg"))
    second.unlink()
    shutil.rmtree(tmp_path / "weights")
    assert differing(told) == []
    with pytest.raises(DetectorError, match="no weights"):
        list(verify_evidence(told, photos / "photo-3.jpg"))


def test_a_record_does_not_choose_where_weights_come_from(told, photos, tmp_path, monkeypatch):
    monkeypatch.setenv("TOUCHSTONE_CACHE", str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        uri = f"https://127.0.0.1:{listening.getsockname()[1]}/weights.safetensors"

        def from_there(record):
            record["detectors"]["touchstone-tiny"]["card"]["weights"]["uri"] = uri
            record["hashes"]["detectors"]["touchstone-tiny"] = digest(record["detectors"]["touchstone-tiny"]["card"])

        other = changed(told, from_there)
        assert differing(other) == []
        with pytest.raises(DetectorError, match=f"no weights: {uri} is named by the record alone"):
            list(verify_evidence(other, photos / "photo-3.jpg"))
        with pytest.raises(BlockingIOError):
            listening.accept()
