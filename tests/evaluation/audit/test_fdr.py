import hashlib
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_app.cli.main import main
from ray_app.errors import ConfigError
from ray_app.evaluation.audit.estimate import discover
from ray_app.metrics.survey_sampling import References, discoveries
from ray_app.scoring.guarantee import REFERENCES, keep_references, references_of
from tests.evaluation.audit.made import archive, run_of, truth_of

REALS = np.random.default_rng(9).normal(-2.5, 1.6, 3000)  # as the reals of `archive` score


def parquet(scores):
    buffer = io.BytesIO()
    pq.write_table(pa.table({"score": pa.array(np.sort(scores), pa.float64())}), buffer)
    return buffer.getvalue()


def card(data):
    guarantee = {"target_fpr": 0.01, "n_real": len(REALS), "false_positives": 1, "upper_bound": 0.005, "references": "card.reals.parquet",
                 "references_sha256": hashlib.sha256(data).hexdigest()}  # fmt: skip
    return {"name": "calibrated", "title": "t", "members": [{"detector": "a"}], "guarantee": guarantee}


@pytest.fixture
def world(tmp_path):
    columns, fake = archive(count=4000, seed=3)
    data = parquet(REALS)
    run = run_of(tmp_path / "run", columns, places=(1500,), ensemble=card(data))
    keep_references(run, data)
    run.write_json("summary.json", {"guarantee": {"holds": True, "shifts": []}})
    return run, columns, truth_of(columns, fake)


def test_the_list_is_that_of_its_scores_and_mostly_fake(world):
    run, columns, truth = world
    found = discover(run.store.url, 0.05)
    scores = columns["score"].to_numpy(zero_copy_only=False)
    known = np.isfinite(scores)
    references = References.of(REALS)
    expected = discoveries(references, references.counted(scores[known]), 0.05)
    assert found.list == expected
    rows = list(found.rows())
    assert [row["image_id"] for row in rows] == columns["image_id"][known & (np.nan_to_num(scores, nan=-99) > expected.above)].tolist()
    assert len(rows) == expected.count > 200
    assert all(row["p_value"] <= expected.p_value for row in rows)
    assert np.mean([not truth[row["image_id"]] for row in rows]) < 0.1
    assert found.remarks == (
        f"{expected.count:,} of {expected.tested:,} images are listed; of such a list at most 0.05 is real on average, if the archive's "
        "reals score like the 3,000 that the card was calibrated with (conformal p-values, Benjamini and Hochberg)",
        "no difference from them was noticed, which would not show reals of a new kind that score as fakes do",
    )


def test_images_that_the_card_does_not_speak_for_are_left_out_and_counted(tmp_path):
    columns, _ = archive(count=2000, seed=3, failing=0, without=0)
    verdicts, reasons = list(columns["verdict"]), list(columns["verdict_reason"])
    verdicts[:4] = ["abstain"] * 4
    reasons[:3] = "outside what the calibration saw: format", "a: 20 px, less than 64", "unstable: 2 of 5"
    reasons[3] = "the archive is not like what the card was calibrated on"
    data = parquet(REALS)
    run = run_of(tmp_path / "run", columns | {"verdict": verdicts, "verdict_reason": reasons}, ensemble=card(data))
    keep_references(run, data)
    found = discover(run.store.url, 0.05)
    assert found.left_out == 2
    assert found.list.tested == 1998
    assert "2 images with a score are left out: they lie outside what the card speaks for" in found.remarks
    listed = {row["image_id"] for row in found.rows()}
    assert not listed & set(columns["image_id"][:2].tolist())


def test_a_guarantee_that_does_not_hold_is_said(world):
    run, _, _ = world
    run.write_json("summary.json", {"guarantee": {"holds": False, "why": "jpeg_quality (PSI 1.2)"}})
    assert "that does not hold here: jpeg_quality (PSI 1.2)" in discover(run.store.url, 0.05).remarks
    run.write_json("summary.json", {"guarantee": {"holds": None, "why": "12 images with a score are too few to compare"}})
    assert "whether that holds here is not known: 12 images with a score are too few to compare" in discover(run.store.url, 0.05).remarks
    run.write_json("summary.json", {})
    assert any(remark.startswith("nothing has compared this archive") for remark in discover(run.store.url, 0.05).remarks)
    run.store.delete("summary.json")
    assert any("the run is not finished" in remark for remark in discover(run.store.url, 0.05).remarks)


def test_references_are_those_of_the_runs_own_card(world):
    run, _, _ = world
    assert references_of(run).scores.tolist() == np.sort(REALS).tolist()
    keep_references(run, parquet(REALS[:100]))
    assert references_of(run).n == len(REALS), "those of another card"
    run.store.write(REFERENCES, parquet(REALS[:100]))
    with pytest.raises(ConfigError, match="not the references that the card was written with"):
        discover(run.store.url, 0.05)
    run.write_json("run.json", run.describe() | {"ensemble": {"name": "plain"}})
    keep_references(run, None)
    assert not run.store.exists(REFERENCES)
    with pytest.raises(ConfigError, match="no scores of known reals to compare with"):
        discover(run.store.url, 0.05)


def test_the_command_prints_the_list_and_on_stderr_what_it_promises(world, capsys):
    run, _, _ = world
    assert main(["results", run.store.url, "--fdr", "0.05", "--json", "--limit", "7"]) == 0
    said = capsys.readouterr()
    rows = [json.loads(line) for line in said.out.splitlines()]
    assert len(rows) == 7
    assert all(0 < row["p_value"] < 0.01 for row in rows)
    assert "fdr  " in said.err
    assert "if the archive's reals score like" in said.err
    for wrong in (["--fdr", "0"], ["--fdr", "1"], ["--fdr", "0.1", "--verdict", "fake"], ["--fdr", "0.1", "--vanished"]):
        assert main(["results", run.store.url, *wrong]) == 2
