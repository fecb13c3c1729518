"""The recipe `quick`: from the shipped sample archive to a card that scores and serves."""

import json

import pytest
import yaml

from ray_app.cli.main import main
from ray_app.config import config_root
from tests.serving.served import served

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(900)]


def test_quick_fits_a_head_that_scores_and_serves(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "quick", "--out", "mine"]) == 0
    metrics = json.loads((tmp_path / "mine" / "metrics.json").read_text())
    splits = metrics["data"]["splits"]
    assert not set(splits["train"]["generators"]) & set(splits["test"]["generators"])
    assert metrics["probe"]["images"] >= 40
    assert metrics["test"]["auc"] > 0.5
    sample = str(config_root() / "sample" / "archive")
    assert main(["score", sample, "--detector", "mine/card.yaml", "--out", "run"]) == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["members"] == 86
    members = [{"detector": str(tmp_path / "mine" / "card.yaml")}]
    ensemble = {"name": "mine", "title": "Mine", "members": members, "rule": "mean-logit"}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(ensemble))
    with served("--ensemble", str(tmp_path / "mine.yaml")) as endpoint:
        assert endpoint.score() == 200
