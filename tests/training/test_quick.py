"""The quick recipe, whole: from nothing to a card that scores."""

import json

import pytest

from ray_app.cli.main import main
from ray_app.datasets.simulation.archive import build_sample_archive

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(1200)]


def test_from_simulated_pictures_to_a_card_that_scores(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    build_sample_archive(tmp_path / "demo-run" / "archive", files=12)
    assert main(["train", "quick", "--out", "mine"]) == 0
    facts = json.loads((tmp_path / "mine" / "metrics.json").read_text())
    seen, unseen = (set(facts["data"]["splits"][split]["generators"]) for split in ("train", "test"))
    assert not seen & unseen
    assert facts["test"]["auc_interval"][0] >= 0.95
    assert main(["score", "demo-run/archive", "--detector", "mine/card.yaml", "--out", "run-of-mine"]) == 0
    assert json.loads((tmp_path / "run-of-mine" / "summary.json").read_text())["members"] == 12
