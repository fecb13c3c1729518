"""Rows of a new head, made of the rows and embeddings of a run whose images are gone. No Ray, no image."""

import json
import shutil

import pytest
import yaml

from ray_app.archives import read_blocks
from ray_app.cli.main import main
from ray_app.detectors import resolve_weights
from ray_app.detectors.linear_head import LinearHead
from ray_app.errors import ConfigError, IdentityError
from ray_app.runs import RunDirectory, begin_retry, current_rows, feature_rows, write_features
from ray_app.scoring.rescore import rescore_run
from tests.runs.small_run import NAME, PLAN, SPEC
from tests.scoring.conftest import comparable, write_ensemble
from tests.scoring.kept_run import facts_of, kept_run, vectors_of

CARD = SPEC.cards[NAME]
FACTS = facts_of(SPEC, NAME)
NAMES = [f"{number:02}.jpg" for number in range(30)]
BROKEN = ("03.jpg", "11.jpg")
OF_THE_DETECTOR = ("scores", "score", "probability", "finding", "grounds", "verdict", "verdict_reason", "verdict_detail")


@pytest.fixture
def run(tmp_path):
    """A finished run of two listings, of which the second found two new files and missed one; its images are gone."""
    kept_run(tmp_path / "run", SPEC, NAME, NAMES, BROKEN)
    (tmp_path / "archive" / NAMES[0]).unlink()
    run = kept_run(tmp_path / "run", SPEC, NAME, ["98.jpg", "99.jpg"], BROKEN)
    shutil.rmtree(tmp_path / "archive")
    return run


def rescored(run, tmp_path, name="new"):
    summary = rescore_run(run.store.url, str(tmp_path / name), [NAME])
    return RunDirectory.open(str(tmp_path / name)), summary


def test_scores_are_the_head_s_and_all_else_is_copied(run, tmp_path):
    new, summary = rescored(run, tmp_path)
    before, after = list(current_rows(run)), list(current_rows(new))
    assert [row["image_id"] for row in after] == [row["image_id"] for row in before]
    assert len(after) == 31 == summary["members"]
    assert summary["statuses"] == {"ok": 29, "corrupt_image": 2}
    head = LinearHead(CARD)
    for old, row in zip(before, after, strict=True):
        facts = [{name: value for name, value in comparable(one).items() if name not in OF_THE_DETECTOR} for one in (old, row)]
        assert facts[0] == facts[1]
        if old["status"] == "ok":
            assert row["scores"][NAME] == pytest.approx(head.score(vectors_of([row["image_id"]], FACTS["width"]))[0], abs=1e-5)
            assert row["verdict"] == ("fake" if row["score"] > 0 else "real")
        else:
            assert row["scores"] is None
    assert len(list(current_rows(new, vanished=True))) == len(list(current_rows(run, vanished=True))) == 32
    assert (tmp_path / "new" / "vanished.parquet").is_file()
    assert read_blocks(new.store, 1).members == 2
    identity = new.describe()["identity"]
    assert "features" not in identity
    assert identity["source"] == run.describe()["identity"]["source"]
    assert summary["identity"] == identity
    assert json.loads((tmp_path / "new" / "sessions" / "00001.json").read_text())["state"] == "finished"


def test_interrupted_it_goes_on_with_the_blocks_that_are_left(run, tmp_path):
    new, _ = rescored(run, tmp_path)
    whole = {row["image_id"]: comparable(row) for row in current_rows(new)}
    first = read_blocks(run.store, 0)[0].members
    kept = next(new.tables(0)).slice(0, first)
    for file in new.published():
        new.store.delete(file.path)
    new.store.clear("manifest/1")  # as if killed before the second listing was copied
    new.write_part(0, 0, kept)
    again, _ = rescored(run, tmp_path)
    rows = list(current_rows(again))
    assert {row["image_id"]: comparable(row) for row in rows} == whole
    done_before = {image_id for image_id in kept["image_id"].to_pylist() if image_id in whole}
    assert {row["image_id"] for row in rows if row["attempt"] == 1} == done_before


