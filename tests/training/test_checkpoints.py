"""Which checkpoints count: Ray Train's own list, mended where a kill tore it; what is in none goes."""

import json

import pytest

from ray_app.storage import Store
from ray_app.training import checkpoints
from ray_app.training.checkpoints import CheckpointEntry

LIST = "ray/train/checkpoint_manager_snapshot.json"


def listed(*checkpoints):
    """The list as Ray Train 2.60 writes it, of (name, metrics)."""
    results = [{"version": 0, "checkpoint_dir_name": name, "metrics": metrics} for name, metrics in checkpoints]
    return json.dumps({"ray_version": "2.60.0", "checkpoint_results": results, "latest_checkpoint_result": results[-1]}).encode()


@pytest.fixture(params=["disk", "bucket"])
def out(request, tmp_path):
    if request.param == "disk":
        return Store.open(str(tmp_path))
    server = request.getfixturevalue("s3")
    return Store.open(f"{server.bucket(f'checkpoints-{tmp_path.name}'.lower().replace('_', '-'))}/out")


@pytest.fixture
def two(out):
    """Two checkpoints in the list, the better first, and one that was uploaded and never committed."""
    for name in ("step-00000010-aa", "step-00000020-bb", "step-00000030-cc"):
        out.write(f"ray/train/{name}/model.safetensors", name.encode())
    out.write(LIST, listed(("step-00000020-bb", {"step": 20, "auc": 0.9}), ("step-00000010-aa", {"step": 10, "auc": 0.8})))
    return out


def test_orphans_go_and_the_list_stays(two):
    assert checkpoints.remove_orphans(two) == ["step-00000030-cc"]
    assert two.folders("ray/train") == ["step-00000010-aa", "step-00000020-bb"]
    assert [one.step for one in checkpoints.kept(two)] == [10, 20]
    assert checkpoints.kept(two)[1] == CheckpointEntry("step-00000020-bb", 20, {"step": 20, "auc": 0.9})


def test_a_checkpoint_is_fetched_as_a_folder(two):
    with checkpoints.fetched(two, "step-00000010-aa") as folder:
        assert (folder / "model.safetensors").read_bytes() == b"step-00000010-aa"
    assert folder.exists() == ("://" not in two.url), "copies of what is elsewhere go again"


def test_a_torn_list_is_mended_by_its_copy(two):
    checkpoints.copy_list(two)
    whole = two.read(LIST)
    two.write(LIST, whole[: len(whole) // 2])
    checkpoints.copy_list(two)  # half a list is no copy
    assert checkpoints.kept(two) == []
    checkpoints.mend_list(two)
    assert two.read(LIST) == whole
    assert len(checkpoints.kept(two)) == 2


def test_a_torn_list_without_a_copy_begins_anew(two):
    two.write(LIST, b'{"checkpoint_res')
    checkpoints.mend_list(two)
    assert not two.exists(LIST)
    assert len(checkpoints.remove_orphans(two)) == 3


def test_a_training_is_over_when_its_last_checkpoint_says_so(out):
    assert not checkpoints.is_trained(out)
    out.write(LIST, listed(("step-00000010-aa", {"step": 10, "finished": False})))
    assert not checkpoints.is_trained(out)
    out.write(LIST, listed(("step-00000010-aa", {"step": 10, "finished": False}), ("step-00000020-bb", {"step": 20, "finished": True})))
    assert checkpoints.is_trained(out)


def test_no_name_comes_twice():
    assert len({checkpoints.new_name(5) for _ in range(100)}) == 100
    assert checkpoints.new_name(5).startswith("step-00000005-")
