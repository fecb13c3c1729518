"""What a command leaves behind that ends with exit 2: nothing, and no Ray was started for it."""

import pytest
import ray
import torch
import yaml
from PIL import Image

from ray_app.cli.main import main
from ray_app.config import config_root
from ray_app.errors import ConfigError, ExitCode
from ray_app.runs import RunDirectory
from ray_app.scoring import ScoreConfig
from ray_app.scoring.run import score_archive
from tests.scoring.older import unpack
from tests.scoring.stages import without_ray


@pytest.fixture(autouse=True)
def no_ray(monkeypatch):
    monkeypatch.setattr(ray, "init", lambda *_, **__: pytest.fail("Ray was started"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Labelled pictures, lists that are sound, empty or broken behind their beginning, and recipes."""
    folder = tmp_path_factory.mktemp("refused")
    for kind in ("real", "fake"):
        (folder / "photos" / kind).mkdir(parents=True)
        for number in range(3):
            Image.effect_noise((96, 80), 40 + number).convert("RGB").save(
                folder / "photos" / kind / f"{number}.png"
            )
    paths = [f"{folder}/photos/real/{number % 3}.png" for number in range(3)]
    (folder / "labels.csv").write_text("uri,label\n" + "".join(f"{path},real\n" for path in paths))
    (folder / "broken.csv").write_text(
        "uri\n" + f"{folder}/{'x' * 1000}.png\n" * 2000 + "one,two,three\n"
    )
    quick = yaml.safe_load((config_root() / "train" / "quick.yaml").read_text())
    for name, at in (("good", ["photos"]), ("typo", ["photos", "fotos"])):
        data = quick["data"] | {
            "train": [{"at": f"{folder}/{one}", "layout": "folders"} for one in at]
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(quick | {"data": data}))
    return folder


REFUSED = {
    "score a second source that is not there": ("score", "{}/photos", "{}/fotos"),
    "score a list that is not there": ("score", "{}/photos", "list::{}/list.csv"),
    "score with an unknown ensemble": ("score", "{}/photos", "--ensemble", "nobody"),
    "retry where there is nothing": ("score", "{}/photos", "--retry", "corrupt_image"),
    "evaluate by labels that are not there": ("evaluate", "{}/photos", "--labels", "{}/none.csv"),
    "train on a second source that is not there": ("train", "{}/typo.yaml"),
    "pack a second source that is not there": ("pack", "{}/photos", "{}/fotos"),
    "pack a list that breaks late": ("pack", "{}/broken.csv"),
    "collect a column that is not there": ("collect", "{}/labels.csv", "--set", "url=nothing"),
    "index a second source that is not there": ("index", "{}/photos", "{}/fotos", "--layout", "folders"),
}  # fmt: skip


@pytest.mark.parametrize("words", REFUSED.values(), ids=REFUSED)
def test_a_refused_command_leaves_no_directory(words, place, tmp_path, capsys):
    out = tmp_path / "out"
    assert main([*(word.format(place) for word in words), "--out", str(out)]) == ExitCode.USAGE
    assert capsys.readouterr().err.strip()
    assert not [path for path in out.rglob("*") if path.is_file()]
    assert not out.exists() or words[0] in ("pack", "index")  # there the listing itself found it
    if words[0] == "pack":
        assert main(["pack", f"{place}/photos", "--out", str(out)]) == ExitCode.DONE, (
            "a corrected command may have the directory"
        )


def test_the_gpus_of_a_cluster_are_refused_on_one_machine_without_any(
    place, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # as in a process of its own
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert (
        main(
            [
                "score",
                f"{place}/photos",
                "--config",
                "overnight",
                "--ensemble",
                "tiny",
                "--out",
                str(tmp_path / "out"),
            ]
        )
        == ExitCode.USAGE
    )
    assert "--set cluster.gpus=null" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.fixture
def older(tmp_path):
    """A run of 0.20.0, half done, on this disk; its files and what is in them."""
    return unpack("half", tmp_path)


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "words",
    [
        ("score", "s3://older/photos", "--set", "batch_slots=8"),
        ("score", "s3://older/fotos"),
        ("pack", "{}/photos"),
        ("train", "{}/good.yaml"),
        ("collect", "{}/labels.csv"),
    ],
)
def test_a_directory_of_another_command_stays_as_it_is(words, older, place, capsys):
    before = contents(older)
    assert main([*(word.format(place) for word in words), "--out", str(older)]) == ExitCode.USAGE
    assert str(older) in capsys.readouterr().err
    assert contents(older) == before


@pytest.mark.parametrize(
    "name", ["pack.json", "index.json", "collect.json", "generate.json", "train.json"]
)
def test_a_run_is_not_begun_in_the_directory_of_another_command(name, place, tmp_path, capsys):
    (tmp_path / name).write_text("{}")
    assert main(["score", f"{place}/photos", "--out", str(tmp_path)]) == ExitCode.USAGE
    assert name in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_listing_that_fails_late_gives_the_run_up(place, tmp_path, monkeypatch):
    config = ScoreConfig(
        source=(f"{place}/broken.csv",), ensemble="tiny", out=str(tmp_path / "out")
    )
    with without_ray(), pytest.raises(ConfigError, match=r"broken\.csv"):
        score_archive(config)
    assert not contents(tmp_path / "out")
    RunDirectory.open(config.out).check_free()
