"""Embeddings kept by a run, and another head on them: the rows of a full run, without an image."""

import json

import numpy as np
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from PIL import Image

from benchmarks.photographs import write_photographs
from benchmarks.seeded import seeded_card, write_card
from ray_app.archives import copy_manifest, list_manifests, read_blocks, read_complete
from ray_app.detectors import load_card
from ray_app.detectors.linear_head import embedding_facts
from ray_app.ensembles import build_ensemble
from ray_app.errors import ConfigError, DetectorError, IdentityError
from ray_app.images import ImageLimits
from ray_app.inference import make_spec
from ray_app.runs import RunDirectory, verify_run
from ray_app.runs.artifacts import FACTS
from ray_app.scoring import ScoreConfig
from ray_app.scoring.embeddings import select_embeddings
from ray_app.scoring.identity import resolve
from ray_app.scoring.run import score_archive
from ray_app.storage import Store
from tests.make.cards import small_cards, write_ensemble
from tests.make.profiles import make_identifier
from tests.make.runs import comparable, rows_of, score_here

SETTINGS = {"block_members": 4, "precision": "fp32"}
GOOD = 7
CLOSE = {"abs": 1e-4}  # what heads in fp32 differ by


@pytest.fixture(scope="module")
def photos(s3, tmp_path_factory):
    """A bucket of some photographs, a file that is none, and an image too thin to be scored."""
    folder = tmp_path_factory.mktemp("rescoring") / "photos"
    write_photographs(folder, GOOD, size=(240, 230))
    (folder / "broken.jpg").write_bytes(b"no image")
    Image.new("L", (2, 300), 90).save(folder / "thin.png")
    return f"{upload(s3, folder, 'rescored')}/photos"


def upload(s3, folder, bucket):
    """Put a folder into a bucket of its own, whose URL is returned."""
    url = s3.bucket(bucket)
    for path in folder.rglob("*"):
        if path.is_file():
            key = str(path.relative_to(folder.parent))
            s3.client().upload_file(str(path), bucket, key)
    return url


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    """Cards: two heads on one backbone, one that stands in a process of its own, and one on another
    backbone; and one without an embedding.
    """
    folder = tmp_path_factory.mktemp("heads")
    small = {card.name: card for card in small_cards()}
    unifd = small["unifd"]
    base = seeded_card(unifd, folder / "base")
    other = seeded_card(unifd.model_copy(update={"name": "new-head"}), folder / "own", seed=7)
    new = other.model_copy(update={"backbone": base.backbone})
    stranger = seeded_card(
        unifd.model_copy(update={"name": "stranger"}), folder / "stranger", seed=3
    )
    maskclip = seeded_card(small["maskclip"], folder / "maskclip")
    alone = base.model_copy(update={"own_pool": True})
    written = {
        card.name: str(write_card(card, folder / f"{card.name}.yaml"))
        for card in (base, new, stranger, maskclip)
    }
    return written | {"alone": str(write_card(alone, folder / "alone.yaml"))}


@pytest.fixture(scope="module")
def kept(photos, heads, tmp_path_factory):
    """A run that kept what its first detector's backbone says."""
    out = tmp_path_factory.mktemp("kept") / "run"
    detectors = (heads["unifd"], "touchstone-tiny")
    score_here(out, photos, detectors=detectors, features=("openai-clip-vit-l14",), **SETTINGS)
    return out


def vectors_of(run, name):
    """The kept vectors by image id."""
    table = pyarrow.dataset.dataset(run / "features" / name).to_table()
    return {row["image_id"]: row["vector"] for row in table.to_pylist()}


def test_head_on_kept_embeddings_gives_rows_of_a_full_run(kept, photos, heads, s3, tmp_path):
    """The run that keeps the embeddings is in a bucket, and so is the new one."""
    new_head = {"detectors": (heads["new-head"],)}
    _, full = score_here(tmp_path / "full", photos, **new_head, **SETTINGS)
    bucket = upload(s3, kept, "kept")
    s3.clear_log()
    _, rows = score_here(f"{bucket}/new", f"features::{bucket}/run", **new_head)
    assert not [path for method, path in s3.requests() if "/photos/" in path]
    assert rows.keys() == full.keys()
    for uri, row in rows.items():
        assert row["image_id"] == full[uri]["image_id"]
        left, right = comparable(row), comparable(full[uri])
        for name in ("scores", "score", "probability"):
            assert (left.pop(name) or {}) == pytest.approx(right.pop(name) or {}, **CLOSE)
        assert left == right, uri
    assert len({row["score"] for row in rows.values() if row["score"] is not None}) == GOOD
    new = RunDirectory.open(f"{bucket}/new")
    assert verify_run(new).current == len(full)
    assert new.store.exists("report.html")


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
    before = rows_of(kept)
    for uri, row in rows.items():
        if row["status"] == "ok":
            assert set(row["scores"]) == {"unifd", "new-head"}
            expected = before[uri]["scores"]["unifd"]
            assert row["scores"]["unifd"] == pytest.approx(expected, **CLOSE)


