"""Runs that 0.8.0 left behind go on under defaults that have changed since, the ensemble among them; what the user wrote has to match."""

import hashlib
import json
import shutil
from collections import Counter

import pytest

from ray_app.errors import ConfigError, ExitCode, IdentityError
from ray_app.images import ImageLimits
from ray_app.reports import summary_lines
from ray_app.runs import RunDirectory, check_conservation
from ray_app.scoring import ScoreConfig
from ray_app.scoring.identity import resolve
from ray_app.scoring.rescore import decide_run
from ray_app.scoring.run import score_archive
from tests.scoring.conftest import rows_of, write_ensemble
from tests.scoring.older import BUCKET, PICTURES, SOURCE, change, copied_configs, picture, put_pictures, put_run
from tests.scoring.stages import without_ray

TODAY = 250_000_000
# Defaults that have changed since: what the run has, what a new one would have.
RAISED = {
    "limits.max_pixels": ("50000000", "250000000"),
    "limits.max_whole_pixels": ("has none", "120000000"),
    "limits.max_bytes": ("33554432", "536870912"),
    "limits.max_side": ("16384", "65535"),
    "limits.max_aspect": ("20.0", "100.0"),
    "limits.max_ratio": ("2000.0", "1000000.0"),
}


@pytest.fixture(scope="module")
def photographs(s3):
    s3.bucket(BUCKET)
    put_pictures(s3.client())
    return SOURCE


@pytest.fixture
def half(s3, photographs):
    """The objects of the run that was stopped at half of its blocks, by key."""
    return put_run(s3.client(), "half")


@pytest.fixture(autouse=True)
def other_configs(tmp_path, monkeypatch):
    """What another version ships, with the default of these runs: a copy of all configs, which a test may change."""
    folder = copied_configs(tmp_path / "configs", monkeypatch)
    shutil.copy(folder / "ensembles" / "tiny.yaml", folder / "ensembles" / "default.yaml")
    change(folder / "ensembles" / "default.yaml", name="default")
    return folder


def resolved(out="half", **given):
    config = ScoreConfig.model_validate({"source": [SOURCE], "out": f"s3://{BUCKET}/{out}"} | given)
    return resolve(config, RunDirectory.open(config.out))


def kept(found):
    return of_any_cpu(found.kept(found.spec(0)))


def of_any_cpu(kept):
    """What was kept, by key; without the precision, whose default of today is bf16 where a CPU has units for it."""
    return {one["key"]: (one["run"], one["today"]) for one in kept if not one["key"].startswith("precision.")}


def test_a_default_that_has_changed_since_is_the_runs_and_what_was_written_has_to_match(half):
    found = resolved()
    found.require_own()
    assert found.config.limits.max_pixels == found.spec(0).limits.max_pixels == 50_000_000
    assert kept(found) == RAISED
    same = resolved(limits={"max_pixels": 50_000_000})
    same.require_own()
    assert kept(same).keys() == RAISED.keys() - {"limits.max_pixels"}
    for limits in ({"max_pixels": TODAY}, ImageLimits(max_pixels=TODAY)):
        with pytest.raises(IdentityError, match=r"limits\.max_pixels: this command 250000000, the run 50000000") as caught:
            resolved(limits=limits).require_own()
        assert "--out" in caught.value.hint


@pytest.mark.parametrize(
    ("file", "changes", "key", "values"),
    [
        ("ensembles/default.yaml", {"thresholds": {"fake_above": 9.5}}, "decision.thresholds.fake_above", ("0.53", "9.5")),
        ("detectors/touchstone-tiny.yaml", {"valid_range": {"min_side_px": 200}, "calibration": {"slope": 2.0, "intercept": 0.5}},
         "detectors.touchstone-tiny.valid_range.min_side_px", ("64", "200")),
    ],
    ids=["thresholds", "card"],
)  # fmt: skip
def test_what_is_shipped_today_leaves_a_run_what_it_was_begun_with(half, other_configs, file, changes, key, values):
    change(other_configs / file, **changes)
    found = resolved()
    found.require_own()
    spec = found.spec(0)
    assert spec.ensemble.thresholds.fake_above == 0.53
    assert [card.valid_range.min_side_px for card in spec.cards.values()] == [64]
    assert spec.calibrations == {"touchstone-tiny": None}
    assert kept(found)[key] == values


