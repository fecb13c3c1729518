"""Which checkpoints are complete, and which may be deleted."""

import pytest

from ray_app.errors import ConfigError
from ray_app.storage import Store
from ray_app.training import checkpoints
from ray_app.training.checkpoints import CheckpointEntry
from ray_app.training.detector import DetectorLearner
from ray_app.training.networks import training_card
from tests.make.file_modes import modes_in, umask
from tests.training.small_recipes import recipe

FOLDER = "checkpoints"
AA, BB, CC = "step-00000010-aa", "step-00000020-bb", "step-00000030-cc"
HALF = "step-00000040-dd"


@pytest.fixture
def out(tmp_path):
    return Store.open(str(tmp_path / "out"))


@pytest.fixture
def upload(tmp_path):
    """Upload a checkpoint that holds its own name."""

    def upload(out, name, *, finished=False):
        folder = tmp_path / "local" / name
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(name.encode())
        checkpoints.save_checkpoint(out, folder, name, finished=finished)

    return upload


@pytest.fixture
def three(out, upload):
    """Three complete checkpoints, and one whose upload was interrupted after the last of them."""
    for name in (BB, AA, CC):
        upload(out, name)
    out.write(f"{FOLDER}/{HALF}/model.safetensors", b"half")
    return out


def test_checkpoints_with_a_marker_are_listed_by_step(three):
    assert [entry.step for entry in checkpoints.list_checkpoints(three)] == [10, 20, 30]
    assert checkpoints.latest_checkpoint(three) == CheckpointEntry(CC, 30, False)


@pytest.mark.parametrize("marker", [b"", b'{"step": 40, "fin', b"[]", b'{"step": 40}'])
def test_checkpoint_with_a_broken_marker_is_not_complete(three, marker):
    three.write(f"{FOLDER}/{HALF}/DONE", marker)
    assert checkpoints.latest_checkpoint(three).step == 30
    three.write(f"{FOLDER}/{BB}/DONE", marker)
    assert checkpoints.remove_incomplete(three) == []


def test_interrupted_upload_stays_until_its_step_is_saved(three, upload):
    assert checkpoints.remove_incomplete(three) == []
    upload(three, "step-00000040-ee")
    assert checkpoints.remove_incomplete(three) == [HALF]
    assert three.folders(FOLDER) == [AA, BB, CC, "step-00000040-ee"]


def test_folders_without_any_marker_stay(out):
    out.write(f"{FOLDER}/{AA}/model.safetensors", b"weights")
    out.write(f"{FOLDER}/mine/notes.txt", b"of a user")
    assert checkpoints.remove_incomplete(out) == []
    assert checkpoints.remove_superseded(out, keep=1, values={}) == []
    assert out.folders(FOLDER) == ["mine", AA]


@pytest.mark.parametrize(
    ("values", "unjudged", "removed"),
    [
        ({10: 0.9, 20: 0.8, 30: 0.7}, (), [BB]),
        ({10: 0.9, 20: 0.9, 30: 0.7}, (), [AA]),
        ({10: 0.9}, (20,), []),
        ({10: 0.9}, (), [BB]),
        ({}, (), [AA, BB]),
    ],
)
def test_best_last_and_unjudged_checkpoints_stay(three, values, unjudged, removed):
    assert checkpoints.remove_superseded(three, keep=1, values=values, unjudged=unjudged) == removed
    assert HALF in three.folders(FOLDER), "an upload in progress looks like this"


def test_training_is_over_with_a_finished_checkpoint(out, upload):
    assert not checkpoints.is_trained(out)
    upload(out, AA)
    assert not checkpoints.is_trained(out)
    upload(out, BB, finished=True)
    assert checkpoints.is_trained(out)


class Learned:
    """What a writer saves."""

    rank, step_number = 0, 40

    def save(self, folder):
        (folder / "model.safetensors").write_bytes(b"weights")


@pytest.mark.parametrize("place", ["disk", "bucket"])
def test_checkpoint_is_written_fetched_and_replaced(place, out, request):
    if place == "bucket":
        out = Store.open(f"{request.getfixturevalue('s3').bucket('checkpoints')}/out")
    out.write(f"{FOLDER}/{HALF}/model.safetensors", b"half")
    writer = checkpoints.CheckpointWriter(out)
    name = writer.save(Learned(), finished=True)
    writer.wait()
    assert checkpoints.list_checkpoints(out) == [CheckpointEntry(name, 40, True)]
    with checkpoints.fetch_checkpoint(out, name) as folder:
        assert (folder / "model.safetensors").read_bytes() == b"weights"
    assert folder.exists() == (place == "disk"), "copies of remote files are temporary"
    assert checkpoints.remove_incomplete(out) == [HALF]
    assert checkpoints.remove_superseded(out, keep=1, values={}) == []
    assert out.folders(FOLDER) == [name]


@pytest.mark.parametrize("mask", [0o022, 0o027])
def test_checkpoint_has_the_mode_of_the_umask(mask, out, tmp_path):
    given = recipe("residual")
    learner = DetectorLearner(given, training_card(given), device="cpu", total_steps=1, rank=0)
    with umask(mask) as mode:
        checkpoints.CheckpointWriter(out).save(learner, finished=True)
    assert modes_in(tmp_path / "out") == {mode}


def test_training_of_an_older_version_is_rejected(out):
    checkpoints.refuse_older(out)
    out.write(f"ray/train/{AA}/model.safetensors", b"weights")
    with pytest.raises(ConfigError, match=r"checkpoints of Touchstone 0\.27 or older") as refused:
        checkpoints.refuse_older(out)
    assert "nothing was deleted" in refused.value.hint


def test_names_of_one_step_differ():
    assert len({checkpoints.make_checkpoint_name(5) for _ in range(100)}) == 100
    assert checkpoints.make_checkpoint_name(5).startswith("step-00000005-")
