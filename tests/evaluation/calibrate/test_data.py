import numpy as np
import pyarrow as pa
import pytest

from benchmarks.evaluation import struct_of, write_run
from ray_app.detectors import load_card
from ray_app.detectors.card import Platt
from ray_app.detectors.card_sections import Fragility
from ray_app.ensembles.card import Cascade, EnsembleCard, EnsembleMember
from ray_app.errors import ConfigError
from ray_app.evaluation.calibrate.data import read_labelled
from tests.evaluation.calibrate.drawn import drawn
from tests.evaluation.calibrate.runs import labels_of, rows_of, run_of


def test_all_columns_of_labelled_images_are_read(tmp_path):
    images = drawn(30, 20)
    images.quality[:10] = np.arange(81, 91)
    told = {"source": [f"s{number // 2}" for number in range(50)], "part": ["fit"] * 50}
    told["phash"] = [f"{number:016x}" for number in range(50)]
    url = run_of(tmp_path / "run", images)
    found = read_labelled(url, labels_of(tmp_path / "labels.csv", images, **told))
    read = found.labelled
    assert read.image_id.tolist() == images.image_id.tolist()
    assert read.sha256 == list(images.sha256)
    assert read.fake.tolist() == images.fake.tolist()
    assert read.generator == images.generator
    assert (read.source, read.part, read.phash) == (told["source"], told["part"], told["phash"])
    assert np.array_equal(read.quality, images.quality, equal_nan=True)
    assert set(zip(read.format, read.width, read.height, strict=True)) == {("JPEG", 640, 480)}
    assert read.scores.keys() == images.scores.keys()
    for name, column in images.scores.items():
        assert read.scores[name].tolist() == column.tolist()
    assert found.names == ("coarse", "fine")
    assert [member.detector for member in found.members] == ["coarse", "fine"]
    assert found.decoders == {"a decoder"}
    assert found.remarks == ()


def test_raw_scores_are_read_if_the_ensemble_calibrates_them(tmp_path):
    images = drawn(30, 20)
    alone = {"fine": images.scores["fine"]}
    member = EnsembleMember(detector="fine", calibration=Platt(slope=2.0, intercept=1.0))
    card = EnsembleCard(name="one", title="", members=(member,))
    scores = 2.0 * alone["fine"].astype(np.float64) + 1
    columns = rows_of(images, scores=struct_of(alone), score=scores)
    url = write_run(tmp_path / "run", [columns], ["fine"], card.model_dump(mode="json")).store.url
    read = read_labelled(url, labels_of(tmp_path / "labels.csv", images)).labelled
    assert read.scores["fine"].tolist() == alone["fine"].tolist()


def test_unusable_images_are_left_out_with_reasons(tmp_path):
    images = drawn(30, 20)
    status = ["ok"] * 50
    status[3], status[4], status[40] = "corrupt_image", "corrupt_image", "empty_file"
    scores = {name: column.copy() for name, column in images.scores.items()}
    scores["fine"][[7, 8, 9]] = np.nan
    url = run_of(tmp_path / "run", images, status=status, scores=struct_of(scores))
    labelled = images.take(np.arange(1, 50))
    found = read_labelled(url, labels_of(tmp_path / "labels.csv", labelled))
    gone = [0, 3, 4, 7, 8, 9, 40]
    assert found.labelled.image_id.tolist() == [one for one in range(50) if one not in gone]
    assert found.left_out == {"corrupt_image": 2, "empty_file": 1, "no score of every detector": 3}
    assert found.remarks[0] == "1 row without a label, left out; for example /data/000000.jpg."
    assert "2 labelled images are left out: corrupt_image." in found.remarks
    only = read_labelled(url, labels_of(tmp_path / "labels.csv", labelled), detectors=("coarse",))
    assert len(only.labelled) == 46
    assert only.labelled.detectors == ("coarse",)
    assert [member.detector for member in only.before.members] == ["coarse"]


