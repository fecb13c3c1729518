"""`features::RUN`: the heads of detectors score the embeddings that a run keeps. No image exists."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from ray_app.archives import read_block, read_blocks
from ray_app.cli.main import main
from ray_app.errors import ConfigError, ExitCode, TouchstoneError
from ray_app.runs import RunDirectory, current_rows, feature_rows, verify_run, write_features
from ray_app.runs.artifacts import read_features
from ray_app.scoring import ScoreConfig
from ray_app.scoring.compact import compact_run
from ray_app.scoring.run import score_archive
from tests.identification.made import make_identifier
from tests.runs.small_run import NAME, SPEC
from tests.scoring.conftest import comparable, rows_of, score_here, write_ensemble
from tests.scoring.kept_run import facts_of, kept_run
from tests.scoring.stages import without_ray
from tests.scoring.stored_run import write_stored_run

ROOT = Path(__file__).resolve().parents[2]
FACTS = facts_of(SPEC, NAME)
NAMES = [f"{number:02}.jpg" for number in range(30)]
BROKEN = ("03.jpg", "11.jpg")
# Columns that differ although the same head gives the same scores: `kept_run` draws its scores.
OF_THE_DETECTOR = ("scores", "score", "probability", "finding", "grounds", "verdict", "verdict_reason", "verdict_detail")  # fmt: skip


@pytest.fixture
def run(tmp_path):
    """A finished run of two listings, of which the second found two new files and missed one; its
    images are deleted.
    """
    kept_run(tmp_path / "run", SPEC, NAME, NAMES, BROKEN)
    (tmp_path / "archive" / NAMES[0]).unlink()
    kept_run(tmp_path / "run", SPEC, NAME, ["98.jpg", "99.jpg"], BROKEN)
    shutil.move(tmp_path / "archive", tmp_path / "gone")
    return RunDirectory.open(str(tmp_path / "run"))


def add_listing(run, *names):
    """List the archive of a run again, which has further files."""
    folder = Path(run.store.url)
    shutil.move(folder.with_name("gone"), folder.with_name("archive"))
    kept_run(folder, SPEC, NAME, names)
    shutil.move(folder.with_name("archive"), folder.with_name("gone"))


def score_stored(run, out, **settings):
    settings = settings or {"detectors": (NAME,)}
    return score_here(out, f"features::{run.store.url}", **settings)


def test_rows_keep_ids_statuses_and_facts(run, tmp_path):
    finished, rows = score_stored(run, tmp_path / "new")
    before, new = rows_of(run.store.url), RunDirectory.open(str(tmp_path / "new"))
    assert rows.keys() == before.keys()
    for uri, row in rows.items():
        assert row["image_id"] == before[uri]["image_id"]
        left, right = (
            {name: one for name, one in comparable(row).items() if name not in OF_THE_DETECTOR}
            for row in (row, before[uri])
        )
        assert left == right
        assert (row["scores"] is None) == (row["status"] != "ok")
    assert finished.summary["statuses"] == {"ok": 29, "corrupt_image": 2}
    assert len(list(current_rows(new, vanished=True))) == 32
    assert verify_run(new).current == 31
    assert new.describe()["identity"]["source"] == [f"features::{run.store.url}"]


def test_own_head_gives_the_scores_of_the_run(tmp_path):
    run = write_stored_run(tmp_path / "run", 300, block_members=64)
    _, rows = score_stored(run, tmp_path / "new", ensemble="tiny")
    before = rows_of(run.store.url)
    for uri, row in rows.items():
        if row["status"] == "ok":
            assert row["score"] == pytest.approx(before[uri]["score"], abs=1e-5)
            assert row["verdict"] == before[uri]["verdict"]
    assert len({row["score"] for row in rows.values()}) == 295  # 294 scores, and none


def test_later_listing_adds_its_files_alone(run, tmp_path):
    score_stored(run, tmp_path / "new")
    finished, _ = score_stored(run, tmp_path / "new")
    assert finished.summary["session"]["rows"] == 0
    add_listing(run, "a.jpg", "b.jpg", "c.jpg")
    # The heads are those of the run, without an option.
    finished, rows = score_stored(run, tmp_path / "new", ensemble=None)
    assert (finished.summary["session"]["rows"], len(rows)) == (3, 34)
    assert rows.keys() == rows_of(run.store.url).keys()
    assert verify_run(RunDirectory.open(str(tmp_path / "new"))).manifests == 3


def test_resume_continues_with_its_own_manifest(run, tmp_path):
    last = read_blocks(run.store, 1)[0]
    ids = read_block(run.store, last)["image_id"].to_numpy()
    kept = read_features(run, last, ids, NAME, FACTS)
    other = feature_rows(ids, kept, NAME, FACTS | {"sha256": "0" * 64})
    write_features(run, 1, last.block, NAME, other)
    with pytest.raises(
        ConfigError, match=r"block 0 of listing 1 has other embeddings of .*\n  sha256"
    ):
        score_stored(run, tmp_path / "new")
    write_features(run, 1, last.block, NAME, feature_rows(ids, kept, NAME, FACTS))
    add_listing(run, "a.jpg")
    finished, rows = score_stored(run, tmp_path / "new")
    assert (finished.summary["session"]["rows"], len(rows)) == (2, 31)
    finished, rows = score_stored(run, tmp_path / "new")
    assert (finished.summary["session"]["rows"], len(rows)) == (1, 32)


def test_image_without_embedding_is_detector_failed(run, tmp_path):
    ref = read_blocks(run.store, 0)[1]
    rows = run.beside(f"features/{NAME}", 0, ref.block)
    lost = rows["image_id"][0].as_py()
    run.write_beside(f"features/{NAME}", 0, ref.block, rows.slice(1))
    finished, rows = score_stored(run, tmp_path / "new")
    assert finished.summary["statuses"] == {"ok": 28, "corrupt_image": 2, "detector_failed": 1}
    [failed] = [row for row in rows.values() if row["status"] == "detector_failed"]
    assert failed["image_id"] == lost
    assert "no embedding of this image is stored" in failed["detail"]


def test_compacted_run_is_a_source(run, tmp_path):
    compact_run(run.store.url, str(tmp_path / "small"))
    _, rows = score_stored(RunDirectory.open(str(tmp_path / "small")), tmp_path / "new")
    _, expected = score_stored(run, tmp_path / "other")
    assert {uri: row["score"] for uri, row in rows.items()} == pytest.approx(
        {uri: row["score"] for uri, row in expected.items()}, abs=1e-4
    )


def test_identifier_names_generators(run, tmp_path):
    rng = np.random.default_rng(0)
    classes = ("sd-1.5", "sdxl", "midjourney-6")
    card = make_identifier(
        tmp_path / "card", classes, rng.normal(size=(3, FACTS["width"])), NAME, FACTS
    )
    _, rows = score_stored(run, tmp_path / "new", identifier=str(card), ensemble=None)
    names = {row["predicted_generator"] for row in rows.values() if row["status"] == "ok"}
    assert names == set(classes)
    assert all(row["score"] is not None for row in rows.values() if row["status"] == "ok")
    _, with_detector = score_stored(
        run, tmp_path / "other", identifier=str(card), detectors=(NAME,)
    )
    assert {uri: row["generator_ranking"] for uri, row in with_detector.items()} == {
        uri: row["generator_ranking"] for uri, row in rows.items()
    }
    other = FACTS | {"preprocessing": FACTS["preprocessing"] | {"mean": [0.25, 0.5, 0.5]}}
    stranger = make_identifier(
        tmp_path / "stranger", classes, np.eye(3, FACTS["width"]), NAME, other
    )
    with pytest.raises(ConfigError, match=r"was fitted on other embeddings of .*preprocessing"):
        score_stored(run, tmp_path / "third", identifier=str(stranger), ensemble=None)
    assert not (tmp_path / "third").exists()


REFUSED = {
    "a part of the files": ({"include": ("*.jpg",), "limit": 3}, "with --include, --limit"),
    "a further source": ({"source": ("{run}", "photos")}, "with another source"),
    "embeddings to keep": ({"features": (NAME,)}, "with --features"),
    "a retry": ({"rescore": ("corrupt_image",)}, "with --retry"),
    "no head": ({"detectors": ()}, "need a head: --detector is missing"),
    "a head of another backbone": ({"detectors": ("tiny-ladeda",)}, "tiny-ladeda"),
    "another precision": ({"precision": "bf16"}, 'precision: the head needs "bf16", the run has "fp32"'),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_score_refuses_before_anything_is_written(name, run, tmp_path):
    settings, message = REFUSED[name]
    source = f"features::{run.store.url}"
    settings = {"source": (source,), "detectors": (NAME,)} | settings
    settings["source"] = tuple(one.format(run=source) for one in settings["source"])
    with without_ray(), pytest.raises(TouchstoneError, match=message) as refused:
        score_archive(ScoreConfig(out=str(tmp_path / "new"), **settings))
    assert refused.value.hint
    assert not (tmp_path / "new").exists()


def test_score_refuses_runs_without_what_it_needs(run, tmp_path):
    missing = RunDirectory.open(str(tmp_path / "nothing"))
    with pytest.raises(ConfigError, match="there is no folder"):
        score_stored(missing, tmp_path / "new")
    content = run.describe()
    run.write_json("run.json", {key: content[key] for key in content if key != "layout"})
    with pytest.raises(ConfigError, match=r"before 0\.25 wrote this run") as refused:
        score_stored(run, tmp_path / "new")
    assert "touchstone runs compact" in refused.value.hint
    run.write_json("run.json", content)
    run.store.clear("features")
    with pytest.raises(ConfigError, match="keeps no embeddings") as refused:
        score_stored(run, tmp_path / "new")
    assert "--features" in refused.value.hint
    run.store.delete("summary.json")
    with pytest.raises(ConfigError, match="is not finished yet") as refused:
        score_stored(run, tmp_path / "new")
    assert "finishes it" in refused.value.hint
    assert not (tmp_path / "new").exists()


def test_calibration_of_another_precision_is_refused(run, tmp_path):
    settings = {"precision": {NAME: "bf16"}, "resize": "exact"}
    card = write_ensemble(tmp_path / "mine.yaml", [NAME], settings=settings)
    with pytest.raises(ConfigError, match=f"embeddings of {NAME} in fp32"):
        score_stored(run, tmp_path / "new", ensemble=str(card))
    _, rows = score_stored(run, tmp_path / "new", ensemble=str(card), waive_guarantee=True)
    assert len(rows) == 31


def test_other_commands_refuse_the_source(run, tmp_path, capsys):
    source = f"features::{run.store.url}"
    assert main(["plan", source, "--detector", NAME]) == ExitCode.USAGE
    assert main(["data", "pack", source, "--out", str(tmp_path / "packed")]) == ExitCode.USAGE
    assert capsys.readouterr().err.count("is a source of touchstone score") == 2


@pytest.mark.parametrize("option", ["--detector", "--identifier"])
def test_commands_of_the_upgrade_page_work(option, run, tmp_path, capsys, monkeypatch):
    rows = re.findall(r"^\| `touchstone runs rescore RUN (\S+) CARD`[^|]*\| `([^`]+)`", (ROOT / "UPGRADING.md").read_text(), re.M)  # fmt: skip
    [command] = [command for name, command in rows if name == option]
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(2, FACTS["width"]))
    identifier = make_identifier(tmp_path / "card", ("sd-1.5", "sdxl"), weight, NAME, FACTS)
    names = {
        "RUN": "run",
        "NEW": "new",
        "CARD": NAME if option == "--detector" else str(identifier),
    }
    monkeypatch.chdir(tmp_path)
    words = [re.sub("RUN|NEW|CARD", lambda name: names[name[0]], word) for word in command.split()]
    with without_ray():
        assert main(words[1:]) == ExitCode.DONE
    assert rows_of(tmp_path / "new").keys() == rows_of(run.store.url).keys()
