"""Which checkpoints count, and which may be deleted, by the markers of the project alone."""

import json
from pathlib import Path

import pytest
import ray

from ray_app.errors import ConfigError
from ray_app.storage import Store
from ray_app.training import checkpoints
from ray_app.training.checkpoints import CheckpointEntry

FOLDER = "ray/train"
RAY_LIST = f"{FOLDER}/checkpoint_manager_snapshot.json"


@pytest.fixture(params=["disk", "bucket"])
def out(request, tmp_path):
    if request.param == "disk":
        return Store.open(str(tmp_path / "out"))
    server = request.getfixturevalue("s3")
    return Store.open(
        f"{server.bucket(f'checkpoints-{tmp_path.name}'.lower().replace('_', '-'))}/out"
    )


@pytest.fixture
def uploaded(tmp_path):
    """Upload a checkpoint that holds its own name."""

    def upload(out, name, *, finished=False):
        folder = tmp_path / "local" / name
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(name.encode())
        checkpoints.save_checkpoint(out, folder, name, finished=finished)

    return upload


@pytest.fixture
def three(out, uploaded):
    """Three complete checkpoints, and one whose upload was interrupted after the last of them."""
    for name in ("step-00000020-bb", "step-00000010-aa", "step-00000030-cc"):
        uploaded(out, name)
    out.write(f"{FOLDER}/step-00000040-dd/model.safetensors", b"half")
    return out


def names(out):
    return out.folders(FOLDER)


def older_checkpoints(out, *steps):
    """Checkpoints as Touchstone 0.22 left them: without a marker."""
    for step in steps:
        folder = f"{FOLDER}/step-{step:08d}-old"
        out.write(f"{folder}/model.safetensors", b"weights")
        out.write(f"{folder}/training.json", json.dumps({"step": step, "finished": False}).encode())


def ray_list(*steps):
    """The list of Ray Train 2.60, as Touchstone 0.22 had it written."""
    results = [
        {"version": 0, "checkpoint_dir_name": f"step-{step:08d}-old", "metrics": {"step": step}}
        for step in steps
    ]
    content = {
        "ray_version": ray.__version__, "checkpoint_results": results, "checkpoint_report_indices": list(range(len(steps))),
        "latest_checkpoint_result": results[-1], "pending_training_results": [], "pending_validation_specs": [],
        "current_report_index": len(steps), "validated_checkpoint_dir_names": [], "timed_out_validation_checkpoint_dir_names": [],
        "failed_validation_checkpoint_dir_names": [],
    }  # fmt: skip
    return json.dumps(content).encode()


def test_checkpoints_with_a_marker_are_listed_by_step(three):
    assert [entry.step for entry in checkpoints.list_checkpoints(three)] == [10, 20, 30]
    assert checkpoints.latest_checkpoint(three) == CheckpointEntry("step-00000030-cc", 30, False)


@pytest.mark.parametrize("marker", [b"", b'{"step": 40, "fin', b"[]", b'{"step": 40}'])
def test_checkpoint_with_a_broken_marker_is_not_complete(three, marker):
    three.write(f"{FOLDER}/step-00000040-dd/DONE", marker)
    assert checkpoints.latest_checkpoint(three).step == 30
    three.write(f"{FOLDER}/step-00000020-bb/DONE", marker)
    assert checkpoints.remove_incomplete(three) == []


def test_interrupted_upload_stays_until_its_step_is_saved_again(three, uploaded):
    assert checkpoints.remove_incomplete(three) == []
    uploaded(three, "step-00000040-ee")
    assert checkpoints.remove_incomplete(three) == ["step-00000040-dd"]
    assert names(three) == [
        "step-00000010-aa",
        "step-00000020-bb",
        "step-00000030-cc",
        "step-00000040-ee",
    ]