OUTSIDE = [number in (2, 35) for number in range(40)]
QUALITIES = [40 if outside else 90 for outside in OUTSIDE]
QUALITIES[7] = None
FLAGS = [["no_content"] if outside else ["grayscale"] for outside in OUTSIDE]


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"width": np.where(OUTSIDE, 20, 640).astype(np.int32)}, "outside a valid range"),
        ({"quality": QUALITIES}, "outside a valid range"),
        ({"flags": pa.array(FLAGS, pa.list_(pa.string()))}, "one colour, or nearly"),
    ],
    ids=["too small", "too compressed", "without content"],
)
def test_images_outside_the_range_of_a_card_are_left_out(tmp_path, monkeypatch, columns, reason):
    bounds = Fragility.model_validate({"abstains": {"jpeg_quality": {"below": 60}}})
    monkeypatch.setattr(
        "ray_app.evaluation.calibrate.data.try_load_card",
        lambda name: load_card(name).model_copy(update={"fragility": bounds}),
    )
    images = drawn(20, 20)
    images = type(images)(**{**vars(images), "scores": {"corvi2023": images.scores["fine"]}})
    url = run_of(tmp_path / "run", images, **columns)
    found = read_labelled(url, labels_of(tmp_path / "labels.csv", images))
    assert found.left_out == {reason: 2}
    assert found.labelled.image_id.tolist() == np.flatnonzero(~np.array(OUTSIDE)).tolist()


def test_labels_of_the_run_are_read_without_a_file(tmp_path):
    images = drawn(6, 6)
    own = pa.array(
        [{"label": "fake" if fake else "real", "generator": maker, "group": f"g{place % 3}", "part": None}
         for place, (fake, maker) in enumerate(zip(images.fake, images.generator, strict=True))]
    )  # fmt: skip
    found = read_labelled(run_of(tmp_path / "run", images, input=own), None)
    assert found.labelled.source == [f"g{place % 3}" for place in range(12)]
    assert found.labelled.generator == images.generator
    assert found.labelled.part == [None] * 12
    beside = labels_of(tmp_path / "labels.csv", images, part=["choose"] * 12)
    both = read_labelled(run_of(tmp_path / "again", images, input=own), beside)
    assert both.labelled.source[:2] == ["g0", "g1"]
    assert both.labelled.part[:2] == ["choose", "choose"]


def test_bytes_with_both_labels_are_refused(tmp_path):
    images = drawn(5, 5)
    sha256 = [*images.sha256[:9], images.sha256[0]]
    url = run_of(tmp_path / "run", images, sha256=sha256)
    with pytest.raises(ConfigError, match=f"labels real and fake, .* {sha256[0]}"):
        read_labelled(url, labels_of(tmp_path / "labels.csv", images))


def test_run_of_a_cascade_is_refused(tmp_path):
    images = drawn(5, 5)
    members = (EnsembleMember(detector="coarse"), EnsembleMember(detector="fine"))
    stages = {"rule": "cascade", "cascade": Cascade(first=1, band=(-1, 1))}
    card = EnsembleCard(name="c", title="c", members=members, **stages)
    url = run_of(tmp_path / "run", images, card.model_dump(mode="json"))
    with pytest.raises(ConfigError, match="a cascade scored it") as refused:
        read_labelled(url, labels_of(tmp_path / "labels.csv", images))
    assert "--detector A --detector B" in refused.value.hint


def test_missing_scores_and_foreign_labels_are_refused(tmp_path):
    images = drawn(5, 5)
    labels = labels_of(tmp_path / "labels.csv", images)
    url = run_of(tmp_path / "run", images)
    with pytest.raises(ConfigError, match="the run has no scores of npr") as refused:
        read_labelled(url, labels, detectors=("npr",))
    assert refused.value.hint == "use one of coarse, fine"
    other = type(images)(**{**vars(images), "image_id": images.image_id + 1_000})
    with pytest.raises(ConfigError, match="none of 10 labels matches a row"):
        read_labelled(url, labels_of(tmp_path / "others.csv", other))
    unread = run_of(tmp_path / "unread", images, status=["empty_file"] * 10)
    with pytest.raises(ConfigError, match="has a score of every detector") as refused:
        read_labelled(unread, labels)
    assert "10 labelled images are left out: empty_file." in refused.value.hint


def test_card_with_other_weights_is_refused(tmp_path):
    images = drawn(5, 5)
    images = type(images)(**{**vars(images), "scores": {"touchstone-tiny": images.scores["fine"]}})
    url = run_of(tmp_path / "run", images)
    labels = labels_of(tmp_path / "labels.csv", images)
    read_labelled(url, labels)
    path = tmp_path / "run" / "run.json"
    weights = f'"touchstone-tiny": {{"weights": "{"0" * 64}"}}'
    path.write_text(path.read_text().replace('"touchstone-tiny": {}', weights))
    with pytest.raises(ConfigError, match="touchstone-tiny: weights of its card changed since"):
        read_labelled(url, labels)
