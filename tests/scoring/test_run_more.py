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
from ray_app.cluster.ray_cluster import _has
from ray_app.errors import RESUMABLE, ClusterError, ConfigError, ExitCode, IdentityError
from ray_app.runs import RunDirectory, current_rows
from ray_app.scoring.backlog import is_complete
from ray_app.scoring.decide import decide_run
from ray_app.storage import Lease, Store
from tests.scoring.conftest import comparable, files_below, rows_of, score_here, write_ensemble
from tests.storage.leases import is_released


def save_photo(path, seed, size=(320, 240)):
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (8, 10, 3), dtype=np.uint8))
    coarse.resize(size, Image.Resampling.BICUBIC).save(path, quality=90)


@pytest.fixture(scope="module")
def scored(sample_archive, tmp_path_factory):
    """The sample archive scored once, for those that only read the run or copy it."""
    return score_here(tmp_path_factory.mktemp("scored") / "run", sample_archive)


@pytest.fixture
def copied(scored, tmp_path):
    """A copy of that run, which a test may change."""
    return Path(shutil.copytree(scored[0].summary["run"], tmp_path / "run"))


def test_every_file_has_one_row_and_the_good_ones_a_verdict(scored, sample_archive):
    finished, rows = scored
    assert finished.exit_code is ExitCode.DONE
    assert sorted(rows) == files_below(sample_archive)
    for uri, row in rows.items():
        assert (row["status"] == "ok") == (row["verdict"] is not None), uri
        if row["status"] == "ok":
            with Image.open(uri) as image:
                assert (row["width"], row["height"], row["format"]) == (
                    *image.size,
                    {"MPO": "JPEG"}.get(image.format, image.format),
                )
            assert row["probability"] == pytest.approx(1 / (1 + np.exp(-row["score"])))
            assert row["calibrated"] is False
            assert list(row["scores"]) == ["touchstone-tiny"]
    statuses = {os.path.basename(uri): row["status"] for uri, row in rows.items()}
    assert {"unsupported_format", "truncated_image", "empty_file"} <= set(statuses.values())
    summary = finished.summary
    assert summary["members"] == len(rows) == sum(summary["statuses"].values())
    assert summary["session"]["rows"] == len(rows)
    run = RunDirectory.open(finished.summary["run"])
    assert run.parts(0) == []
    assert run.store.exists("report.html")


@pytest.mark.timeout(600)
def test_workers_on_ray_read_and_write_a_bucket_and_leave_the_same_rows(
    scored, score_on_ray, sample_archive, s3
):
    bucket = s3.bucket("same-rows")
    store = Store.open(f"{bucket}/photos")
    for path in files_below(sample_archive):
        with open(path, "rb") as file:
            store.write(os.path.relpath(path, sample_archive), file.read())
    finished, rows = score_on_ray(f"{bucket}/photos", out=f"{bucket}/run")
    assert finished.exit_code is ExitCode.DONE
    assert (finished.summary["session"]["layout"], finished.summary["session"]["workers"]) == (
        "fused",
        2,
    )
    by_sha = {row["sha256"]: comparable(row) for row in scored[1].values()}
    assert len(rows) == len(scored[1])
    for row in rows.values():
        assert comparable(row) == by_sha[row["sha256"]]


def test_more_bad_files_than_are_allowed_are_an_exit_code_of_their_own(
    score, sample_archive, copied
):
    for most, code in ((0.0, ExitCode.TOO_MANY_BAD), (0.9, ExitCode.DONE)):
        assert score(sample_archive, out=copied, max_bad_fraction=most)[0].exit_code is code


SESSION_S_OWN = ("started_at", "finished_at", "session", "bottleneck")


def test_a_finished_run_scores_exactly_what_is_new_or_changed(score, archive, monkeypatch):
    _, before = score(archive)
    names = files_below(archive)
    changed, removed = [name for name in names if before[name]["format"] == "JPEG"][:2], names[-1]
    for index, name in enumerate(changed):
        save_photo(name, 100 + index)
    added = [os.path.join(archive, f"new-{index}.jpg") for index in range(3)]
    for index, name in enumerate(added):
        save_photo(name, 200 + index)
    os.remove(removed)
    finished, after = score(archive)
    assert finished.summary["session"]["rows"] == 5
    assert finished.summary["listing"] == 1
    assert set(after) == (set(before) - {removed}) | set(added)
    for name in after:
        if name in changed or name in added:
            assert after[name]["attempt"] == 2
        else:
            assert after[name] == before[name]
    everything = current_rows(RunDirectory.open(finished.summary["run"]), vanished=True)
    assert len(list(everything)) == len(before) + 5
    counted = finished.summary
    with monkeypatch.context() as patch:
        patch.setattr(
            "ray_app.cluster.ray_cluster.cluster",
            lambda config: pytest.fail("a run with nothing to do started a cluster"),
        )
        finished, same = score(archive)
    assert (finished.summary["session"]["rows"], finished.summary["listing"]) == (0, 1)
    assert finished.summary | {name: counted[name] for name in SESSION_S_OWN} == counted
    assert same == after
    # A session that ended too early leaves doubt about all that it may have touched.
    run = RunDirectory.open(finished.summary["run"])
    assert is_complete(run)
    run.write_json(
        "sessions/00004.json", run.read_json("sessions/00003.json") | {"state": "interrupted"}
    )
    assert not is_complete(run)


