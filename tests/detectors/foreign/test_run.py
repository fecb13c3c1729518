"""A run with a detector of another package: fused and split, with rows that it failed on, and resumed."""

import json
from collections import Counter

import pytest
from PIL import Image

from ray_app.cli.main import main

MODULE = """
import os, signal
def by_width(images):
    if any(image.shape[1] == 101 for image in images):
        os.kill(os.getpid(), signal.SIGKILL)
    return [image.shape[1] / 100 for image in images]
"""


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(600)
@pytest.mark.parametrize("split", [False, True])
def test_a_run_goes_on_where_the_detector_dies(tmp_path, monkeypatch, capsys, split):
    monkeypatch.setenv("TOUCHSTONE_CONFIG", str(tmp_path / "config" / "config.yaml"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "strange.py").write_text(MODULE)
    photos = tmp_path / "photos"
    photos.mkdir()
    for width in range(90, 114):
        Image.effect_noise((width, 80), 60).convert("RGB").save(photos / f"{width}.png")
    assert main(["detectors", "add", "callable:strange:by_width", "--licence", "own", "--as", "strange"]) == 0
    card = tmp_path / "config" / "detectors" / "strange.yaml"
    if split:
        card.write_text(card.read_text() + "own_pool: true\n")
    command = ["score", "photos", "--detector", "strange", "--out", "run", "--set", "cluster.workers=2"]
    assert main([*command, "--limit", "24"]) == 0
    assert main([*command, "--limit", "24"]) == 0
    capsys.readouterr()
    assert main(["results", "run", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert Counter(row["status"] for row in rows) == {"ok": 23, "detector_failed": 1}
    failed = next(row for row in rows if row["status"] == "detector_failed")
    assert failed["uri"].endswith("101.png")
    assert "its process died of SIGKILL" in failed["detail"]
