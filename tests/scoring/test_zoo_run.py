"""Whole runs with many detectors: what is shared is counted, masks lie beside the rows, pools work together."""

import io
import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from ray_app.archives import iter_blocks, read_block
from ray_app.cli.main import main
from ray_app.runs import MASK_SCHEMA, RunDirectory
from ray_app.scoring.rescore import decide_run
from tests.detectors.tiny_internvl import write_tiny_internvl
from tests.scoring.conftest import rows_of, score_here

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def run_of_eight(sample_archive, eight, tmp_path_factory):
    out = tmp_path_factory.mktemp("eight-run") / "run"
    return out, score_here(out, sample_archive, ensemble=str(eight))[1]


def test_every_image_is_decoded_once_and_a_shared_backbone_runs_once(run_of_eight):
    out, rows = run_of_eight
    session = json.loads((out / "summary.json").read_text())["session"]
    assert session["decoded"] == len(rows)
    shared, alone = (session["backbones"][name] for name in ("openai-clip-vit-l14", "commonpool-clip-vit-l14"))
    batches = sum(-(-len(block) // 4) for block in blocks_of(out))
    assert shared == {"asked": 2 * shared["runs"], "runs": shared["runs"]}
    assert 0 < shared["runs"] <= batches
    assert alone == {"asked": shared["runs"], "runs": shared["runs"]}
    assert 2**28 < session["peak_worker_bytes"] < 2**32


def blocks_of(out):
    """The rows of each block, as its masks lie in files of their own."""
    run = RunDirectory.open(str(out))
    return [list(read_block(run.store, ref).to_pylist()) for ref in iter_blocks(run.store, 0)]


def test_every_good_row_has_eight_scores_and_a_mask(run_of_eight):
    out, rows = run_of_eight
    good = {row["image_id"]: row for row in rows.values() if row["status"] == "ok"}
    assert len(good) > 15
    masks = {mask["image_id"]: mask for table in RunDirectory.open(str(out)).masks(0) for mask in table.to_pylist()}
    assert set(masks) == set(good)
    for image_id, row in good.items():
        assert len(row["scores"]) == 8
        assert all(score is not None for score in row["scores"].values())
        pixels = np.asarray(Image.open(io.BytesIO(masks[image_id]["png"])))
        assert (pixels.shape, pixels.dtype) == ((256, 256), np.uint8)
        assert row["mask_area"]["maskclip"] == pytest.approx(np.mean(pixels >= 128), abs=1e-6)
        assert row["mask_peak"]["maskclip"] == pytest.approx(pixels.max() / 255, abs=1e-6)
        assert (masks[image_id]["width"], masks[image_id]["height"]) == (row["width"], row["height"])


def test_bad_rows_have_neither(run_of_eight):
    _, rows = run_of_eight
    bad = [row for row in rows.values() if row["status"] != "ok"]
    assert bad
    assert all(row["scores"] is None and row["mask_area"] is None and row["score"] is None for row in bad)


def test_the_mask_table_has_the_schema_that_is_promised(run_of_eight):
    out, _ = run_of_eight
    files = sorted((out / "masks" / "00000").iterdir())
    assert files
    assert all(pq.read_schema(file).equals(MASK_SCHEMA) for file in files)


def test_masks_can_be_taken_out_as_files(run_of_eight, tmp_path, capsys):
    out, rows = run_of_eight
    assert main(["runs", "masks", str(out), "--out", str(tmp_path / "masks")]) == 0
    good = [row for row in rows.values() if row["status"] == "ok"]
    assert f"{len(good)} masks in" in capsys.readouterr().out
    for row in good:
        with Image.open(tmp_path / "masks" / f"{row['image_id']}-maskclip.png") as mask:
            assert (mask.size, mask.mode) == ((row["width"], row["height"]), "L")


def test_after_another_listing_only_current_masks_are_taken_out(score, archive, eight, tmp_path, capsys):
    pictures = sorted(archive.rglob("*.png"))[:2]
    source = tmp_path / "two"
    source.mkdir()
    for picture in pictures:
        shutil.copy(picture, source)
    maskclip = eight.parent / "maskclip.yaml"
    score(source, detectors=(str(maskclip),))
    (source / pictures[0].name).unlink()
    score(source, detectors=(str(maskclip),))
    for flags, count in (([], 1), (["--vanished"], 2)):
        assert main(["runs", "masks", str(tmp_path / "run"), "--out", str(tmp_path / f"masks{count}"), *flags]) == 0
        assert len(list((tmp_path / f"masks{count}").iterdir())) == count
    assert main(["runs", "masks", str(tmp_path / "run"), "--out", "s3://bucket/masks"]) == 2
    assert "not a folder of this machine" in capsys.readouterr().err


def test_a_detector_that_answers_in_words_has_a_pool_of_its_own(score, archive, tmp_path):
    card = write_tiny_internvl(tmp_path / "internvl")
    finished, rows = score(archive, detectors=(str(card), "touchstone-tiny"), precision="fp32")
    session = finished.summary["session"]
    assert (session["layout"], session["workers"]) == ("split", 3)
    good = [row for row in rows.values() if row["status"] == "ok"]
    said = {row["scores"]["tiny-internvl"] for row in good}
    assert said <= {1.0, -1.0, None}
    for row in good:
        assert row["scores"]["touchstone-tiny"] is not None
        if row["scores"]["tiny-internvl"] is None:
            assert row["verdict"] == "abstain"
            assert row["verdict_reason"] == "no_score"
            assert f"tiny-internvl: no score (it replied {row['replies']['tiny-internvl']!r})" in row["verdict_detail"]
    ensemble = tmp_path / "other.yaml"
    ensemble.write_text(yaml.safe_dump({"name": "other", "title": "Another rule", "rule": "max",
                                        "members": [{"detector": str(card)}, {"detector": "touchstone-tiny"}]}))  # fmt: skip
    decide_run(str(tmp_path / "run"), str(ensemble))
    for uri, row in rows_of(tmp_path / "run").items():
        assert row["verdict_detail"] == rows[uri]["verdict_detail"] or row["scores"]["tiny-internvl"] is not None
        assert row.get("replies") == rows[uri].get("replies")
