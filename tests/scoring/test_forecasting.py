"""What `touchstone plan` says before a run, against what the run then does."""

import pytest

from ray_app.cli.main import main
from ray_app.errors import ConfigError
from ray_app.scoring import ScoreConfig
from ray_app.scoring.forecasting import forecast


@pytest.fixture(scope="module")
def plan_of_eight(sample_archive, eight):
    return forecast(ScoreConfig(source=(str(sample_archive),), ensemble=str(eight)), probe=4, price_per_hour=3.0)


def test_members_and_bytes_are_those_of_the_archive(plan_of_eight, sample_archive):
    files = [path for path in sample_archive.rglob("*") if path.is_file()]
    assert plan_of_eight["members"] == len(files)
    assert plan_of_eight["size_bytes"] == sum(path.stat().st_size for path in files)


def test_it_names_what_is_shared(plan_of_eight):
    users = [tensor["detectors"] for tensor in plan_of_eight["tensors"]]
    assert ["unifd", "own-head"] in users
    assert len(users) == 7
    assert {"name": "openai-clip-vit-l14", "runs_once_for": [["unifd", "own-head"]]} in plan_of_eight["backbones"]


def test_the_probe_says_how_long_and_how_much(plan_of_eight):
    probe = plan_of_eight["probe"]
    assert probe["images"] == 4
    assert probe["seconds_per_image"] > 0
    assert probe["hours"] == pytest.approx(plan_of_eight["members"] / probe["images_per_s"] / 3600, rel=0.1, abs=1e-4)
    assert probe["cost"] == pytest.approx(3.0 * probe["hours"], abs=0.01)


def test_the_command_prints_it(sample_archive, eight, capsys):
    assert main(["plan", str(sample_archive), "--ensemble", str(eight), "--probe", "0", "--set", "cluster.cpus=4"]) == 0
    printed = capsys.readouterr().out
    assert "openai-clip-vit-l14 runs once for unifd and own-head" in printed
    assert "4 workers, each decodes and scores" in printed
    assert "own size for corvi2023" in printed


def test_nothing_to_plan_for_is_said():
    with pytest.raises(ConfigError, match="nothing to plan for"):
        forecast(ScoreConfig())
