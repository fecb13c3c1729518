"""Embeddings kept by a run, and another head on them: the rows of a full run, without an image."""

import json

import numpy as np
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from PIL import Image

from benchmarks.photographs import write_photographs
from benchmarks.seeded import seeded_card, write_card
from ray_app.archives import copy_manifest, listed_manifests, read_blocks, read_complete
from ray_app.detectors import load_card
from ray_app.detectors.linear_head import embedding_facts
from ray_app.errors import ConfigError, IdentityError
from ray_app.runs import RunDirectory, verify_run
from ray_app.runs.artifacts import FACTS
from ray_app.scoring import ScoreConfig
from ray_app.scoring.run import score_archive
from ray_app.storage import Store
from tests.identification.made import make_identifier
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
    """Cards: two heads on one backbone, one that stands in a process of its own, and one on another
    backbone.
    """
    folder = tmp_path_factory.mktemp("heads")
    (unifd,) = [card for card in small_cards() if card.name == "unifd"]
    base = seeded_card(unifd, folder / "base")
    other = seeded_card(unifd.model_copy(update={"name": "new-head"}), folder / "own", seed=7)
    new = other.model_copy(update={"backbone": base.backbone})
    stranger = seeded_card(
        unifd.model_copy(update={"name": "stranger"}), folder / "stranger", seed=3
    )
    alone = base.model_copy(update={"own_pool": True})
    written = {
        card.name: str(write_card(card, folder / f"{card.name}.yaml"))
        for card in (base, new, stranger)
    }
    return written | {"alone": str(write_card(alone, folder / "alone.yaml"))}


@pytest.fixture(scope="module")
def kept(photos, heads, tmp_path_factory):
    """A run that kept what its first detector's backbone says."""
    out = tmp_path_factory.mktemp("kept") / "run"
    score_here(
        out,
        photos,
        detectors=(heads["unifd"], "touchstone-tiny"),
        features=("openai-clip-vit-l14",),
        **SETTINGS,
    )
    return out


def vectors_of(run, name):
    """The kept vectors by image id."""
    return {
        row["image_id"]: row["vector"]
        for row in pyarrow.dataset.dataset(run / "features" / name).to_table().to_pylist()
    }


@pytest.fixture(scope="module")
def full(photos, heads, tmp_path_factory):
    """The rows of a run that reads the images for the new head."""
    out = tmp_path_factory.mktemp("full") / "run"
    return score_here(out, photos, detectors=(heads["new-head"],), **SETTINGS)[1]


def assert_equal_but_for_rounding(rows, expected):
    """Equal rows, with scores that differ by no more than heads in fp32 do."""
    assert rows.keys() == expected.keys()
    for uri, row in rows.items():
        assert row["image_id"] == expected[uri]["image_id"]
        left, right = comparable(row), comparable(expected[uri])
        for name in ("scores", "score", "probability"):
            values = [
                (one.pop(name) or {}) if name == "scores" else one.pop(name)
                for one in (left, right)
            ]
            assert values[0] == pytest.approx(values[1], abs=1e-4)
        assert left == right, uri


def test_head_on_kept_embeddings_gives_rows_of_a_full_run(kept, full, heads, s3, tmp_path):
    s3.clear_log()
    _, rows = score_here(tmp_path / "run", f"features::{kept}", detectors=(heads["new-head"],))
    assert_equal_but_for_rounding(rows, full)
    assert len({row["score"] for row in rows.values() if row["score"] is not None}) == GOOD
    assert (tmp_path / "run" / "report.html").is_file()
    assert not s3.requests(), "an image was requested"


def test_embeddings_on_an_object_store_are_scored(photos, full, heads, s3, tmp_path):
    bucket = s3.bucket("kept")
    score_here(
        f"{bucket}/run", photos, detectors=(heads["unifd"],), features=("unifd",), **SETTINGS
    )
    s3.clear_log()
    source, heads_given = f"features::{bucket}/run", (heads["new-head"],)
    _, rows = score_here(f"{bucket}/new", source, detectors=heads_given)
    assert_equal_but_for_rounding(rows, full)
    assert not [path for method, path in s3.requests() if "/photos/" in path]
    assert verify_run(RunDirectory.open(f"{bucket}/new")).current == len(full)


