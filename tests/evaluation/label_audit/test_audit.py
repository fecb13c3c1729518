import csv
import io
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ray_app.archives import iter_blocks, read_block
from ray_app.datasets import DatasetSource, build_index
from ray_app.errors import ConfigError
from ray_app.evaluation.label_audit.audit import audit_labels, difference_text, headline
from ray_app.metrics.label_quality import Difference
from ray_app.reports.audit import labels_lines
from ray_app.runs import write_features
from ray_app.runs.artifacts import feature_rows
from ray_app.storage import Store
from tests.evaluation.labelled_run import planted_run, truth_of
from tests.runs.small_run import NAME, new_run, relist, score_blocks, write_files


def audited(folder, at="run", **settings):
    (folder / "out").mkdir(exist_ok=True)
    return audit_labels(str(folder / at), folder / "out", **settings)


def test_planted_flips_are_found(tmp_path):
    _, flips = planted_run(tmp_path / "run")
    document = audited(tmp_path, thumbnails=False)
    found = pq.read_table(tmp_path / "out" / "suspicious.parquet")
    precision, recall = truth_of(found["image_id"].to_numpy(), flips)
    print(f"labels: {len(flips)} of 2,000 flipped, {len(found)} doubted, precision {precision:.3f}, recall {recall:.3f}")
    assert precision > 0.9
    assert recall > 0.6
    assert found["confidence"].to_pylist() == sorted(found["confidence"].to_pylist(), reverse=True)
    assert all(one != other for one, other in zip(found["label"].to_pylist(), found["likely_label"].to_pylist(), strict=True))
    assert [one["image_id"] for one in document["suspicious"]["images"]] == found["image_id"].to_pylist()[:24]
    assert not document["shortcut"]["confounded"]


def test_a_planted_shortcut_is_named_first(tmp_path):
    planted_run(tmp_path / "run", flipped=0, shortcut=True)
    document = audited(tmp_path, thumbnails=False)
    assert document["headline"] == "All fakes are PNG, and none of the real images."
    assert document["differences"][0]["name"] == "format"
    assert document["shortcut"]["confounded"]
    assert {one["generator"] for one in document["generators"]} == {"flux", "sd-3", "dalle"}
    assert all(one["strongest"]["name"] == "format" for one in document["generators"])
    assert "Files alone tell the classes apart" in (tmp_path / "out" / "labels.html").read_text()


def test_nothing_alarming_is_said_of_a_clean_set(tmp_path):
    planted_run(tmp_path / "run", flipped=0, apart=5.0)
    document = audited(tmp_path, thumbnails=False)
    assert document["headline"] == "Nothing alarming in what could be looked at."
    assert [one for one in document["differences"] if one["strength"] != "none"] == []
    assert sum(document["suspicious"]["count"].values()) < 10
    assert json.loads((tmp_path / "out" / "labels.json").read_text()) == json.loads(json.dumps(document))


def test_detectors_that_cannot_tell_the_classes_doubt_nothing(tmp_path):
    planted_run(tmp_path / "run", apart=0.1)
    document = audited(tmp_path, thumbnails=False)
    assert "an AUC of 0.5" in document["suspicious"]["why"]
    assert not len(pq.read_table(tmp_path / "out" / "suspicious.parquet"))


