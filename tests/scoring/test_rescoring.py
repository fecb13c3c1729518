"""Embeddings kept by a run, and another head on them: the scores of a full run, and not one image fetched."""

import json

import pyarrow.parquet as pq
import pytest
from PIL import Image

from benchmarks.photographs import write_photographs
from benchmarks.seeded import seeded_card, write_card
from ray_app.errors import ConfigError, IdentityError
from ray_app.runs import RunDirectory, kept_features
from ray_app.scoring import ScoreConfig
from ray_app.scoring.rescore import rescore_run
from ray_app.scoring.run import score_archive
from tests.scoring.conftest import comparable, rows_of, score_here
from tests.scoring.eight import small_cards

SETTINGS = {"block_members": 4, "precision": "fp32"}
GOOD = 7


@pytest.fixture(scope="module")
def photos(s3, tmp_path_factory):
    """A bucket of some photographs, a file that is none, and an image too thin to be scored."""
    folder = tmp_path_factory.mktemp("rescoring") / "photos"
    write_photographs(folder, GOOD, size=(240, 230))
    (folder / "broken.jpg").write_bytes(b"no image")
    Image.new("L", (2, 300), 90).save(folder / "thin.png")
    url = s3.bucket("rescored")
    for path in folder.rglob("*.*"):
        s3.client().upload_file(str(path), "rescored", f"photos/{path.name}")
    return f"{url}/photos"


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    """Cards: two heads on one backbone, one that stands in a process of its own, and one on another backbone."""
    folder = tmp_path_factory.mktemp("heads")
    (unifd,) = [card for card in small_cards() if card.name == "unifd"]
    base = seeded_card(unifd, folder / "base")
    other = seeded_card(unifd.model_copy(update={"name": "new-head"}), folder / "own", seed=7)
    new = other.model_copy(update={"backbone": base.backbone})
    stranger = seeded_card(unifd.model_copy(update={"name": "stranger"}), folder / "stranger", seed=3)
    alone = base.model_copy(update={"own_pool": True})
    written = {card.name: str(write_card(card, folder / f"{card.name}.yaml")) for card in (base, new, stranger)}
    return written | {"alone": str(write_card(alone, folder / "alone.yaml"))}


@pytest.fixture(scope="module")
def kept(photos, heads, tmp_path_factory):
    """A run that kept what its first detector's backbone says."""
    out = tmp_path_factory.mktemp("kept") / "run"
    score_here(out, photos, detectors=(heads["unifd"], "touchstone-tiny"), features=("openai-clip-vit-l14",), **SETTINGS)
    return out


@pytest.fixture(scope="module")
def rescored(kept, heads, tmp_path_factory):
    out = tmp_path_factory.mktemp("rescored") / "run"
    return out, rescore_run(str(kept), str(out), [heads["new-head"]])


def head_scores(rows):
    return {uri: (row["scores"] or {}).get("new-head") for uri, row in rows.items()}


def assert_equal_but_for_rounding(rows, expected):
    rounded = ("scores", "score", "probability")
    assert rows.keys() == expected.keys()
    for uri, row in rows.items():
        left, right = comparable(row), comparable(expected[uri])
        for name in rounded:
            values = [(one.pop(name) or {}) if name == "scores" else one.pop(name) for one in (left, right)]
            assert values[0] == pytest.approx(values[1], abs=1e-4)
        assert left == right, uri


def test_rescoring_gives_the_rows_of_a_full_run_which_the_score_command_takes_for_its_own(rescored, photos, heads, s3, tmp_path):
    out, summary = rescored
    _, full = score_here(tmp_path / "full", photos, detectors=(heads["new-head"],), **SETTINGS)
    rows = rows_of(out)
    assert_equal_but_for_rounding(rows, full)
    scores = [score for score in head_scores(rows).values() if score is not None]
    assert (len(scores), len(set(scores))) == (GOOD, GOOD), "all but the broken file and the thin one"
    told = json.loads((tmp_path / "full" / "summary.json").read_text())
    for key in ("members", "statuses", "verdicts", "fingerprint", "identity", "complete"):
        assert summary[key] == told[key], key
    assert (out / "report.html").is_file()
    s3.clear_log()
    finished, again = score_here(out, photos, detectors=(heads["new-head"],), **SETTINGS)
    assert again == rows
    assert finished.summary["members"] == len(rows)
    assert not [path for method, path in s3.requests() if method == "GET" and path.endswith((".jpg", ".png"))]


def test_embeddings_are_of_every_image_that_has_pixels_and_say_what_they_are(kept):
    rows = rows_of(kept)
    good = {row["image_id"] for row in rows.values() if row["status"] == "ok"}
    files = sorted((kept / "features" / "unifd" / "00000").iterdir())
    assert {image_id for file in files for image_id in pq.read_table(file)["image_id"].to_pylist()} == good
    assert len(files) > 1, "one per block"
    (facts,) = kept_features(RunDirectory.open(str(kept))).values()
    assert (facts["backbone"], facts["precision"], facts["resize"], facts["width"]) == ("openai-clip-vit-l14", "fp32", "exact", 32)
    assert json.loads((kept / "run.json").read_text())["identity"]["features"] == ["unifd"]


def test_a_pool_of_its_own_keeps_the_same(rescored, photos, heads, tmp_path):
    out = tmp_path / "split"
    finished, _ = score_here(out, photos, detectors=("touchstone-tiny", heads["alone"]), features=("unifd",), **SETTINGS)
    assert finished.summary["session"]["layout"] == "split"
    rescore_run(str(out), str(tmp_path / "run"), [heads["new-head"]])
    again, before = head_scores(rows_of(tmp_path / "run")), head_scores(rows_of(rescored[0]))
    assert again == pytest.approx(before, abs=1e-4)


def test_what_cannot_be_is_said_before_anything_starts(photos, kept, rescored, heads, tmp_path):
    with pytest.raises(ConfigError, match=r"does not fit the embeddings of unifd:\n  sha256: the head needs"):
        rescore_run(str(kept), str(tmp_path / "run"), [heads["stranger"]])
    with pytest.raises(ConfigError, match=r"touchstone-tiny: its head does not fit"):
        rescore_run(str(kept), str(tmp_path / "run"), ["touchstone-tiny"])
    with pytest.raises(ConfigError, match="name the heads by --detector"):
        rescore_run(str(kept), str(tmp_path / "run"), [])
    with pytest.raises(ConfigError, match="kept no embeddings") as refused:
        rescore_run(str(rescored[0]), str(tmp_path / "run"), [heads["new-head"]])
    assert "--features" in refused.value.hint
    config = ScoreConfig(source=(photos,), out=str(tmp_path / "run"), detectors=(heads["unifd"],), features=("clip",))
    with pytest.raises(ConfigError, match="--features clip: not a detector of this run"):
        score_archive(config)
    with pytest.raises(IdentityError, match="features"):
        score_archive(ScoreConfig(source=(photos,), out=str(kept), detectors=(heads["unifd"], "touchstone-tiny"), features=(), **SETTINGS))
    assert not (tmp_path / "run").exists()
