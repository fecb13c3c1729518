"""A profile through the stages of both layouts, without Ray: who is asked, counted; the same names and words however the work is cut."""

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
from tests.scoring.profiled import BACKBONE, CLASSES, PROMPTS, write_profile
from tests.scoring.stages import run_stages

PROFILE = ("predicted_generator", "generator_family", "generator_probability", "generator_confidence", "generator_ranking")
WORDS = ("predicted_prompt", "prompt_likelihood")
IMAGES = 500
TIMED = [stage for stage in STAGES if stage != "wait"]  # for memory that nothing here is large enough to want


def write_archive(folder, images, size=(320, 240)):
    """So many files, the last of which is no image."""
    write_photographs(folder, images - 1, size=size)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff no image")
    return folder


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    return write_archive(tmp_path_factory.mktemp("few") / "archive", 13)


def middle(folder, archive, **options):
    """A threshold that calls half of the images fake."""
    ensemble = write_profile(folder / "cards", localizer=False)
    _, rows, _ = run_stages(folder / "undecided", archive, "fused", ensemble=str(ensemble), precision="fp32", **options)
    return float(np.median([row["score"] for row in rows.values() if row["status"] == "ok"]))


@pytest.mark.parametrize("describer", ["retrieval", "captioner"])
def test_names_and_words_are_the_same_in_any_layout(few, tmp_path, describer):
    cut, found = middle(tmp_path, few), {}
    for name, kind, changes in (("fused", "fused", {}), ("last", "split", {}), ("apart", "split", {"own_pool": True})):
        ensemble = write_profile(tmp_path / name, describer, localizer=False, fake_above=cut, **changes)
        facts, rows, spec = run_stages(tmp_path / "runs" / name, few, kind, ensemble=str(ensemble), precision="fp32")
        assert len(spec.all_pools) == (2 if name == "apart" else 1)
        assert facts["decoded"] == len(rows) == 13
        assert facts["described"] == sum(row["predicted_prompt"] is not None for row in rows.values()) == 6
        assert facts["seconds"]["describe"] > 0 < facts["seconds"]["identify"]
        found[name] = rows
    for uri, row in found["fused"].items():
        assert (row["predicted_prompt"] is not None) == (row["verdict"] == "fake")
        for other in (found["last"][uri], found["apart"][uri]):
            assert [other[name] for name in ("verdict", "predicted_prompt", *PROFILE[:2])] == [
                row[name] for name in ("verdict", "predicted_prompt", *PROFILE[:2])
            ]
            assert other["prompt_likelihood"] == pytest.approx(row["prompt_likelihood"], abs=1e-4)


@pytest.mark.parametrize("apart", [False, True])
def test_a_cascade_in_pools_keeps_what_the_describer_may_look_at(few, tmp_path, apart):
    """The tensors end with the first pool; the second decodes what goes on, and the describer still sees what was prepared then."""
    ensemble = write_profile(tmp_path / "cards", "captioner", localizer=False, own_pool=apart)
    _, rows, _ = run_stages(tmp_path / "all", few, "fused", ensemble=str(ensemble), precision="fp32")
    early = [row["scores"]["unifd"] for row in rows.values() if row["scores"]]
    told = yaml.safe_load(ensemble.read_text())
    slow = yaml.safe_load((ensemble.parent / "own-head.yaml").read_text()) | {"own_pool": True}
    (ensemble.parent / "own-head.yaml").write_text(yaml.safe_dump(slow))
    cascade = {"first": 1, "band": [float(edge) for edge in np.quantile(early, [0.3, 0.8])], "audit_share": 0}
    ensemble.write_text(yaml.safe_dump(told | {"rule": "cascade", "cascade": cascade}))
    fused, split = (
        run_stages(tmp_path / kind, few, kind, ensemble=str(ensemble), precision="fp32") for kind in ("fused", "split")
    )  # fmt: skip
    assert len(split[2].all_pools) == 2 + apart
    assert split[0]["described"] == fused[0]["described"] == sum(row["verdict"] == "fake" for row in fused[1].values()) > 0
    for uri, row in fused[1].items():
        names = ("second_look", "verdict", "predicted_prompt", "predicted_generator")
        assert [split[1][uri][name] for name in names] == [row[name] for name in names]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_one_decode_and_one_backbone_pass_for_detection_localization_generator_and_prompt(tmp_path):
    archive = write_archive(tmp_path / "archive", IMAGES)
    few = write_archive(tmp_path / "few", 25)
    ensemble = write_profile(tmp_path / "cards", fake_above=middle(tmp_path, few))
    facts, rows, spec = run_stages(tmp_path / "run", archive, "fused", ensemble=str(ensemble), precision="fp32", block_members=64)
    run = RunDirectory.open(str(tmp_path / "run"))
    batches = sum(-(-len(read_block(run.store, ref)) // spec.slots) for ref in iter_blocks(run.store, 0))
    assert facts["decoded"] == len(rows) == IMAGES
    assert facts["backbones"][BACKBONE] == {"runs": batches, "asked": 2 * batches}
    masks = {mask["image_id"]: mask for table in run.masks(0) for mask in table.to_pylist()}
    for row in rows.values():
        if row["status"] != "ok":
            assert all(row[name] is None for name in (*PROFILE, *WORDS, "scores", "verdict"))
            continue
        assert row["predicted_generator"] == row["generator_ranking"][0]
        assert row["predicted_generator"] in CLASSES
        assert all(row[name] is not None for name in PROFILE)
        assert (row["predicted_prompt"] in PROMPTS) == (row["prompt_likelihood"] is not None) == (row["verdict"] == "fake")
        assert np.asarray(Image.open(io.BytesIO(masks[row["image_id"]]["png"]))).shape == (256, 256)
    assert 0 < facts["described"] == sum(row["predicted_prompt"] is not None for row in rows.values()) < IMAGES - 1
    assert all(facts["seconds"][stage] > 0 for stage in TIMED)
    print(json.dumps({
        "images": IMAGES, "decoded": facts["decoded"], "batches": batches, "backbone": facts["backbones"][BACKBONE],
        "described": facts["described"], "ms_per_image": {stage: round(1000 * facts["seconds"][stage] / IMAGES, 3) for stage in TIMED},
    }))  # fmt: skip
