"""The recipe of `touchstone-tiny`, with an eighth of its images and a fifteenth of its steps."""

import json
from pathlib import Path

import pytest

from ray_app.cli.main import main
from tests.simulation.archive import SimulatedSet, build_labelled_set

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(1200)]


def test_recipe_of_touchstone_tiny_finds_unseen_decoders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pairs = {"train": 300, "validation": 80, "test": 200}
    build_labelled_set(tmp_path, SimulatedSet(pairs=pairs, histories={"train": 2}))
    recipe = str(Path(__file__).with_name("touchstone-tiny.yaml"))
    settings = ["--set", "loop.epochs=6", "--set", "validation.every=113"]
    assert main(["train", recipe, "--out", "mine", *settings]) == 0
    metrics = json.loads((tmp_path / "mine" / "metrics.json").read_text())
    splits = metrics["data"]["splits"]
    assert not set(splits["train"]["generators"]) & set(splits["test"]["generators"])
    assert metrics["test"]["auc_interval"][0] >= 0.95
