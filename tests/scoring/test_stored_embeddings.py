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
from tests.make.cards import write_ensemble
from tests.make.profiles import make_identifier
from tests.make.runs import ROOT, comparable, rows_of, score_here
from tests.make.small_run import NAME, SPEC
from tests.make.stages import without_ray
from tests.scoring.kept_run import facts_of, kept_run

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


def rows_added(run, out, **settings):
    """How many rows a command scored, and how many there are then."""
    finished, rows = score_stored(run, out, **settings)
    return finished.summary["session"]["rows"], len(rows)


def test_rows_keep_ids_statuses_and_facts(run, tmp_path):
    finished, rows = score_stored(run, tmp_path / "new")
    before, new = rows_of(run.store.url), RunDirectory.open(str(tmp_path / "new"))
    assert rows.keys() == before.keys()
    for uri, row in rows.items():
        assert row["image_id"] == before[uri]["image_id"]
        left, right = comparable(row), comparable(before[uri])
        for name in left.keys() - OF_THE_DETECTOR:
            assert left[name] == right[name]
        assert (row["scores"] is None) == (row["status"] != "ok")
    assert finished.summary["statuses"] == {"ok": 29, "corrupt_image": 2}
    assert len(list(current_rows(new, vanished=True))) == 32
    assert verify_run(new).current == 31
    assert new.describe()["identity"]["source"] == [f"features::{run.store.url}"]


def test_later_listing_adds_only_its_files(run, tmp_path):
    score_stored(run, tmp_path / "new")
    assert rows_added(run, tmp_path / "new") == (0, 31)
    add_listing(run, "a.jpg", "b.jpg", "c.jpg")
    # The heads are those of the run, without an option.
    assert rows_added(run, tmp_path / "new", ensemble=None) == (3, 34)
    assert rows_of(tmp_path / "new").keys() == rows_of(run.store.url).keys()
    assert verify_run(RunDirectory.open(str(tmp_path / "new"))).manifests == 3


def test_resume_continues_with_its_own_manifest(run, tmp_path):
    last = read_blocks(run.store, 1)[0]
    ids = read_block(run.store, last)["image_id"].to_numpy()
    kept = read_features(run, last, ids, NAME, FACTS)
    other = feature_rows(ids, kept, NAME, FACTS | {"sha256": "0" * 64})
    write_features(run, 1, last.block, NAME, other)
    message = (
        r"block 0 of listing 1 has embeddings of .* that were computed in another way:\n  sha256"
    )
    with pytest.raises(ConfigError, match=message):
        score_stored(run, tmp_path / "new")
    write_features(run, 1, last.block, NAME, feature_rows(ids, kept, NAME, FACTS))
    add_listing(run, "a.jpg")
    assert rows_added(run, tmp_path / "new") == (2, 31)
    assert rows_added(run, tmp_path / "new") == (1, 32)


def test_image_without_embedding_is_detector_failed(run, tmp_path):
    ref = read_blocks(run.store, 0)[1]
    rows = run.read_sidecar(f"features/{NAME}", 0, ref.block)
    lost = rows["image_id"][0].as_py()
    run.write_sidecar(f"features/{NAME}", 0, ref.block, rows.slice(1))
    finished, rows = score_stored(run, tmp_path / "new")
    assert finished.summary["statuses"] == {"ok": 28, "corrupt_image": 2, "detector_failed": 1}
    [failed] = [row for row in rows.values() if row["status"] == "detector_failed"]
    assert failed["image_id"] == lost
    assert "no embedding of this image is stored" in failed["detail"]


def test_compacted_run_is_a_source(run, tmp_path):
    compact_run(run.store.url, str(tmp_path / "small"))
    _, rows = score_stored(RunDirectory.open(str(tmp_path / "small")), tmp_path / "new")
    _, expected = score_stored(run, tmp_path / "other")
    scores = [{uri: row["score"] for uri, row in one.items()} for one in (rows, expected)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)


