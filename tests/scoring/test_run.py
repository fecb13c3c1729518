"""A scoring run from end to end: on a real local Ray, and what it makes of settings and changes
with its stages in this process.
"""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ray_app.cluster.config import ClusterConfig
from ray_app.cluster.ray_cluster import _matches
from ray_app.errors import RESUMABLE, ClusterError, ConfigError, ExitCode, IdentityError
from ray_app.runs import RunDirectory, current_rows
from ray_app.scoring.backlog import is_complete
from ray_app.scoring.decide import decide_run
from ray_app.storage import Lease, Store
from tests.make.archives import write_photo
from tests.make.cards import write_ensemble
from tests.make.leases import is_released
from tests.make.runs import comparable, files_below, rows_of, score_here


@pytest.fixture(scope="module")
def scored(sample_archive, tmp_path_factory):
    """The sample archive scored once, for those that only read the run or copy it."""
    return score_here(tmp_path_factory.mktemp("scored") / "run", sample_archive)


@pytest.fixture
def copied(scored, tmp_path):
    """A copy of that run, which a test may change."""
    return Path(shutil.copytree(scored[0].summary["run"], tmp_path / "run"))


def test_run_has_one_row_for_every_file(scored, sample_archive):
    finished, rows = scored
    assert finished.exit_code is ExitCode.DONE
    assert sorted(rows) == files_below(sample_archive)
    for uri, row in rows.items():
        assert (row["status"] == "ok") == (row["verdict"] is not None), uri
        if row["status"] == "ok":
            with Image.open(uri) as image:
                kind = {"MPO": "JPEG"}.get(image.format, image.format)
                assert (row["width"], row["height"], row["format"]) == (*image.size, kind)
            assert row["probability"] == pytest.approx(1 / (1 + np.exp(-row["score"])))
            assert row["calibrated"] is False
            assert list(row["scores"]) == ["touchstone-tiny"]
    statuses = {row["status"] for row in rows.values()}
    assert {"unsupported_format", "truncated_image", "empty_file"} <= statuses
    summary = finished.summary
    assert summary["members"] == len(rows) == sum(summary["statuses"].values())
    assert summary["session"]["rows"] == len(rows)
    run = RunDirectory.open(summary["run"])
    assert run.parts(0) == []
    assert run.store.exists("report.html")


@pytest.mark.timeout(600)
def test_run_on_ray_over_a_bucket_has_the_same_rows(scored, score_on_ray, sample_archive, s3):
    bucket = s3.bucket("same-rows")
    store = Store.open(f"{bucket}/photos")
    for path in files_below(sample_archive):
        store.write(os.path.relpath(path, sample_archive), Path(path).read_bytes())
    finished, rows = score_on_ray(f"{bucket}/photos", out=f"{bucket}/run")
    assert finished.exit_code is ExitCode.DONE
    session = finished.summary["session"]
    assert (session["layout"], session["workers"]) == ("fused", 2)
    by_sha = {row["sha256"]: comparable(row) for row in scored[1].values()}
    assert len(rows) == len(scored[1])
    for row in rows.values():
        assert comparable(row) == by_sha[row["sha256"]]


def test_too_many_bad_files_have_an_exit_code(score, sample_archive, copied):
    for limit, code in ((0.0, ExitCode.TOO_MANY_BAD), (0.9, ExitCode.DONE)):
        assert score(sample_archive, out=copied, max_bad_fraction=limit)[0].exit_code is code


OF_THE_SESSION = ("started_at", "finished_at", "session", "bottleneck")


def test_finished_run_scores_what_is_new_or_changed(score, archive, monkeypatch):
    _, before = score(archive)
    names = files_below(archive)
    changed, removed = [name for name in names if before[name]["format"] == "JPEG"][:2], names[-1]
    added = [os.path.join(archive, f"new-{index}.jpg") for index in range(3)]
    for seed, name in enumerate((*changed, *added), 100):
        write_photo(Path(name), seed)
    os.remove(removed)
    finished, after = score(archive)
    assert (finished.summary["session"]["rows"], finished.summary["listing"]) == (5, 1)
    assert set(after) == (set(before) - {removed}) | set(added)
    for name, row in after.items():
        if name in changed or name in added:
            assert row["attempt"] == 2
        else:
            assert row == before[name]
    run = RunDirectory.open(finished.summary["run"])
    assert len(list(current_rows(run, vanished=True))) == len(before) + 5
    counted = finished.summary
    with monkeypatch.context() as patch:
        patch.setattr(
            "ray_app.cluster.ray_cluster.cluster",
            lambda config: pytest.fail("a run with nothing to do started a cluster"),
        )
        finished, same = score(archive)
    assert (finished.summary["session"]["rows"], finished.summary["listing"]) == (0, 1)
    assert finished.summary | {name: counted[name] for name in OF_THE_SESSION} == counted
    assert same == after
    # A session that ended too early leaves doubt about all that it may have touched.
    assert is_complete(run)
    interrupted = run.read_json("sessions/00003.json") | {"state": "interrupted"}
    run.write_json("sessions/00004.json", interrupted)
    assert not is_complete(run)