def test_weights_that_are_not_shipped_any_more_are_taken_from_the_run_or_refused(half, other_configs, tmp_path, monkeypatch, s3):
    monkeypatch.setenv("TOUCHSTONE_CACHE", str(tmp_path / "cache"))
    weights = other_configs / "detectors" / "touchstone-tiny.safetensors"
    old = weights.read_bytes()
    weights.write_bytes(old + b"other")
    told = {"uri": weights.name, "sha256": hashlib.sha256(old + b"other").hexdigest()}
    change(other_configs / "detectors" / "touchstone-tiny.yaml", weights=told)
    with pytest.raises(IdentityError, match=r"detectors\.touchstone-tiny\.weights: this command") as caught:
        resolved().require_own()
    assert "Touchstone that made the run" in caught.value.hint
    digest = json.loads(half["half/run.json"])["identity"]["detectors"]["touchstone-tiny"]["weights"]
    s3.client().put_object(Bucket=BUCKET, Key=f"half/weights/touchstone-tiny-{digest[:16]}.safetensors", Body=old)
    found = resolved()
    found.require_own()
    assert set(kept(found)) == {"detectors.touchstone-tiny.weights", *RAISED}


def scored(out, **given):
    with without_ray():
        return score_archive(ScoreConfig(source=(SOURCE,), out=out, thumbnails=False, **given))


# Runs of an older default go on with it under another one, and say so.
SAID = (
    "this run was made with touchstone-tiny, the default up to Touchstone 0.11, and goes on with it; "
    "the default is touchstone-new today; a new --out would begin with that"
)
KEPT = {"key": "ensemble", "run": "default (touchstone-tiny)", "today": "default (touchstone-new)"}


@pytest.fixture
def another_default(other_configs):
    """The default is a detector of another name; without it, whatever is shipped."""
    card = shutil.copy(other_configs / "detectors" / "touchstone-tiny.yaml", other_configs / "detectors" / "touchstone-new.yaml")
    change(card, name="touchstone-new", title="Another one", demonstration=False)
    return change(other_configs / "ensembles" / "default.yaml", members=[{"detector": "touchstone-new"}])


def said(capsys):
    return [line for line in capsys.readouterr().err.splitlines() if "the default up to Touchstone" in line]


def test_a_half_done_run_goes_on_with_the_limits_and_the_former_default_that_it_was_begun_with(half, another_default, s3, capsys):
    url = f"s3://{BUCKET}/half"
    parts = {key: body for key, body in half.items() if key.startswith("half/parts/")}
    assert len(parts) == 4
    s3.clear_log()
    finished = scored(url)
    summary = finished.summary
    assert finished.exit_code is ExitCode.DONE
    assert not [request for request in s3.requests() if request.method == "PUT" and request.path.removeprefix(f"/{BUCKET}/") in parts]
    told = capsys.readouterr().err.splitlines()
    assert [line for line in told if "the default up to Touchstone" in line] == [SAID]
    [others] = [line for line in told if line.startswith("settings stay as the run was begun: ")]
    assert "limits.max_pixels" in others
    assert "ensemble" not in others
    run = RunDirectory.open(url)
    assert check_conservation(run) == PICTURES
    rows = rows_of(url)
    assert Counter(row["attempt"] for row in rows.values()) == {1: 16, 2: 16}
    put_run(s3.client(), "finished")
    whole = rows_of(f"s3://{BUCKET}/finished")
    assert {uri: row["verdict"] for uri, row in rows.items()} == {uri: row["verdict"] for uri, row in whole.items()}
    for uri, row in rows.items():
        assert list(row["scores"]) == ["touchstone-tiny"]
        assert row["scores"] == pytest.approx(whole[uri]["scores"], abs=1e-4), "that one was scored by another CPU"
    assert summary["identity"] == json.loads(half["half/run.json"])["identity"]
    assert of_any_cpu(summary["session"]["kept"]) == RAISED | {"ensemble": (KEPT["run"], KEPT["today"])}
    lines = [line for line in summary_lines(summary) if line.startswith("as begun: ")]
    assert "limits.max_pixels 50000000 (today 250000000)" in lines[0]
    assert "new --out" in lines[1]
    assert "limits.max_pixels 50000000 (today 250000000)" in run.store.read("report.html").decode()
    finished = scored(url, ensemble="default")
    assert (finished.summary["session"]["rows"], said(capsys)) == (0, [SAID])
    assert scored(url, rescore=("corrupt_image",)).exit_code is ExitCode.DONE
    assert said(capsys) == [SAID]