@pytest.mark.parametrize(
    "content",
    [None, b'{"checkpoint_resu', b"{}", ray_list(10).replace(b"checkpoint_results", b"results")],
)
def test_checkpoints_stay_whatever_ray_train_lists(three, content):
    before = names(three)
    if content is not None:
        three.write(RAY_LIST, content)
    checkpoints.mark_older_checkpoints(three)
    checkpoints.remove_ray_notes(three)
    checkpoints.remove_incomplete(three)
    assert names(three) == before
    assert checkpoints.latest_checkpoint(three).step == 30


def test_folders_without_any_marker_stay(out):
    out.write(f"{FOLDER}/step-00000010-aa/model.safetensors", b"weights")
    out.write(f"{FOLDER}/mine/notes.txt", b"of a user")
    assert checkpoints.remove_incomplete(out) == []
    assert checkpoints.remove_superseded(out, keep=1, values={}) == []
    assert names(out) == ["mine", "step-00000010-aa"]


@pytest.mark.parametrize(
    ("values", "unjudged", "removed"),
    [
        ({10: 0.9, 20: 0.8, 30: 0.7}, (), ["step-00000020-bb"]),
        ({10: 0.9, 20: 0.9, 30: 0.7}, (), ["step-00000010-aa"]),
        ({10: 0.9}, (20,), []),
        ({10: 0.9}, (), ["step-00000020-bb"]),
        ({}, (), ["step-00000010-aa", "step-00000020-bb"]),
    ],
)
def test_best_last_and_unjudged_checkpoints_stay(three, values, unjudged, removed):
    assert checkpoints.remove_superseded(three, keep=1, values=values, unjudged=unjudged) == removed
    assert "step-00000040-dd" in names(three), "an upload in progress looks like this"


def test_training_is_over_once_its_last_checkpoint_is_finished(out, uploaded):
    assert not checkpoints.is_trained(out)
    uploaded(out, "step-00000010-aa")
    assert not checkpoints.is_trained(out)
    uploaded(out, "step-00000020-bb", finished=True)
    assert checkpoints.is_trained(out)


def test_checkpoint_is_fetched_as_a_folder(three):
    with checkpoints.fetched(three, "step-00000010-aa") as folder:
        assert (folder / "model.safetensors").read_bytes() == b"step-00000010-aa"
        assert checkpoints.read_step(folder) == 10
    assert folder.exists() == ("://" not in three.url), "copies of remote files are temporary"


def test_ray_train_reads_the_checkpoint_that_was_saved(three):
    with checkpoints.ray_checkpoint(three, "step-00000020-bb").as_directory() as folder:
        assert checkpoints.read_step(Path(folder)) == 20


def test_older_checkpoints_that_ray_lists_are_marked(out):
    older_checkpoints(out, 10, 20, 30)
    out.write(RAY_LIST, ray_list(10, 20))
    checkpoints.mark_older_checkpoints(out)
    assert [entry.step for entry in checkpoints.list_checkpoints(out)] == [10, 20]
    assert len(names(out)) == 3


def test_older_checkpoints_are_marked_after_an_interruption(out):
    older_checkpoints(out, 10, 20, 30)
    out.write(RAY_LIST, ray_list(10, 20, 30))
    checkpoints.mark_complete(out, "step-00000030-old", finished=False)
    checkpoints.mark_older_checkpoints(out)
    assert checkpoints.remove_incomplete(out) == []
    assert [entry.step for entry in checkpoints.list_checkpoints(out)] == [10, 20, 30]


@pytest.mark.parametrize(
    "content", [None, ray_list(10)[:40], ray_list(10).replace(b"checkpoint_results", b"results")]
)
def test_older_checkpoints_without_a_list_are_refused(out, content):
    older_checkpoints(out, 10, 20)
    if content is not None:
        out.write(RAY_LIST, content)
    with pytest.raises(ConfigError, match=r"2 checkpoints of Touchstone 0\.22 or older") as refused:
        checkpoints.mark_older_checkpoints(out)
    assert "nothing was deleted" in refused.value.hint
    assert len(names(out)) == 2


def test_names_of_one_step_differ():
    assert len({checkpoints.new_name(5) for _ in range(100)}) == 100
    assert checkpoints.new_name(5).startswith("step-00000005-")
