"""A run with a detector of another package: fused and split, with rows that it failed on, and
resumed.
"""

import csv
import io
import json
from collections import Counter

import pyarrow.parquet as pq
import pytest
from PIL import Image

from ray_app.cli.main import main
from ray_app.reports.evaluation.result import EvaluationResult

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
    assert (
        main(
            ["detectors", "add", "callable:strange:by_width", "--licence", "own", "--as", "strange"]
        )
        == 0
    )
    card = tmp_path / "config" / "detectors" / "strange.yaml"
    if split:
        card.write_text(card.read_text() + "own_pool: true\n")
    command = [
        "score",
        "photos",
        "--detector",
        "strange",
        "--out",
        "run",
        "--set",
        "cluster.workers=2",
    ]
    assert main([*command, "--limit", "24"]) == 0
    assert main([*command, "--limit", "24"]) == 0
    capsys.readouterr()
    assert main(["results", "run", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert Counter(row["status"] for row in rows) == {"ok": 23, "detector_failed": 1}
    failed = next(row for row in rows if row["status"] == "detector_failed")
    assert failed["uri"].endswith("101.png")
    assert "its process died of SIGKILL" in failed["detail"]


LOCALIZER = """
import numpy as np
def find(images):
    found = []
    for image in images:
        if image.shape[1] == 93:
            raise ValueError("not this one")
        found.append((image[..., 0] > 128).astype(np.float32) if image.shape[0] == 80 else np.zeros((64, 64), np.float32))
    return found
"""


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(600)
@pytest.mark.parametrize("split", [False, True])
def test_masks_of_a_run_are_kept_and_measured(tmp_path, monkeypatch, capsys, split):
    """Alone by their largest value; at the image's size and as a square; a failed image has none; a
    second command leaves all as it is.
    """
    monkeypatch.setenv("TOUCHSTONE_CONFIG", str(tmp_path / "config" / "config.yaml"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "strange.py").write_text(LOCALIZER)
    rows = []
    for folder in ("photos", "truths"):
        (tmp_path / folder).mkdir()
    for width in range(90, 102):
        picture, truth = Image.new("RGB", (width, 80), (9, 9, 9)), Image.new("L", (width, 80))
        if width % 2:
            picture.paste((250, 9, 9), (0, 0, 40, 40))
            truth.paste(255, (0, 0, 40, 80 if width == 95 else 40))
            truth.save(f"truths/{width}.png")
        picture.save(f"photos/{width}.png")
        rows.append(
            {
                "uri": f"photos/{width}.png",
                "label": ("real", "fake")[width % 2],
                "mask_uri": f"truths/{width}.png" if width % 2 else "",
            }
        )
    Image.new("RGB", (50, 60)).save("photos/small.png")
    rows.append({"uri": "photos/small.png", "label": "real", "mask_uri": ""})
    with open("labels.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    assert (
        main(["detectors", "add", "callable:strange:find", "--licence", "own", "--as", "strange"])
        == 0
    )
    card = tmp_path / "config" / "detectors" / "strange.yaml"
    if split:
        card.write_text(card.read_text() + "own_pool: true\n")
    command = [
        "score",
        "photos",
        "--detector",
        "strange",
        "--out",
        "run",
        "--set",
        "cluster.workers=2",
    ]
    assert main(command) == 0
    assert main(command) == 0
    capsys.readouterr()
    assert main(["results", "run", "--json"]) == 0
    found = {
        row["uri"].rpartition("/")[2]: row
        for row in map(json.loads, capsys.readouterr().out.splitlines())
    }
    assert found["93.png"]["status"] == "detector_failed"
    assert "ValueError: not this one" in found["93.png"]["detail"]
    assert found["91.png"]["mask_peak"] == {"strange": 1.0}
    assert found["91.png"]["mask_area"]["strange"] == pytest.approx(1600 / (91 * 80))
    assert found["91.png"]["scores"]["strange"] == pytest.approx(36.74, abs=0.01)
    assert found["90.png"]["scores"]["strange"] == pytest.approx(-36.74, abs=0.01)
    masks = pq.read_table("run/masks").to_pylist()
    assert len(masks) == 12, "one of each image but the failed one"
    sizes = {
        (one["width"], one["height"]): Image.open(io.BytesIO(one["png"])).size for one in masks
    }
    assert (sizes[91, 80], sizes[50, 60]) == ((91, 80), (64, 64))
    assert main(["evaluate", "run", "--labels", "labels.csv", "--out", "evaluated"]) == 0
    content = json.loads((tmp_path / "evaluated" / "metrics.json").read_text())
    result = EvaluationResult.from_dict(content)
    systems = result.meta.localization.systems
    assert {one.resolution for one in systems} >= {"network", "original"}
    for one in systems:
        metrics = result.metrics.select(one.system, scope=one.scope)
        figures = {name: metric.value for name, metric in metrics.items()}
        assert one.images == 5, "local edits that were scored"
        assert figures["pixel_f1"] == pytest.approx((4 + 2 / 3) / 5), (
            "of one, half of what was altered was found"
        )
        assert figures["pixel_iou"] == pytest.approx((4 + 1 / 2) / 5)