def test_kept_embeddings_doubt_labels_that_a_file_gives(tmp_path):
    count, rng = 400, np.random.default_rng(0)
    truth, flips = rng.random(count) < 0.5, rng.random(count) < 0.05
    names = [f"{number:03}.png" for number in range(count)]
    run = new_run(tmp_path / "run")
    write_files(tmp_path / "files", names)
    relist(run, tmp_path / "files")
    score_blocks(run, 0)
    ids = {}
    for ref in iter_blocks(run.store, 0):
        block = read_block(run.store, ref)
        mine = np.array([int(uri[-7:-4]) for uri in block["uri"].to_pylist()])
        vectors = np.where(truth[mine], 1.0, -1.0)[:, None] + rng.normal(0, 1.5, (len(mine), 16))
        write_features(run, 0, ref.block, NAME, feature_rows(block["image_id"].to_numpy(), vectors.astype(np.float32), NAME, {"width": 16}))
        ids |= dict(zip(mine.tolist(), block["image_id"].to_pylist(), strict=True))
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image_id", "label", "generator", "group"])
        rows.writerows(
            [ids[k], "fake" if truth[k] ^ flips[k] else "real", "x" if truth[k] ^ flips[k] else "real", f"g{k // 2}"] for k in ids
        )
    run.store.write("summary.json", b"{}")
    document = audited(tmp_path, labels=str(tmp_path / "labels.csv"), thumbnails=False)
    found = pq.read_table(tmp_path / "out" / "suspicious.parquet")["image_id"].to_numpy()
    precision, recall = truth_of(found, np.array([ids[k] for k in np.flatnonzero(flips)]))
    assert document["suspicious"]["source"] == f"the embeddings of {NAME}"
    assert (precision > 0.9, recall > 0.8) == (True, True), (precision, recall)
    assert document["conflicts"][2]["values"] > 50  # groups with both labels: no mistake by itself
    with pytest.raises(ConfigError, match="keeps no embeddings of 'other'"):
        audited(tmp_path, labels=str(tmp_path / "labels.csv"), features="other")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """An index of 60 pictures, fakes PNG and reals JPEG; two files of the same bytes are labelled both ways."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(1)
    for label, form in (("real", "JPEG"), ("fake", "PNG")):
        (folder / "files" / label).mkdir(parents=True)
        for number in range(30):
            pixels = rng.integers(0, 255, (6, 8, 3), np.uint8)
            picture = Image.fromarray(pixels).resize((96, 72))
            picture.save(folder / "files" / label / f"{number}.{form.lower()}", form, **({"quality": 85} if form == "JPEG" else {}))
    (folder / "files" / "fake" / "copy.jpeg").write_bytes((folder / "files" / "real" / "0.jpeg").read_bytes())
    source = DatasetSource(at=[str(folder / "files")], layout="folders", hashes=("sha256", "phash"))
    build_index(source, Store.open(str(folder / "index")))
    return folder


def test_an_index_whose_files_are_read(pictures):
    document = audited(pictures, "index", read=True)
    assert document["headline"] == "1 file stands under both labels."
    first = document["differences"][0]
    assert (first["name"], first["value"]) == ("format", "PNG")
    assert first["text"] == "97 % of the fakes are PNG, and none of the real images."
    conflict = document["conflicts"][0]
    assert (conflict["kind"], conflict["values"], conflict["images"]) == ("bytes", 1, 2)
    assert sorted(one["uri"].rpartition("/")[2] for one in conflict["examples"][0]) == ["0.jpeg", "copy.jpeg"]
    assert {one["label"] for one in conflict["examples"][0]} == {"real", "fake"}
    page = (pictures / "out" / "labels.html").read_text()
    assert page.count("data:image/jpeg;base64,") >= 2
    assert document["suspicious"] is None
    assert not any("not known" in one for one in document["remarks"])


def test_an_index_alone_says_what_it_does_not_know(pictures):
    document = audited(pictures, "index", thumbnails=False)
    assert document["differences"][0]["name"] == "ending"
    assert any("--read reads them" in one for one in document["remarks"])
    assert any("labels RUN --labels INDEX" in line for line in labels_lines(document))


def test_what_cannot_be_joined_is_refused(pictures, tmp_path):
    with pytest.raises(ConfigError, match="nothing to join"):
        audited(pictures, "index", labels="x.csv")
    with pytest.raises(ConfigError, match="neither an index nor a run"):
        audit_labels(str(tmp_path / "nothing"), tmp_path)


def test_hostile_names_stay_text(tmp_path):
    planted_run(tmp_path / "run", 400)
    document = audited(tmp_path, thumbnails=False)
    document["suspicious"]["images"][0]["uri"] = "/x/<script>alert(1)</script>\u202e.png"
    from ray_app.reports.audit import render_labels

    page = render_labels(document, {document["suspicious"]["images"][0]["image_id"]: "bm8gSlBFRw=="})
    assert "<script>" not in page
    assert "\u202e" not in page
    assert io.StringIO(page).read().count("data:image/jpeg") == 0


def difference(name, value, real, fake):
    return Difference(name, 100, 100, abs(real - fake), 0.0, value, real, fake)


@pytest.mark.parametrize(
    ("one", "said"),
    [
        (difference("format", "PNG", 0, 1), "All fakes are PNG, and none of the real images."),
        (difference("camera", "none", 0.86, 1), "All fakes name no camera in EXIF, and 86 % of the real images."),
        (difference("icc", "present", 0.4, 0), "40 % of the real images have a colour profile, and none of the fakes."),
        (difference("mode", "L", 0.2, 0.005), "20 % of the real images have L as colour mode, and under 1 % of the fakes."),
        (difference("width", 1024.0, 0.3, 0.9), "90 % of the fakes have a width of at most 1,024 px, and 30 % of the real images."),
    ],
)
def test_a_difference_is_a_sentence(one, said):
    assert difference_text(one) == said


def test_doubts_are_counted_against_what_was_looked_at():
    suspicious = {"count": {"real": 3_000, "fake": 2_000}, "n": 100_000, "why": None}
    found = {"n": 1_000_000, "conflicts": [], "differences": [], "shortcut": {"confounded": False}, "suspicious": suspicious}
    assert headline(found) == "5,000 labels of 100,000 are worth a second look."
    assert headline(found | {"suspicious": suspicious | {"n": 1_000_000}}).startswith("Nothing alarming")
