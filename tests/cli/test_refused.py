"""A command that exits with 2 leaves no directory, and starts no Ray."""

import datasets
import pytest
import ray
import torch
import yaml
from PIL import Image

from ray_app.config import config_root
from ray_app.errors import ConfigError
from ray_app.runs import RunDirectory
from ray_app.scoring import ScoreConfig
from ray_app.scoring.run import score_archive
from tests.make.stages import without_ray
from tests.scoring.older import unpack


@pytest.fixture(autouse=True)
def no_ray(monkeypatch):
    monkeypatch.setattr(ray, "init", lambda *_, **__: pytest.fail("Ray was started"))
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Labelled images, recipes, and lists of which one is broken at its end."""
    folder = tmp_path_factory.mktemp("refused")
    for kind in ("real", "fake"):
        (folder / "photos" / kind).mkdir(parents=True)
        for number in range(3):
            image = Image.effect_noise((96, 80), 40 + number).convert("RGB")
            image.save(folder / "photos" / kind / f"{number}.png")
    (folder / "labels.csv").write_text(f"uri,label\n{folder}/photos/real/0.png,real\n")
    row = f"{folder}/{'x' * 1000}.png\n"
    (folder / "broken.csv").write_text("uri\n" + row * 2000 + "one,two,three\n")
    quick = yaml.safe_load((config_root() / "train" / "quick.yaml").read_text())
    for name, sources in (("good", ["photos"]), ("typo", ["photos", "fotos"])):
        train = [{"at": f"{folder}/{source}", "layout": "folders"} for source in sources]
        recipe = quick | {"data": quick["data"] | {"train": train}}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
    return folder


@pytest.mark.parametrize(
    "line",
    [
        "score photos fotos",
        "score photos list::list.csv",
        "score photos --ensemble nobody",
        "score photos --retry corrupt_image",
        "evaluate photos --labels none.csv",
        "train typo.yaml",
        "pack photos fotos",
        "pack broken.csv",
        "collect labels.csv --set url=nothing",
        "index photos fotos --layout folders",
    ],
)
def test_refused_command_leaves_no_directory(line, folder, tmp_path, monkeypatch, touchstone):
    monkeypatch.chdir(folder)
    out = tmp_path / "out"
    ended = touchstone(f"{line} --out {out}")
    assert ended.code == 2
    assert ended.err.strip()
    assert not [path for path in out.rglob("*") if path.is_file()]
    # The listing itself finds a mistake of these two.
    assert not out.exists() or line.startswith(("pack", "index"))
    if line.startswith("pack"):  # A corrected command may have the directory.
        assert touchstone(f"pack photos --out {out}").code == 0


def test_cluster_gpus_are_refused_on_a_machine_without(folder, tmp_path, touchstone):
    out = tmp_path / "out"
    ended = touchstone(f"score {folder}/photos --config overnight --ensemble tiny --out {out}")
    assert ended.code == 2
    assert "--set cluster.gpus=null" in ended.err
    assert not out.exists()


@pytest.fixture
def older(tmp_path):
    """A run of 0.20.0, half done, on this disk."""
    return unpack("half", tmp_path)


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "line",
    [
        "score s3://older/photos --set batch_slots=8",
        "score s3://older/fotos",
        "pack photos",
        "train good.yaml",
        "collect labels.csv",
    ],
)
def test_directory_of_another_command_stays(line, older, folder, monkeypatch, touchstone):
    monkeypatch.chdir(folder)
    before = contents(older)
    ended = touchstone(f"{line} --out {older}")
    assert ended.code == 2
    assert str(older) in ended.err
    assert contents(older) == before


def test_run_is_not_started_in_another_directory(folder, tmp_path, touchstone):
    for command in ("pack", "index", "collect", "generate", "train"):
        out = tmp_path / command
        out.mkdir()
        (out / f"{command}.json").write_text("{}")
        ended = touchstone(f"score {folder}/photos --out {out}")
        assert ended.code == 2, command
        assert f"{command}.json" in ended.err
        assert [path.name for path in out.iterdir()] == [f"{command}.json"]


def test_listing_that_fails_late_gives_the_run_up(folder, tmp_path):
    config = ScoreConfig(
        source=(f"{folder}/broken.csv",), ensemble="tiny", out=str(tmp_path / "out")
    )
    with without_ray(), pytest.raises(ConfigError, match=r"broken\.csv"):
        score_archive(config)
    assert not contents(tmp_path / "out")
    RunDirectory.open(config.out).check_free()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folders that `save_to_disk` of `datasets` wrote: one split, and several."""
    folder = tmp_path_factory.mktemp("saved")
    split = datasets.Dataset.from_dict({"label": [0, 1]})
    split.save_to_disk(folder / "split")
    datasets.DatasetDict(train=split, test=split).save_to_disk(folder / "splits")
    return folder


@pytest.mark.parametrize("source", ["split", "splits", "split/data-00000-of-00001.arrow"])
@pytest.mark.parametrize(
    "line",
    [
        "score {} --ensemble tiny --out {}/../run",
        "score {} --endpoint http://localhost:9",
        "plan {} --ensemble tiny",
        "check {} --ensemble tiny",
        "data index {} --layout columns --out {}/../index",
    ],
)
def test_saved_dataset_is_refused_with_a_hint(line, source, saved, touchstone):
    ended = touchstone(line.format(saved / source, saved))
    assert ended.code == 2
    assert "saved by Dataset.save_to_disk" in ended.err
    assert "to_parquet" in ended.err
