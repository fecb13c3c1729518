"""Push a detector to a folder, a bucket, and a repository on a server that speaks as the hub does.

How the client of the hub sends large files, by Xet or LFS, is not imitated.
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
    out = Store.open(str(tmp_path / "out"))
    for name, data in {**FILES, **OTHERS}.items():
        out.write(name, data)
    return tmp_path / "out"


@pytest.fixture
def hub(monkeypatch):
    with ModelHub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", server.token)
        yield server


def assert_pushed(target):
    store = Store.open(target)
    assert {name: store.read(name) for name in store.names("")} == FILES
    assert store.folders("") == []


def test_push_copies_the_detector_to_any_storage(folder, tmp_path, hub, s3):
    there, bucket = str(tmp_path / "there"), f"{s3.bucket('pushed-detectors')}/mine"
    for source, target in ((folder, there), (there, bucket), (bucket, "memory://pushed")):
        assert push(source, target) == target
        assert_pushed(target)
    push(bucket, "hf://someone/detector")
    assert hub.repositories["someone/detector"] == FILES


def test_push_creates_a_private_repository_in_one_commit(folder, hub):
    told = push(folder, "hf://someone/detector")
    assert hub.repositories == {"someone/detector": FILES}
    assert hub.private == {"someone/detector": True}
    assert [sorted(commit["files"]) for commit in hub.commits] == [sorted(FILES)]
    assert told.startswith(f"{hub.url}/someone/detector/commit/")


def test_push_keeps_a_public_repository_public(folder, hub):
    hub.repositories["someone/detector"] = {"README.md": b"of its owner"}
    hub.private["someone/detector"] = False
    push(folder, "hf://someone/detector")
    assert hub.repositories["someone/detector"] == {"README.md": b"of its owner", **FILES}
    assert hub.private == {"someone/detector": False}


def test_push_with_a_wrong_token_names_the_variable(folder, hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(StorageError, match=r"cannot push to hf://someone/detector: .*401") as told:
        push(folder, "hf://someone/detector")
    assert "HF_TOKEN" in told.value.hint
    assert hub.repositories == {}


@pytest.mark.parametrize(
    "target", ["hf://detector", "hf://datasets/someone/detector", "hf://someone/detector@main"]
)
def test_push_rejects_what_is_not_a_repository(folder, hub, target):
    with pytest.raises(ConfigError, match="not a repository of models"):
        push(folder, target)
    assert hub.repositories == {}


def test_push_rejects_a_folder_without_a_card(folder, tmp_path):
    (folder / "card.yaml").unlink()
    with pytest.raises(ConfigError, match=r"nothing to push, because none of card\.yaml"):
        push(folder, str(tmp_path / "there"))
    assert not (tmp_path / "there").exists()


def test_progress_line_estimates_from_its_first_step():
    now, stream = [0.0], io.StringIO()
    progress = TrainingProgress(100, stream=stream, clock=lambda: now[0])
    assert progress.line(0.0) == "train  starting workers"
    progress.show({"step": 49, "loss": 0.7, "rate": 1e-3, "images_per_s": 50.0})
    now[0] = 10.0
    facts = {"step": 59, "loss": 0.5, "rate": 1e-3, "images_per_s": 80.0}
    progress.show(facts | {"judged": "auc 0.9100 at 55"})
    expected = "train  step 60/100 (60%)  loss 0.5000  rate 1.00e-03  80.0 img/s  ETA 40.0 s"
    assert progress.line(10.0) == f"{expected}  auc 0.9100 at 55"