def test_two_heads_score_without_the_backbone(kept, heads, tmp_path):
    """Only the own files of the cards are there: the backbone is known by its hash."""
    cards = []
    for name in ("unifd", "new-head"):
        card = load_card(heads[name])
        gone = {"uri": str(tmp_path / "gone.safetensors")}
        weights = card.backbone.weights.model_copy(update=gone)
        backbone = card.backbone.model_copy(update={"weights": weights})
        alone = card.model_copy(update={"backbone": backbone})
        cards.append(str(write_card(alone, tmp_path / f"{name}.yaml")))
    _, rows = score_here(tmp_path / "run", f"features::{kept}", detectors=tuple(cards))
    scores = [row["scores"] for row in rows.values() if row["status"] == "ok"]
    assert all(set(one) == {"unifd", "new-head"} for one in scores)
    before = rows_of(kept)
    for uri, row in rows.items():
        if row["status"] == "ok" and row["scores"]["unifd"] is not None:
            expected = before[uri]["scores"]["unifd"]
            assert row["scores"]["unifd"] == pytest.approx(expected, abs=1e-4)


def test_incomplete_copy_of_a_manifest_does_not_count(kept, tmp_path):
    """The manifest has portions, whose own marks would make it an open one."""
    source, target = Store.open(str(kept)), Store.open(str(tmp_path / "new"))
    copy_manifest(source, 0, target)
    target.delete("manifest/0/_complete")
    assert listed_manifests(target) == ([], None)
    copy_manifest(source, 0, target)
    assert read_complete(target, 0) == read_complete(source, 0)
    assert list(read_blocks(target, 0)) == list(read_blocks(source, 0))


def test_identifier_option_names_generators_of_images(photos, heads, tmp_path):
    facts = embedding_facts(load_card(heads["unifd"]), precision="fp32", resize="exact")
    weight = np.random.default_rng(0).normal(size=(2, facts["width"]))
    card = make_identifier(tmp_path / "card", ("sd-1.5", "sdxl"), weight, "unifd", facts)
    settings = {"detectors": (heads["unifd"],), "identifier": str(card)}
    _, rows = score_here(tmp_path / "run", photos, **settings, **SETTINGS)
    names = [row["predicted_generator"] for row in rows.values() if row["status"] == "ok"]
    assert len(names) == GOOD
    assert set(names) == {"sd-1.5", "sdxl"}
    finished, again = score_here(tmp_path / "run", photos, **SETTINGS, ensemble=None)
    assert (finished.summary["session"]["rows"], again) == (0, rows)


def test_heads_of_other_embeddings_are_refused(kept, heads, tmp_path):
    for head, message in (
        (heads["stranger"], "sha256: the head needs"),
        ("touchstone-tiny", "touchstone-tiny: its head was not fitted on embeddings like those"),
    ):
        with pytest.raises(ConfigError, match=message):
            score_here(tmp_path / "run", f"features::{kept}", detectors=(head,))
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match="is the run that keeps the embeddings"):
        score_here(kept, f"features::{kept}", detectors=(heads["new-head"],))


def test_embeddings_are_of_every_image_that_has_pixels_and_say_what_they_are(kept):
    rows = rows_of(kept)
    good = {row["image_id"] for row in rows.values() if row["status"] == "ok"}
    files = sorted((kept / "features" / "unifd" / "00000").iterdir())
    assert {
        image_id for file in files for image_id in pq.read_table(file)["image_id"].to_pylist()
    } == good
    assert len(files) > 1, "one per block"
    facts = json.loads(pq.read_schema(files[0]).metadata[FACTS])
    assert (facts["backbone"], facts["precision"], facts["resize"], facts["width"]) == (
        "openai-clip-vit-l14",
        "fp32",
        "exact",
        32,
    )
    assert json.loads((kept / "run.json").read_text())["identity"]["features"] == ["unifd"]


def test_a_pool_of_its_own_keeps_the_same(kept, photos, heads, tmp_path):
    out = tmp_path / "split"
    finished, _ = score_here(
        out, photos, detectors=("touchstone-tiny", heads["alone"]), features=("unifd",), **SETTINGS
    )
    assert finished.summary["session"]["layout"] == "split"
    again, before = vectors_of(out, "unifd"), vectors_of(kept, "unifd")
    assert again.keys() == before.keys()
    for image_id, vector in again.items():
        assert vector == pytest.approx(before[image_id], abs=1e-4)


def test_unknown_names_and_other_features_are_refused(photos, kept, heads, tmp_path):
    config = ScoreConfig(
        source=(photos,), out=str(tmp_path / "run"), detectors=(heads["unifd"],), features=("clip",)
    )
    with pytest.raises(ConfigError, match="--features clip: not a detector of this run"):
        score_archive(config)
    with pytest.raises(IdentityError, match="features"):
        score_archive(
            ScoreConfig(
                source=(photos,),
                out=str(kept),
                detectors=(heads["unifd"], "touchstone-tiny"),
                features=(),
                **SETTINGS,
            )
        )
    assert not (tmp_path / "run").exists()
