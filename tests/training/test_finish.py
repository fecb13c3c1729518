"""Where a detector is put for others: a folder, a bucket of a real server, a repository of models
on a server that speaks as the hub does.

The hub is imitated for repositories and regular files; how its client sends large ones, by Xet or
LFS, is not.
"""

import io

import pytest

from ray_app.errors import ConfigError, StorageError
from ray_app.storage import Store
from ray_app.training.export import push
from ray_app.training.progress import TrainingProgress
from tests.training.model_hub import ModelHub

FILES = {
    "model.safetensors": b"w" * 3000,
    "metrics.json": b"{}",
    "report.html": b"<html>",
    "card.yaml": b"name: x\n",
}
OTHERS = {
    "train.json": b"{}",
    "metrics.jsonl": b"{}",
    "ray/checkpoint/model.safetensors": b"c",
    "scores/test.parquet": b"s",
}


@pytest.fixture
def folder(tmp_path):
    for name, data in {**FILES, **OTHERS}.items():
        path = tmp_path / "out" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return tmp_path / "out"


@pytest.fixture
def hub(monkeypatch):
    with ModelHub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", server.token)
        yield server


def files_in(store):
    return {name: store.read(name) for name in store.names("")}


@pytest.mark.parametrize("place", ["folder", "bucket", "memory"])
def test_any_place_gets_what_makes_the_detector_and_nothing_else(folder, tmp_path, hub, s3, place):
    target = {
        "folder": str(tmp_path / "there"),
        "bucket": f"{s3.bucket('pushed-detectors')}/mine",
        "memory": "memory://pushed",
    }[place]
    assert push(folder, target) == target
    store = Store.open(target)
    assert files_in(store) == FILES
    assert store.folders("") == []
    push(target, str(tmp_path / "back"))
    assert files_in(Store.open(str(tmp_path / "back"))) == FILES
    push(target, "hf://someone/detector")
    assert hub.repositories["someone/detector"] == FILES


def test_a_repository_is_made_private_and_filled_in_one_commit_and_stays_as_open_as_it_is(
    folder, hub
):
    told = push(folder, "hf://someone/detector")
    assert hub.repositories == {"someone/detector": FILES}
    assert hub.private == {"someone/detector": True}
    assert [sorted(commit["files"]) for commit in hub.commits] == [sorted(FILES)]
    assert told.startswith(f"{hub.url}/someone/detector/commit/")
    hub.repositories["someone/detector"] = {"README.md": b"of its owner"}
    hub.private["someone/detector"] = False
    push(folder, "hf://someone/detector")
    assert hub.repositories["someone/detector"] == {"README.md": b"of its owner", **FILES}
    assert hub.private == {"someone/detector": False}


def test_a_token_that_may_not_write_is_said(folder, hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(StorageError, match=r"cannot push to hf://someone/detector: .*401") as told:
        push(folder, "hf://someone/detector")
    assert "HF_TOKEN" in told.value.hint
    assert hub.repositories == {}


@pytest.mark.parametrize(
    "target", ["hf://detector", "hf://datasets/someone/detector", "hf://someone/detector@main"]
)
def test_what_is_no_repository_of_models_is_refused(folder, hub, target):
    with pytest.raises(ConfigError, match="not a repository of models"):
        push(folder, target)
    assert hub.repositories == {}


def test_a_folder_without_a_card_is_not_pushed(folder, tmp_path):
    (folder / "card.yaml").unlink()
    with pytest.raises(ConfigError, match=r"no card\.yaml"):
        push(folder, str(tmp_path / "there"))
    assert not (tmp_path / "there").exists()


def test_the_line_says_step_loss_rate_and_what_is_left_since_it_went_on():
    now, stream = [0.0], io.StringIO()
    progress = TrainingProgress(100, stream=stream, clock=lambda: now[0])
    assert progress.line(0.0) == "train  starting workers"
    progress.show({"step": 49, "loss": 0.7, "rate": 1e-3, "images_per_s": 50.0})
    now[0] = 10.0
    judged = {"judged": "auc 0.9100 at 55"}
    progress.show({"step": 59, "loss": 0.5, "rate": 1e-3, "images_per_s": 80.0, **judged})
    assert (
        progress.line(10.0)
        == "train  step 60/100 (60%)  loss 0.5000  rate 1.00e-03  80.0 img/s  ETA 40.0 s  auc 0.9100 at 55"
    )
