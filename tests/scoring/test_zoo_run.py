"""Whole runs with many detectors: what is shared is counted, masks lie beside the rows, pools work
together.
"""

import io

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from benchmarks.photographs import write_photographs
from ray_app.archives import read_block, read_blocks
from ray_app.cli.main import main
from ray_app.runs import MASK_SCHEMA, RunDirectory
from ray_app.scoring.decide import decide_run
from tests.make.cards import write_ensemble
from tests.make.networks.tiny_internvl import write_tiny_internvl
from tests.make.runs import rows_of

GOOD = 5


@pytest.fixture
def photos(tmp_path):
    write_photographs(tmp_path / "photos", GOOD, size=(320, 240))
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"\xff\xd8\xff no image")
    return tmp_path / "photos"


def test_eight_detectors_share_work_and_give_scores_and_masks(
    score, photos, eight, tmp_path, capsys
):
    finished, rows = score(photos, ensemble=str(eight))
    session, out = finished.summary["session"], tmp_path / "run"
    run = RunDirectory.open(str(out))
    assert session["decoded"] == len(rows) == GOOD + 1
    batches = sum(-(-len(read_block(run.store, ref)) // 4) for ref in read_blocks(run.store, 0))
    backbones = session["backbones"]
    runs = backbones["openai-clip-vit-l14"]["runs"]
    assert 0 < runs <= batches
    assert backbones["openai-clip-vit-l14"] == {"asked": 2 * runs, "runs": runs}
    assert backbones["commonpool-clip-vit-l14"] == {"asked": runs, "runs": runs}

    good = {row["image_id"]: row for row in rows.values() if row["status"] == "ok"}
    [bad] = [row for row in rows.values() if row["status"] != "ok"]
    assert (bad["scores"], bad["mask_area"], bad["score"]) == (None, None, None)
    for file in (out / "masks" / "00000").iterdir():
        assert pq.read_schema(file).equals(MASK_SCHEMA)
    masks = {mask["image_id"]: mask for table in run.masks(0) for mask in table.to_pylist()}
    assert set(masks) == set(good)
    assert main(["runs", "masks", str(out), "--out", str(tmp_path / "masks")]) == 0
    assert f"{GOOD} masks in" in capsys.readouterr().out
    for image_id, row in good.items():
        assert len(row["scores"]) == 8
        assert all(score is not None for score in row["scores"].values())
        pixels = np.asarray(Image.open(io.BytesIO(masks[image_id]["png"])))
        assert (pixels.shape, pixels.dtype) == ((256, 256), np.uint8)
        assert row["mask_area"]["maskclip"] == pytest.approx(np.mean(pixels >= 128), abs=1e-6)
        assert row["mask_peak"]["maskclip"] == pytest.approx(pixels.max() / 255, abs=1e-6)
        with Image.open(tmp_path / "masks" / f"{image_id}-maskclip.png") as mask:
            assert (mask.size, mask.mode) == ((row["width"], row["height"]), "L")
    assert main(["runs", "masks", str(out), "--out", "s3://bucket/masks"]) == 2
    assert "must be a local folder" in capsys.readouterr().err


def test_detector_that_replies_in_words_has_a_pool_of_its_own(score, photos, tmp_path):
    card = write_tiny_internvl(tmp_path / "internvl")
    detectors = (str(card), "touchstone-tiny")
    finished, rows = score(photos, detectors=detectors, precision="fp32")
    session = finished.summary["session"]
    assert (session["layout"], session["workers"]) == ("split", 3)
    for row in rows.values():
        if row["status"] != "ok":
            continue
        assert row["scores"]["touchstone-tiny"] is not None
        assert row["scores"]["tiny-internvl"] in (1.0, -1.0, None)
        if row["scores"]["tiny-internvl"] is None:
            assert (row["verdict"], row["verdict_reason"]) == ("abstain", "no_score")
            reply = f"tiny-internvl: no score (it replied {row['replies']['tiny-internvl']!r})"
            assert reply in row["verdict_detail"]
    other = str(write_ensemble(tmp_path / "other.yaml", detectors, rule="max"))
    decide_run(str(tmp_path / "run"), other, str(tmp_path / "decided"))
    for uri, row in rows_of(tmp_path / "decided").items():
        if row["scores"] is None or row["scores"]["tiny-internvl"] is None:
            assert row["verdict_detail"] == rows[uri]["verdict_detail"]
        assert row.get("replies") == rows[uri].get("replies")