def test_identifier_names_generators(run, tmp_path):
    rng, width = np.random.default_rng(0), FACTS["width"]
    classes = ("sd-1.5", "sdxl", "midjourney-6")
    card = make_identifier(tmp_path / "card", classes, rng.normal(size=(3, width)), NAME, FACTS)
    _, rows = score_stored(run, tmp_path / "new", identifier=str(card), ensemble=None)
    good = [row for row in rows.values() if row["status"] == "ok"]
    assert {row["predicted_generator"] for row in good} == set(classes)
    assert all(row["score"] is not None for row in good)
    settings = {"identifier": str(card), "detectors": (NAME,)}
    _, with_detector = score_stored(run, tmp_path / "other", **settings)
    for uri, row in with_detector.items():
        assert row["generator_ranking"] == rows[uri]["generator_ranking"]
    other = FACTS | {"preprocessing": FACTS["preprocessing"] | {"mean": [0.25, 0.5, 0.5]}}
    stranger = make_identifier(tmp_path / "stranger", classes, np.eye(3, width), NAME, other)
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


def test_score_refuses_options_before_anything_is_written(run, tmp_path):
    source = f"features::{run.store.url}"
    for name, (options, message) in REFUSED.items():
        settings = {"source": (source,), "detectors": (NAME,)} | options
        settings["source"] = tuple(one.format(run=source) for one in settings["source"])
        with without_ray(), pytest.raises(TouchstoneError, match=message) as refused:
            score_archive(ScoreConfig(out=str(tmp_path / "new"), **settings))
        assert refused.value.hint, name
    for command in (["plan", source], ["data", "pack", source, "--out", str(tmp_path / "new")]):
        assert main(command) == ExitCode.USAGE
    assert not (tmp_path / "new").exists()


def test_score_refuses_runs_without_what_it_needs(run, tmp_path):
    content = run.describe()

    def refuse(run, message, hint=""):
        with pytest.raises(ConfigError, match=message) as refused:
            score_stored(run, tmp_path / "new")
        assert hint in refused.value.hint

    refuse(RunDirectory.open(str(tmp_path / "nothing")), "there is no folder")
    run.write_json("run.json", {key: content[key] for key in content if key != "layout"})
    refuse(run, r"before 0\.25 wrote this run", "touchstone runs compact")
    run.write_json("run.json", content)
    run.store.clear("features")
    refuse(run, "keeps no embeddings", "--features")
    run.store.delete("summary.json")
    refuse(run, "is not finished yet", "finishes the run")
    assert not (tmp_path / "new").exists()


def test_calibration_of_another_precision_is_refused(run, tmp_path):
    settings = {"precision": {NAME: "bf16"}, "resize": "exact"}
    card = str(write_ensemble(tmp_path / "mine.yaml", [NAME], settings=settings))
    with pytest.raises(
        ConfigError, match=f"these embeddings, made with other settings: {NAME} in fp32"
    ):
        score_stored(run, tmp_path / "new", ensemble=card)
    assert rows_added(run, tmp_path / "new", ensemble=card, waive_guarantee=True)[1] == 31


def test_commands_of_the_upgrade_page_work(run, tmp_path, monkeypatch):
    weight = np.random.default_rng(0).normal(size=(2, FACTS["width"]))
    identifier = make_identifier(tmp_path / "card", ("sd-1.5", "sdxl"), weight, NAME, FACTS)
    monkeypatch.chdir(tmp_path)
    rows = re.findall(r"^\| `touchstone runs rescore RUN (\S+) CARD`[^|]*\| `([^`]+)`", (ROOT / "UPGRADING.md").read_text(), re.M)  # fmt: skip
    commands = dict(rows)
    for option, card in (("--detector", NAME), ("--identifier", str(identifier))):
        out = f"new{option}"
        names = {"RUN": "run", "NEW": out, "CARD": card}
        words = re.sub("RUN|NEW|CARD", lambda name: names[name[0]], commands[option]).split()  # noqa: B023
        with without_ray():
            assert main(words[1:]) == ExitCode.DONE
        assert rows_of(tmp_path / out).keys() == rows_of(run.store.url).keys()
