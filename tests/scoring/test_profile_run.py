"""Runs with a profile: one decode and one pass of the shared backbone per image, and all columns, in any layout."""

import io
import json

import numpy as np
import pytest
import yaml
from PIL import Image

from ray_app.archives import iter_blocks, read_block
from ray_app.datasets.simulation.archive import write_photographs
from ray_app.inference import STAGES
from ray_app.runs import RunDirectory
from ray_app.scoring.rescore import decide_run
from tests.scoring.conftest import rows_of, score_here, score_into
from tests.scoring.profiled import BACKBONE, CLASSES, PROMPTS, write_profile

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

IMAGES = 500
PROFILE = ("predicted_generator", "generator_family", "generator_probability", "generator_confidence", "generator_ranking")
WORDS = ("predicted_prompt", "prompt_likelihood")


def splitting(rows):
    """A threshold that calls half of the images fake."""
    return float(np.median([row["score"] for row in rows.values() if row["status"] == "ok"]))


def said(rows):
    return {uri: {name: row[name] for name in ("status", "verdict", *PROFILE, *WORDS)} for uri, row in rows.items()}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    write_photographs(folder, IMAGES - 1, size=(320, 240))
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff no image")
    return folder


@pytest.fixture(scope="module")
def profiled(photographs, tmp_path_factory):
    """The run of 500 images; what is called fake was chosen on a few of them."""
    folder = tmp_path_factory.mktemp("profiled")
    _, few = score_here(folder / "few", photographs, ensemble=str(write_profile(folder / "cards")), limit=24, precision="fp32")
    ensemble = write_profile(folder / "cards", fake_above=splitting(few))
    return folder, ensemble, *score_here(folder / "run", photographs, ensemble=str(ensemble), block_members=64, precision="fp32")


def test_one_decode_and_one_backbone_pass_per_image_and_all_columns(profiled):
    folder, _, finished, rows = profiled
    session = finished.summary["session"]
    run = RunDirectory.open(str(folder / "run"))
    batches = sum(-(-len(read_block(run.store, ref)) // 4) for ref in iter_blocks(run.store, 0))
    assert len(rows) == session["decoded"] == IMAGES
    assert session["layout"] == "fused"
    runs = session["backbones"][BACKBONE]
    assert runs == {"runs": batches, "asked": 2 * batches}
    masks = {mask["image_id"]: mask for table in run.masks(0) for mask in table.to_pylist()}
    for row in rows.values():
        if row["status"] != "ok":
            assert all(row[name] is None for name in (*PROFILE, *WORDS, "scores", "verdict"))
            continue
        assert row["predicted_generator"] in CLASSES
        assert row["generator_ranking"][0] == row["predicted_generator"]
        assert all(row[name] is not None for name in PROFILE)
        assert (row["predicted_prompt"] in PROMPTS) == (row["prompt_likelihood"] is not None) == (row["verdict"] == "fake")
        assert np.asarray(Image.open(io.BytesIO(masks[row["image_id"]]["png"]))).shape == (256, 256)
    words = sum(row["predicted_prompt"] is not None for row in rows.values())
    assert 0 < words == session["described"] < IMAGES - 1
    seconds = session["seconds"]
    assert all(seconds[stage] > 0 for stage in STAGES if stage != "wait")
    per_image = {stage: round(1000 * seconds[stage] / IMAGES, 2) for stage in STAGES if stage != "wait"}
    print(json.dumps({"images": IMAGES, "decoded": session["decoded"], "batches": batches, "backbone": runs, "described": words,
                      "ms_per_image": per_image, "images_per_s": session["images_per_s"]}))  # fmt: skip


def test_other_thresholds_leave_names_and_words_as_they_are(profiled, tmp_path):
    folder, ensemble, finished, rows = profiled
    told = yaml.safe_load(ensemble.read_text())
    told["thresholds"] = {"real_below": -1e9, "fake_above": -1e9}
    all_fake = ensemble.with_name("all-fake.yaml")
    all_fake.write_text(yaml.safe_dump(told))
    summary = decide_run(str(folder / "run"), str(all_fake))
    after = rows_of(folder / "run")
    for uri, row in rows.items():
        assert {name: after[uri][name] for name in (*PROFILE, *WORDS)} == {name: row[name] for name in (*PROFILE, *WORDS)}
    words = finished.summary["session"]["described"]
    assert (summary["profile"]["flagged"], summary["profile"]["described"]) == (IMAGES - 1, words)
    decide_run(str(folder / "run"), str(ensemble))
    assert said(rows_of(folder / "run")) == said(rows)


def test_a_describer_with_processes_of_its_own_on_ray_says_the_same(ray_cluster, photographs, tmp_path):
    settings = {"limit": 40, "precision": "fp32"}
    _, few = score_here(tmp_path / "few", photographs, ensemble=str(write_profile(tmp_path / "a", localizer=False)), **settings)
    cut = splitting(few)
    fused, split = (
        scored(tmp_path / name, photographs, ensemble=str(write_profile(tmp_path / "a" / name, "captioner", localizer=False,
               fake_above=cut, own_pool=apart)), **settings)
        for name, scored, apart in (("fused", score_here, False), ("split", score_into, True))
    )  # fmt: skip
    assert (fused[0].summary["session"]["layout"], split[0].summary["session"]["layout"]) == ("fused", "split")
    assert split[0].summary["session"]["decoded"] == 40
    there, here = said(split[1]), said(fused[1])
    assert there.keys() == here.keys()
    for uri, row in here.items():
        assert there[uri].keys() == row.keys()
        for name, value in row.items():
            assert there[uri][name] == (pytest.approx(value, abs=1e-4) if isinstance(value, float) else value), (uri, name)
    assert 0 < split[0].summary["session"]["described"] == fused[0].summary["session"]["described"]
    assert split[0].summary["fingerprint"] == fused[0].summary["fingerprint"]
