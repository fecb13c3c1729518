import copy
import json
import shutil
import zipfile

import pytest

from ray_app.ensembles import load_ensemble_card
from ray_app.errors import ConfigError
from ray_app.evaluation.evidence.record import digest, find_row, make_evidence
from ray_app.evaluation.evidence.verify import read_evidence
from ray_app.runs import RunDirectory, current_rows
from tests.evaluation.evidence.real_run import score_here
from tests.images.factory import jpeg


def row_of(url, name):
    return next(row for row in current_rows(RunDirectory.open(url)) if row["uri"].endswith(name))


def doubled(folder):
    """A run of two images in one zip."""
    if not (folder / "two.zip").exists():
        with zipfile.ZipFile(folder / "two.zip", "w") as file:
            for name in ("a.jpg", "b.jpg"):
                file.writestr(name, jpeg())
        score_here(load_ensemble_card("tiny"), folder / "two.zip", folder / "zipped")
    return RunDirectory.open(str(folder / "zipped"))


def test_an_image_is_found_by_id_uri_path_and_bytes(plain_run, photos, tmp_path, monkeypatch):
    run, row = RunDirectory.open(plain_run), row_of(plain_run, "photo-2.jpg")
    copied = tmp_path / "other name.jpg"
    shutil.copy(photos / "photo-2.jpg", copied)
    monkeypatch.chdir(photos)
    for word, by in {str(row["image_id"]): "image_id", row["uri"]: "uri", "photo-2.jpg": "path", str(copied): "sha256"}.items():
        found, found_by = find_row(run, word)
        assert (found["image_id"], found_by) == (row["image_id"], by)


def test_what_is_not_there_or_there_twice_is_refused(plain_run, tmp_path):
    run = RunDirectory.open(plain_run)
    for word in ("nothing.jpg", "12345", "99999999999999999999", str(tmp_path)):
        with pytest.raises(ConfigError, match="no row of"):
            find_row(run, word)
    with pytest.raises(ConfigError, match=r"2 rows of the run") as refused:
        find_row(doubled(tmp_path), str(tmp_path / "two.zip"))
    assert refused.value.hint.count("two.zip › a.jpg") == 1
    assert find_row(doubled(tmp_path), f"{tmp_path}/two.zip › a.jpg")[0]["member"] == "a.jpg"
    with pytest.raises(ConfigError, match="there is no folder"):
        make_evidence(str(tmp_path / "none"), "1")


def test_a_record_says_what_the_row_says(promised_run, promised):
    row = row_of(promised_run, "photo-1.jpg")
    told = make_evidence(promised_run, str(row["image_id"]))
    record = told["record"]
    assert told["sha256"] == digest(record)
    assert record["image"]["sha256"] == record["hashes"]["file"] == row["sha256"]
    decision, [one] = record["decision"], record["detectors"].values()
    assert (decision["score"], decision["probability"], decision["verdict"]) == (row["score"], row["probability"], row["verdict"])
    assert decision["rederived"]
    assert decision["calibrated"]
    assert one["score"] == row["scores"]["touchstone-tiny"]
    assert record["ensemble"] == promised.model_dump(mode="json")
    assert one["weights"] == RunDirectory.open(promised_run).describe()["identity"]["detectors"]["touchstone-tiny"]["weights"]
    assert json.loads(json.dumps(told, allow_nan=False)) == told


def test_the_guarantee_is_told_with_whether_it_holds(promised_run, plain_run, photos, tmp_path):
    words = make_evidence(promised_run, str(photos / "photo-1.jpg"))["record"]["guarantee"]["words"]
    assert "no more than 1 % of real images like those of the calibration reach this threshold: of 500 that" in words[0]
    assert "no difference was noticed" in words[-1]
    [none] = make_evidence(plain_run, str(photos / "photo-1.jpg"))["record"]["guarantee"]["words"]
    assert none.startswith("There is no guarantee.")
    shifted = shutil.copytree(promised_run, tmp_path / "run")
    run = RunDirectory.open(str(shifted))
    run.write_json("summary.json", run.read_json("summary.json") | {"guarantee": {"holds": False, "why": "jpeg_quality (PSI 0.15)"}})
    told = make_evidence(str(shifted), str(photos / "photo-1.jpg"))["record"]["guarantee"]
    assert told["words"][-1] == "In the run's archive the guarantee does not hold: jpeg_quality (PSI 0.15)."
    assert told["run"]["holds"] is False


def test_a_calibrated_probability_is_told_at_other_shares(promised_run, plain_run, photos):
    decision = make_evidence(promised_run, str(photos / "photo-1.jpg"))["record"]["decision"]
    by_share = {one["prevalence"]: one["probability"] for one in decision["at_other_prevalences"]}
    p = decision["probability"]
    assert by_share[0.5] == pytest.approx(p, rel=1e-12)
    assert by_share[0.01] == pytest.approx(0.01 * p / (0.01 * p + 0.99 * (1 - p)), rel=1e-12)
    assert make_evidence(plain_run, str(photos / "photo-1.jpg"))["record"]["decision"]["at_other_prevalences"] == []


@pytest.mark.parametrize(("name", "status"), [("notes.txt", "unsupported_format"), ("cut.jpg", "truncated_image")])
def test_an_image_without_a_score_has_a_record_too_and_limits_speak_of_what_there_is(plain_run, photos, name, status):
    record = make_evidence(plain_run, str(photos / name))["record"]
    assert record["image"]["status"] == status
    assert record["decision"]["verdict"] is record["decision"]["score"] is None
    assert record["decision"]["rederived"]
    assert any("no score and no verdict" in words for words in record["limits"])
    scored = make_evidence(plain_run, str(photos / "photo-0.jpg"))["record"]
    assert scored["limits"][0].startswith(f"“{scored['decision']['verdict']}” says")
    assert any("touchstone-tiny is a demonstration detector" in words for words in scored["limits"])


def test_a_card_that_changed_since_is_told_and_the_runs_word_stands(plain_run, photos, tmp_path):
    run = RunDirectory.open(str(shutil.copytree(plain_run, tmp_path / "run")))
    described = copy.deepcopy(run.describe())
    described["identity"]["detectors"]["touchstone-tiny"]["valid_range"]["min_side_px"] = 7
    run.write_json("run.json", described)
    record = make_evidence(run.store.url, str(photos / "photo-0.jpg"))["record"]
    assert record["cards_here_depart"] == {"touchstone-tiny": ["valid_range.min_side_px"]}
    assert record["detectors"]["touchstone-tiny"]["card"]["valid_range"]["min_side_px"] == 7


@pytest.mark.parametrize("text", ["", '{"touchstone_evidence": 9, "sha256": "", "record": {}}'])
def test_what_is_no_record_is_refused(tmp_path, text):
    (tmp_path / "evidence.json").write_text(text)
    with pytest.raises(ConfigError, match=r"evidence\.json"):
        read_evidence(tmp_path / "evidence.json")
