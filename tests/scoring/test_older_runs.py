"""Runs of 0.20.0 are read, and continued as compacted runs under other defaults, which what the
user wrote has to match; older runs are refused.
"""

import hashlib
import json
import shutil

import pytest

from ray_app import load_run
from ray_app.cli.main import main
from ray_app.errors import ConfigError, ExitCode, IdentityError
from ray_app.images import ImageLimits
from ray_app.reports import summary_lines
from ray_app.runs import RunDirectory, verify_run
from ray_app.scoring import ScoreConfig
from ray_app.scoring.identity import resolve
from ray_app.scoring.run import score_archive
from tests.make.runs import begin, rows_of
from tests.make.stages import without_ray
from tests.scoring.older import (
    BUCKET,
    PICTURES,
    SOURCE,
    age,
    change,
    copied_configs,
    picture,
    put_pictures,
    put_run,
    unpack,
)


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
    """What another version ships, with the ensemble of these runs as its default: a copy of all
    configs, which a test may change.
    """
    folder = copied_configs(tmp_path / "configs", monkeypatch)
    shutil.copy(folder / "ensembles" / "tiny.yaml", folder / "ensembles" / "default.yaml")
    return folder


def resolved(out="half", **given):
    config = ScoreConfig.model_validate({"source": [SOURCE], "out": f"s3://{BUCKET}/{out}"} | given)
    return resolve(config, RunDirectory.open(config.out))


def run_at(name):
    return RunDirectory.open(f"s3://{BUCKET}/{name}")


def kept(found):
    """What the run keeps of its own, by key, with today's value."""
    return {one["key"]: (one["run"], one["today"]) for one in found.changed_default()}


def test_limits_that_the_user_gives_have_to_match(half):
    found = resolved()
    found.require_same(run_at("half"))
    assert kept(found) == {}
    for limits in ({"max_pixels": 50_000_000}, ImageLimits(max_pixels=50_000_000)):
        with pytest.raises(
            IdentityError, match=r"limits\.max_pixels: this command 50000000, the run 250000000"
        ) as caught:
            resolved(limits=limits).require_same(run_at("half"))
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
def test_run_keeps_its_settings_under_other_configs(
    half, other_configs, file, changes, key, values
):
    change(other_configs / file, **changes)
    found = resolved()
    found.require_same(run_at("half"))
    spec = found.spec(0)
    assert spec.ensemble.thresholds.fake_above == 0.53
    assert [card.valid_range.min_side_px for card in spec.cards.values()] == [64]
    assert spec.calibrations == {"touchstone-tiny": None}
    assert kept(found)[key] == values


def test_weights_not_shipped_come_from_the_run_or_are_refused(
    half, other_configs, tmp_path, monkeypatch, s3
):
    monkeypatch.setenv("TOUCHSTONE_CACHE", str(tmp_path / "cache"))
    weights = other_configs / "detectors" / "touchstone-tiny.safetensors"
    old = weights.read_bytes()
    weights.write_bytes(old + b"other")
    told = {"uri": weights.name, "sha256": hashlib.sha256(old + b"other").hexdigest()}
    change(other_configs / "detectors" / "touchstone-tiny.yaml", weights=told)
    message = r"detectors\.touchstone-tiny\.weights: this command"
    with pytest.raises(IdentityError, match=message) as caught:
        resolved().require_same(run_at("half"))
    assert "Touchstone that wrote the run" in caught.value.hint
    detectors = json.loads(half["half/run.json"])["identity"]["detectors"]
    digest = detectors["touchstone-tiny"]["weights"]
    key = f"half/weights/touchstone-tiny-{digest[:16]}.safetensors"
    s3.client().put_object(Bucket=BUCKET, Key=key, Body=old)
    found = resolved()
    found.require_same(run_at("half"))
    assert set(kept(found)) == {"detectors.touchstone-tiny.weights"}


def scored(out, **given):
    with without_ray():
        return score_archive(ScoreConfig(source=(SOURCE,), out=out, thumbnails=False, **given))


@pytest.fixture
def another_default(other_configs):
    """The default ensemble has another detector."""
    detectors, default = other_configs / "detectors", other_configs / "ensembles" / "default.yaml"
    card = shutil.copy(detectors / "touchstone-tiny.yaml", detectors / "touchstone-new.yaml")
    change(card, name="touchstone-new", title="Another one", demonstration=False)
    return change(default, name="default", members=[{"detector": "touchstone-new"}])


def test_half_done_run_of_another_version_is_refused(half, capsys):
    before = dict(half)
    assert main(["score", SOURCE, "--out", f"s3://{BUCKET}/half"]) == ExitCode.USAGE
    error = capsys.readouterr().err
    assert "a command of Touchstone 0.20.0 did not finish this run" in error
    assert "finish it with Touchstone 0.20.0" in error
    assert half == before