def test_incomplete_copy_of_a_manifest_does_not_count(kept, tmp_path):
    """The manifest has portions, whose own marks would make it an open one."""
    source, target = Store.open(str(kept)), Store.open(str(tmp_path / "new"))
    copy_manifest(source, 0, target)
    target.delete("manifest/0/_complete")
    assert list_manifests(target) == ([], None)
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
    for head, out, message in (
        ("stranger", tmp_path / "run", "sha256: the head needs"),
        ("touchstone-tiny", tmp_path / "run", "its head was not fitted on embeddings like those"),
        ("new-head", kept, "is the run that keeps the embeddings"),
    ):
        with pytest.raises(ConfigError, match=message):
            score_here(out, f"features::{kept}", detectors=(heads.get(head, head),))
    assert not (tmp_path / "run").exists()


def test_kept_embeddings_state_what_made_them(kept):
    rows = rows_of(kept)
    good = {row["image_id"] for row in rows.values() if row["status"] == "ok"}
    files = sorted((kept / "features" / "unifd" / "00000").iterdir())
    assert vectors_of(kept, "unifd").keys() == good
    assert len(files) > 1, "one per block"
    facts = json.loads(pq.read_schema(files[0]).metadata[FACTS])
    stated = {"backbone": "openai-clip-vit-l14", "precision": "fp32", "resize": "exact"}
    assert {name: facts[name] for name in (*stated, "width")} == stated | {"width": 32}
    assert json.loads((kept / "run.json").read_text())["identity"]["features"] == ["unifd"]


def test_detector_in_its_own_pool_keeps_the_same_embeddings(kept, photos, heads, tmp_path):
    out, detectors = tmp_path / "split", ("touchstone-tiny", heads["alone"])
    finished, _ = score_here(out, photos, detectors=detectors, features=("unifd",), **SETTINGS)
    assert finished.summary["session"]["layout"] == "split"
    again, before = vectors_of(out, "unifd"), vectors_of(kept, "unifd")
    assert again.keys() == before.keys()
    for image_id, vector in again.items():
        assert vector == pytest.approx(before[image_id], **CLOSE)


def test_features_without_embeddings_of_all_images_are_refused(photos, kept, heads, tmp_path):
    config = ScoreConfig(source=(photos,), out=str(tmp_path / "run"), detectors=(heads["unifd"],))
    with pytest.raises(ConfigError, match="--features clip: not a detector of this run"):
        score_archive(config.model_copy(update={"features": ("clip",)}))
    assert not (tmp_path / "run").exists()
    both = {"detectors": (heads["unifd"], "touchstone-tiny"), "features": ()}
    with pytest.raises(IdentityError, match="features"):
        score_archive(ScoreConfig(source=(photos,), out=str(kept), **both, **SETTINGS))
    spec = make_spec(build_ensemble([heads["maskclip"]]), limits=ImageLimits())
    with pytest.raises(DetectorError, match="no embedding"):
        select_embeddings(spec, ["maskclip"])
    cascade = {"rule": "cascade", "cascade": {"first": 1, "band": [-1, 1]}}
    two = write_ensemble(tmp_path / "two.yaml", ("touchstone-tiny", heads["unifd"]), **cascade)
    spec = resolve(ScoreConfig(ensemble=str(two), precision="fp32")).spec(gpus=0)
    assert list(select_embeddings(spec, ["touchstone-tiny"])) == ["touchstone-tiny"]
    for name in ("unifd", "openai-clip-vit-l14"):
        with pytest.raises(ConfigError, match="sees only images of the cascade"):
            select_embeddings(spec, [name])