def test_a_member_whose_embedding_is_gone_has_failed_and_a_block_without_its_file_stops_it(run, tmp_path):
    rows = run.beside(f"features/{NAME}", 0, 1)
    lost = rows["image_id"][0].as_py()
    run.write_beside(f"features/{NAME}", 0, 1, rows.slice(1))
    new, summary = rescored(run, tmp_path)
    assert summary["statuses"] == {"ok": 28, "corrupt_image": 2, "detector_failed": 1}
    (failed,) = current_rows(new, status="detector_failed")
    assert failed["image_id"] == lost
    run.store.delete(f"features/{NAME}/00000/{0:08d}.parquet")
    with pytest.raises(ConfigError, match="missing for block 0 of listing 0"):
        rescored(run, tmp_path, "other")


def test_no_run_one_that_is_not_finished_and_the_run_s_own_directory_are_refused(run, tmp_path):
    with pytest.raises(ConfigError, match=r"there is no folder|no run in"):
        rescore_run(str(tmp_path / "nowhere"), str(tmp_path / "new"), [NAME])
    with pytest.raises(IdentityError, match="made by another command"):
        rescore_run(run.store.url, run.store.url, [NAME])
    begin_retry(run, 2, ["corrupt_image"], PLAN)
    with pytest.raises(ConfigError, match="a retry is not finished"):
        rescored(run, tmp_path)
    run.store.clear("retries")
    run.store.delete("summary.json")
    with pytest.raises(ConfigError, match="is not finished yet"):
        rescored(run, tmp_path, "third")


def test_an_ensemble_card_decides_by_its_own_thresholds(run, tmp_path, capsys):
    card = write_ensemble(tmp_path / "mine.yaml", [NAME], thresholds={"real_below": -1e6, "fake_above": 1e6})
    command = ["rescore", run.store.url, "--ensemble", str(card), "--out", str(tmp_path / "new"), "--json"]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["verdicts"] == {"real": 0, "fake": 0, "abstain": 29}
    assert main([*command[:2], "--out", str(tmp_path / "other")]) == 2
    assert "--detector, or an ensemble card" in capsys.readouterr().err


def test_a_card_that_was_calibrated_otherwise_is_refused_in_words_that_help_here(run, tmp_path):
    card = write_ensemble(tmp_path / "mine.yaml", [NAME], settings={"precision": {NAME: "bf16"}, "resize": "exact"})
    with pytest.raises(ConfigError, match=f"of mine does not hold for embeddings made with {NAME} in fp32") as refused:
        rescore_run(run.store.url, str(tmp_path / "new"), [], str(card))
    assert "waive" not in refused.value.hint
    assert not (tmp_path / "new").exists()


def written(tmp_path, **changes):
    """The detector's card beside its weights, with other words in it."""
    data = CARD.model_dump(mode="json", exclude_none=True)
    weights = data["weights"] | {"uri": str(resolve_weights(CARD))}
    path = tmp_path / "card.yaml"
    path.write_text(yaml.safe_dump(data | {"weights": weights, **changes}))
    return str(path)


def test_a_head_of_full_precision_takes_no_rounded_embeddings(run, tmp_path):
    for number in (0, 1):
        for ref in read_blocks(run.store, number):
            rows = run.beside(f"features/{NAME}", number, ref.block)
            ids, width = rows["image_id"].to_numpy(), FACTS["width"]
            vectors = rows["vector"].combine_chunks().flatten().to_numpy().reshape(-1, width)
            write_features(run, number, ref.block, NAME, feature_rows(ids, vectors, NAME, FACTS | {"precision": "bf16"}))
    with pytest.raises(ConfigError, match='precision: the head needs "fp32", the run kept "bf16"'):
        rescore_run(run.store.url, str(tmp_path / "new"), [written(tmp_path, precision="fp32")])
    _, summary = rescored(run, tmp_path)
    assert summary["identity"]["precision"] == {NAME: "bf16"}