def test_other_settings_on_the_same_directory_are_refused_other_workers_are_not_and_one_in_use_is(
    score, sample_archive, copied
):
    with pytest.raises(IdentityError) as caught:
        score(sample_archive, out=copied, resize="fast")
    assert 'resize: this command "fast", the run "exact"' in str(caught.value)
    assert caught.value.exit_code is ExitCode.USAGE
    finished, _ = score(sample_archive, out=copied, cluster=ClusterConfig(workers=1))
    assert finished.summary["session"]["rows"] == 0
    with (
        Lease(RunDirectory.open(str(copied)).store),
        pytest.raises(IdentityError, match=str(os.getpid())),
    ):
        score(sample_archive, out=copied)


def test_decide_applies_new_thresholds_and_scores_nothing(score, sample_archive, copied, tmp_path):
    before = rows_of(copied)
    strict = str(
        write_ensemble(
            tmp_path / "strict.yaml", thresholds={"real_below": -1000, "fake_above": 1000}
        )
    )
    decided = tmp_path / "decided"
    summary = decide_run(str(copied), strict, str(decided))
    after = rows_of(decided)
    assert rows_of(copied) == before
    assert summary["verdicts"] == {"real": 0, "fake": 0, "abstain": summary["statuses"]["ok"]}
    assert summary["run"] == str(decided)
    unchanged = ("scores", "score", "probability", "scored_at", "attempt", "sha256", "status")
    for uri, row in after.items():
        assert {name: row[name] for name in unchanged} == {
            name: before[uri][name] for name in unchanged
        }
        assert row["verdict"] == ("abstain" if row["status"] == "ok" else None)
    with pytest.raises(IdentityError, match="fake_above"):
        score(sample_archive, out=decided, ensemble="tiny")
    for named in (strict, None):
        finished, _ = score(sample_archive, out=decided, ensemble=named)
        assert finished.summary["session"]["rows"] == 0
        assert finished.summary["ensemble"]["name"] == "strict"
    assert finished.summary["session"]["kept"] == [
        {"key": "ensemble", "run": "strict", "today": "default"}
    ]


def test_an_empty_or_missing_source_is_a_usage_error_and_a_limit_lists_no_more(
    score, archive, tmp_path
):
    (tmp_path / "empty").mkdir()
    for source in ("empty", "missing"):
        with pytest.raises(ConfigError):
            score(tmp_path / source)
    assert len(score(archive, limit=5)[1]) == 5


@pytest.mark.slow
def test_a_run_without_progress_stops_by_itself_and_can_be_resumed(score_on_ray, archive, tmp_path):
    with pytest.raises(ClusterError, match="no block ended in 4 s") as caught:
        score_on_ray(
            archive,
            device="cpu",
            batch_slots=4,
            precision="fp32",
            cluster=ClusterConfig(cpus=2, gpus=1, stall_timeout_s=4),
        )
    assert caught.value.exit_code is ExitCode.CLUSTER
    assert RESUMABLE in caught.value.__notes__
    assert is_released(Store.open(str(tmp_path / "run")))
    finished, rows = score_on_ray(archive, batch_slots=4, precision="fp32")
    assert len(rows) == finished.summary["session"]["rows"] == len(files_below(archive))


@pytest.mark.slow
def test_a_run_keeps_off_the_nodes_of_an_endpoint(score_on_ray, archive, tmp_path):
    finished, _ = score_on_ray(archive, cluster=ClusterConfig(labels={"workload": "!serving"}))
    assert finished.exit_code == 0
    with pytest.raises(ClusterError, match="has 0 CPUs"):
        score_on_ray(
            archive, out=tmp_path / "other", cluster=ClusterConfig(labels={"workload": "serving"})
        )


def test_labels_are_asked_for_in_ray_s_words():
    for value, wanted in (("a", "a"), (None, "!a"), ("b", "in(a, b)"), ("c", "!in(a,b)")):
        assert _has(value, wanted)
    for value, wanted in ((None, "a"), ("a", "!a")):
        assert not _has(value, wanted)
