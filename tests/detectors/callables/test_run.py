"""A run with a detector of another package, with and without a pool of its own: rows that it failed
on, masks, and a second command that leaves all as it is.
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
from tests.detectors.callables.strange import added, card_path

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(600)]
MODULE = """
import os, signal
import numpy as np

def by_width(images):
    if any(image.shape[1] == 101 for image in images):
        os.kill(os.getpid(), signal.SIGKILL)
    return [image.shape[1] / 100 for image in images]

def find(images):
    found = []
    for image in images:
        if image.shape[1] == 93:
            raise ValueError("not this one")
        found.append((image[..., 0] > 128).astype(np.float32) if image.shape[0] == 80 else np.zeros((64, 64), np.float32))
    return found
"""


def rows_of_run(folder, function, split, capsys):
    """Score the photos twice with `strange:FUNCTION`, and return the rows by file name."""
    card = card_path(folder, added(folder, function, name="strange").name)
    if split:
        card.write_text(card.read_text() + "own_pool: true\n")
    command = "score photos --detector strange --out run --limit 24 --set cluster.workers=2"
    assert main(command.split()) == 0
    assert main(command.split()) == 0
    capsys.readouterr()
    assert main(["results", "run", "--json"]) == 0
    rows = map(json.loads, capsys.readouterr().out.splitlines())
    return {row["uri"].rpartition("/")[2]: row for row in rows}


@pytest.mark.parametrize("split", [False, True])
def test_run_continues_after_the_detector_dies(own_place, monkeypatch, capsys, split):
    monkeypatch.chdir(own_place)
    (own_place / "photos").mkdir()
    for width in range(90, 114):
        Image.effect_noise((width, 80), 60).convert("RGB").save(f"photos/{width}.png")
    rows = rows_of_run(own_place, "by_width", split, capsys)
    assert Counter(row["status"] for row in rows.values()) == {"ok": 23, "detector_failed": 1}
    assert rows["101.png"]["status"] == "detector_failed"
    assert "its process died of SIGKILL" in rows["101.png"]["detail"]


def write_labelled_photos(folder):
    """13 photos, half of them with an altered part, and labels.csv with the masks of these."""
    rows = [{"uri": "photos/small.png", "label": "real", "mask_uri": ""}]
    for name in ("photos", "truths"):
        (folder / name).mkdir()
    Image.new("RGB", (50, 60)).save("photos/small.png")
    for width in range(90, 102):
        image, truth = Image.new("RGB", (width, 80), (9, 9, 9)), Image.new("L", (width, 80))
        if width % 2:
            image.paste((250, 9, 9), (0, 0, 40, 40))
            truth.paste(255, (0, 0, 40, 80 if width == 95 else 40))
            truth.save(f"truths/{width}.png")
        image.save(f"photos/{width}.png")
        label, mask = ("fake", f"truths/{width}.png") if width % 2 else ("real", "")
        rows.append({"uri": f"photos/{width}.png", "label": label, "mask_uri": mask})
    with open("labels.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.parametrize("split", [False, True])
def test_masks_of_a_run_are_kept_and_measured(own_place, monkeypatch, capsys, split):
    monkeypatch.chdir(own_place)
    write_labelled_photos(own_place)
    rows = rows_of_run(own_place, "find", split, capsys)
    assert rows["93.png"]["status"] == "detector_failed"
    assert "ValueError: not this one" in rows["93.png"]["detail"]
    assert rows["91.png"]["mask_peak"] == {"strange": 1.0}
    assert rows["91.png"]["mask_area"]["strange"] == pytest.approx(1600 / (91 * 80))
    assert rows["91.png"]["scores"]["strange"] == pytest.approx(36.74, abs=0.01)
    assert rows["90.png"]["scores"]["strange"] == pytest.approx(-36.74, abs=0.01)
    masks = pq.read_table("run/masks").to_pylist()
    assert len(masks) == 12, "a mask of each image but the failed one"
    sizes = {
        (row["width"], row["height"]): Image.open(io.BytesIO(row["png"])).size for row in masks
    }
    assert (sizes[91, 80], sizes[50, 60]) == ((91, 80), (64, 64))
    assert main(["evaluate", "run", "--labels", "labels.csv", "--out", "evaluated"]) == 0
    content = json.loads((own_place / "evaluated" / "metrics.json").read_text())
    result = EvaluationResult.from_dict(content)
    systems = result.meta.localization.systems
    assert {one.resolution for one in systems} >= {"network", "original"}
    for one in systems:
        metrics = result.metrics.select(one.system, scope=one.scope)
        assert one.images == 5, "local edits that were scored"
        # Half of what was altered was found in one of the five.
        assert metrics["pixel_f1"].value == pytest.approx((4 + 2 / 3) / 5)
        assert metrics["pixel_iou"].value == pytest.approx((4 + 1 / 2) / 5)