def test_run_refuses_other_settings_and_a_second_command(score, sample_archive, copied):
    with pytest.raises(IdentityError) as caught:
        score(sample_archive, out=copied, batch_slots=3)
    assert "batch_slots: this command 3, the run 4" in str(caught.value)
    assert caught.value.exit_code is ExitCode.USAGE
    finished, _ = score(sample_archive, out=copied, cluster=ClusterConfig(workers=1))
    assert finished.summary["session"]["rows"] == 0, "other workers are no other settings"
    with (
        Lease(RunDirectory.open(str(copied)).store),
        pytest.raises(IdentityError, match=str(os.getpid())),
    ):
        score(sample_archive, out=copied)


def test_decide_applies_new_thresholds_and_scores_nothing(score, sample_archive, copied, tmp_path):
    before, decided = rows_of(copied), tmp_path / "decided"
    thresholds = {"real_below": -1000, "fake_above": 1000}
    strict = str(write_ensemble(tmp_path / "strict.yaml", thresholds=thresholds))
    summary = decide_run(str(copied), strict, str(decided))
    assert rows_of(copied) == before
    assert summary["verdicts"] == {"real": 0, "fake": 0, "abstain": summary["statuses"]["ok"]}
    assert summary["run"] == str(decided)
    for uri, row in rows_of(decided).items():
        for name in ("scores", "score", "probability", "scored_at", "attempt", "sha256", "status"):
            assert row[name] == before[uri][name]
        assert row["verdict"] == ("abstain" if row["status"] == "ok" else None)
    with pytest.raises(IdentityError, match="fake_above"):
        score(sample_archive, out=decided, ensemble="tiny")
    for named in (strict, None):
        summary = score(sample_archive, out=decided, ensemble=named)[0].summary
        assert (summary["session"]["rows"], summary["ensemble"]["name"]) == (0, "strict")
    kept = {"key": "ensemble", "run": "strict", "today": "default"}
    assert summary["session"]["kept"] == [kept]


def test_empty_or_missing_source_is_refused(score, archive, tmp_path):
    (tmp_path / "empty").mkdir()
    for source in ("empty", "missing"):
        with pytest.raises(ConfigError):
            score(tmp_path / source)
    assert len(score(archive, limit=5)[1]) == 5


@pytest.mark.slow
def test_run_without_progress_stops_and_resumes(score_on_ray, archive, tmp_path):
    stalling = ClusterConfig(cpus=2, gpus=1, stall_timeout_s=4)
    settings = {"batch_slots": 4, "precision": "fp32"}
    with pytest.raises(ClusterError, match="the workers finished nothing in 4 s") as caught:
        score_on_ray(archive, device="cpu", cluster=stalling, **settings)
    assert caught.value.exit_code is ExitCode.CLUSTER
    assert RESUMABLE in caught.value.__notes__
    assert is_released(Store.open(str(tmp_path / "run")))
    finished, rows = score_on_ray(archive, **settings)
    assert len(rows) == finished.summary["session"]["rows"] == len(files_below(archive))


@pytest.mark.slow
def test_run_keeps_off_the_nodes_of_an_endpoint(score_on_ray, archive, tmp_path):
    finished, _ = score_on_ray(archive, cluster=ClusterConfig(labels={"workload": "!serving"}))
    assert finished.exit_code == 0
    serving = ClusterConfig(labels={"workload": "serving"})
    with pytest.raises(ClusterError, match="has 0 CPUs"):
        score_on_ray(archive, out=tmp_path / "other", cluster=serving)


def test_labels_are_compared_as_ray_does():
    for value, wanted in (("a", "a"), (None, "!a"), ("b", "in(a, b)"), ("c", "!in(a,b)")):
        assert _matches(value, wanted)
    for value, wanted in ((None, "a"), ("a", "!a")):
        assert not _matches(value, wanted)
