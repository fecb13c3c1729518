"""Which checkpoints count, and which may be deleted, by the markers of the project alone."""

import pytest

from ray_app.errors import ConfigError
from ray_app.storage import Store
from ray_app.training import checkpoints
from ray_app.training.checkpoints import CheckpointEntry

FOLDER = "checkpoints"


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
    assert folder.exists() == ("://" not in three.url), "copies of remote files are temporary"


class Learned:
    """What a writer saves."""

    rank, step_number = 0, 40

    def save(self, folder):
        (folder / "model.safetensors").write_bytes(b"weights")


def test_checkpoint_that_was_written_is_complete(out):
    writer = checkpoints.CheckpointWriter(out)
    name = writer.save(Learned(), finished=True)
    writer.wait()
    assert checkpoints.list_checkpoints(out) == [CheckpointEntry(name, 40, True)]
    assert out.read(f"{FOLDER}/{name}/model.safetensors") == b"weights"


def test_training_of_an_older_version_is_refused(out):
    checkpoints.refuse_older(out)
    out.write("ray/train/step-00000010-aa/model.safetensors", b"weights")
    with pytest.raises(ConfigError, match=r"checkpoints of Touchstone 0\.27 or older") as refused:
        checkpoints.refuse_older(out)
    assert "nothing was deleted" in refused.value.hint


def test_names_of_one_step_differ():
    assert len({checkpoints.new_name(5) for _ in range(100)}) == 100
    assert checkpoints.new_name(5).startswith("step-00000005-")