def test_finished_run_continues_as_a_compacted_one(
    photographs, s3, another_default, tmp_path, capsys
):
    """Nothing is scored again under another default ensemble, and then only one new image is."""
    client = s3.client()
    old, new = str(unpack("finished", tmp_path)), str(tmp_path / "compacted")
    with pytest.raises(ConfigError, match=r"Touchstone 0\.20\.0 wrote this run") as refused:
        scored(old)
    assert f"touchstone runs compact {old} NEW" in refused.value.hint
    assert main(["runs", "compact", old, new]) == ExitCode.DONE
    assert rows_of(new) == rows_of(old)
    assert verify_run(RunDirectory.open(new)).current == PICTURES
    summary = scored(new).summary
    assert (summary["session"]["rows"], summary["listing"]) == (0, 0)
    [kept_ensemble] = summary["session"]["kept"]
    assert kept_ensemble == {"key": "ensemble", "run": "tiny", "today": "default"}
    assert "keeping the settings of the existing run: ensemble tiny" in capsys.readouterr().err
    lines = [line for line in summary_lines(summary) if line.startswith("kept settings: ")]
    assert "ensemble tiny (today default)" in lines[0]
    assert "new --out" in lines[1]
    client.put_object(Bucket=BUCKET, Key="photos/new.bmp", Body=picture(PICTURES))
    summary = scored(new).summary
    client.delete_object(Bucket=BUCKET, Key="photos/new.bmp")
    counts = (summary["session"]["rows"], summary["listing"], summary["members"])
    assert counts == (1, 1, PICTURES + 1)
    verify_run(RunDirectory.open(new))


def test_point_of_the_default_ensemble_changes_no_default(other_configs, tmp_path):
    point = {"rate": 0.1, "threshold": -1.0, "false_positive_rate": 0.09, "upper_bound": 0.12}
    change(other_configs / "ensembles" / "default.yaml", operating_points=[point])
    run = begin(tmp_path / "run", source=("/photos",), fpr=0.1)
    assert kept(resolve(ScoreConfig(source=("/photos",)), run)) == {}


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
    settings = {"source": ["/photos"]} | EVERY
    run = begin(tmp_path / "run", **settings)
    found = resolve(ScoreConfig(source=("/photos",), out=str(tmp_path / "run")), run)
    found.require_same(run)
    spec = found.spec(0)
    assert spec == resolve(ScoreConfig(**settings)).spec(0)
    assert found.facts(spec) == run.describe()["identity"]


READERS = (
    "results RUN",
    "results RUN --verdict fake",
    "results RUN --json",
    "runs report RUN",
    "runs gallery RUN --out RUN-pages --verdict real",
    "runs audit RUN --draw 50 --out RUN-audit",
    "compare RUN RUN",
    "runs decide RUN --ensemble tiny --out RUN-decided",
    "runs compact RUN RUN-compacted",
    "runs verify RUN",
)
OTHERS = (
    "evaluate RUN --labels RUN/labels.csv --out RUN-evaluated",
    "detectors calibrate RUN --labels RUN/labels.csv --fpr 0.01 --out RUN-card.yaml",
    "runs masks RUN --out RUN-masks",
    "score s3://older/photos --out RUN",
    "plan s3://older/photos --out RUN",
)


def test_commands_refuse_a_run_of_0_19(photographs, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = age(unpack("finished", tmp_path))
    (run / "labels.csv").write_text("uri,label\ns3://older/photos/000.bmp,real\n")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for command in (*READERS, *OTHERS):
        assert main(command.replace("RUN", str(run)).split()) == ExitCode.USAGE, command
        error = capsys.readouterr().err
        assert "Touchstone 0.19.0 wrote this run" in error, command
        assert "finish or read it with Touchstone 0.19.0" in error, command
    with pytest.raises(ConfigError, match=r"Touchstone 0\.19\.0 wrote this run"):
        load_run(str(run))
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_commands_read_a_run_of_0_20(photographs, tmp_path, capsys):
    run = unpack("finished", tmp_path)
    for command in READERS:
        assert main(command.replace("RUN", str(run)).split()) == ExitCode.DONE, command
        printed = capsys.readouterr().out
        if command.endswith("--json") and command.startswith("results"):
            rows = [json.loads(line) for line in printed.splitlines()]
            assert len(rows) == PICTURES
            assert all(row["finding"] for row in rows)
    decided = rows_of(f"{run}-decided")
    for uri, row in rows_of(run).items():
        assert decided[uri]["verdict"] == row["verdict"]