def test_a_finished_run_has_nothing_to_do_and_then_one_new_image(photographs, s3):
    client = s3.client()
    before = json.loads(put_run(client, "finished")["finished/summary.json"])
    summary = scored(f"s3://{BUCKET}/finished").summary
    assert (summary["session"]["rows"], summary["listing"], summary["fingerprint"]) == (0, 0, before["fingerprint"])
    assert of_any_cpu(summary["session"]["kept"]) == RAISED
    client.put_object(Bucket=BUCKET, Key="photos/new.bmp", Body=picture(PICTURES))
    summary = scored(f"s3://{BUCKET}/finished").summary
    client.delete_object(Bucket=BUCKET, Key="photos/new.bmp")
    assert (summary["session"]["rows"], summary["listing"], summary["members"]) == (1, 1, PICTURES + 1)


EVERY = {
    "include": ["*.bmp"],
    "exclude": ["*7.bmp"],
    "limit": 9,
    "columns": {"uri": "where"},
    "container_limits": {"max_ratio": 50.0},
    "perturb": ["jpeg:75", "blur:2+jpeg:50"],
    "batch_slots": 8,
    "resize": "fast",
    "precision": "bf16",
    "detectors": ["touchstone-tiny"],
}


def test_every_key_of_an_identity_is_taken_from_the_run(tmp_path):
    run = RunDirectory.open(str(tmp_path / "run"))
    begun = resolve(ScoreConfig.model_validate({"source": ["/photos"]} | EVERY))
    spec = begun.spec(0)
    run.claim(begun.identity(spec), list(spec.cards), spec.ensemble.model_dump(mode="json"))
    found = resolve(ScoreConfig(source=("/photos",), out=str(tmp_path / "run")), run)
    found.require_own()
    again = found.spec(0)
    assert again == spec
    assert found.identity(again) == run.describe()["identity"]
    named = {one["key"].partition(".")[0] for one in found.kept(again)}
    assert named == {"include", "exclude", "limit", "columns", "container_limits", "perturb", "batch_slots", "resize",
                     "ensemble"}  # fmt: skip


def test_a_finished_run_of_a_former_default_is_decided_as_it_was_and_a_card_over_it_stays(
    photographs, s3, another_default, tmp_path, capsys
):
    put_run(s3.client(), "finished")
    finished = f"s3://{BUCKET}/finished"
    before = {uri: row["verdict"] for uri, row in rows_of(finished).items()}
    assert decide_run(finished, "default")["ensemble"]["name"] == "default"
    assert said(capsys) == [SAID]
    assert {uri: row["verdict"] for uri, row in rows_of(finished).items()} == before
    assert decide_run(finished, "tiny")["ensemble"]["name"] == "tiny"
    assert {uri: row["verdict"] for uri, row in rows_of(finished).items()} == before
    assert said(capsys) == []
    with pytest.raises(ConfigError, match="no scores of touchstone-new"):
        decide_run(finished, "default")

    decide_run(finished, str(write_ensemble(tmp_path / "mine.yaml", thresholds={"real_below": -9, "fake_above": 9})))
    assert {"key": "ensemble", "run": "mine", "today": "default"} in scored(finished).summary["session"]["kept"]
    assert said(capsys) == []


def test_a_limit_that_there_was_not_yet_does_not_apply_unless_it_is_asked_for(half, s3):
    """A run that took PNGs of 150 MP goes on taking them."""
    told = json.loads(half["half/run.json"])
    told["identity"]["limits"]["max_pixels"] = 200_000_000
    del told["identity"]["limits"]["max_text_bytes"]
    s3.client().put_object(Bucket=BUCKET, Key="half/run.json", Body=json.dumps(told))
    found = resolved()
    found.require_own()
    assert (found.spec(0).limits.max_pixels, found.spec(0).limits.max_whole_pixels) == (200_000_000, None)
    with pytest.raises(IdentityError, match="max_text_bytes: this command 5, the run has none"):
        resolved(limits={"max_text_bytes": 5}).require_own()
