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


def test_all_that_is_known_of_labelled_images_is_read(tmp_path):
    images = drawn(30, 20)
    images.quality[:10] = np.arange(81, 91)
    told = {
        "source": [f"s{number // 2}" for number in range(50)],
        "part": ["fit"] * 50,
        "phash": [f"{number:016x}" for number in range(50)],
    }
    url = run_of(tmp_path / "run", images)
    found = read_labelled(url, labels_of(tmp_path / "labels.csv", images, **told))
    read = found.labelled
    assert read.image_id.tolist() == images.image_id.tolist()
    assert read.sha256 == list(images.sha256)
    assert read.fake.tolist() == images.fake.tolist()
    assert read.generator == images.generator
    assert (read.source, read.part, read.phash) == (told["source"], told["part"], told["phash"])
    assert np.array_equal(read.quality, images.quality, equal_nan=True)
    assert (read.format, read.width.tolist(), read.height.tolist()) == (
        ["JPEG"] * 50,
        [640] * 50,
        [480] * 50,
    )
    assert {name: column.tolist() for name, column in read.scores.items()} == {
        name: one.tolist() for name, one in images.scores.items()
    }
    assert found.names == ("coarse", "fine")
    assert [member.detector for member in found.members] == ["coarse", "fine"]
    assert found.decoders == {"a decoder"}
    assert found.remarks == ()


def test_a_detector_s_own_scores_are_read_where_the_ensemble_of_it_alone_has_others(tmp_path):
    images = drawn(30, 20)
    alone = {"fine": images.scores["fine"]}
    card = EnsembleCard(
        name="one",
        title="",
        members=(EnsembleMember(detector="fine", calibration=Platt(slope=2.0, intercept=1.0)),),
    )
    columns = rows_of(
        images, scores=struct_of(alone), score=2.0 * alone["fine"].astype(np.float64) + 1
    )
    url = write_run(tmp_path / "run", [columns], ["fine"], card.model_dump(mode="json")).store.url
    read = read_labelled(url, labels_of(tmp_path / "labels.csv", images)).labelled
    assert read.scores["fine"].tolist() == alone["fine"].tolist()


def test_what_cannot_be_used_is_left_out_and_said(tmp_path):
    images = drawn(30, 20)
    status = ["ok"] * 50
    status[3], status[4], status[40] = "corrupt_image", "corrupt_image", "empty_file"
    scores = {name: column.copy() for name, column in images.scores.items()}
    scores["fine"][[7, 8, 9]] = np.nan
    url = run_of(tmp_path / "run", images, status=status, scores=struct_of(scores))
    labelled = images.take(np.arange(1, 50))
    found = read_labelled(url, labels_of(tmp_path / "labels.csv", labelled))
    gone = [0, 3, 4, 7, 8, 9, 40]
    assert found.labelled.image_id.tolist() == [
        number for number in range(50) if number not in gone
    ]
    assert found.left_out == {"corrupt_image": 2, "empty_file": 1, "no score of every detector": 3}
    assert found.remarks[0] == "1 row without a label, left out; for example /data/000000.jpg."
    assert "2 labelled images are left out: corrupt_image." in found.remarks
    only = read_labelled(url, labels_of(tmp_path / "labels.csv", labelled), detectors=("coarse",))
    assert len(only.labelled) == 46, "a detector that is left out is missed by nobody"
    assert only.labelled.detectors == ("coarse",)
    assert [member.detector for member in only.before.members] == ["coarse"]


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"width": pa.array([20 if number in (2, 35) else 640 for number in range(40)], pa.int32())}, "outside a valid range"),
        ({"quality": [40 if number in (2, 35) else None if number == 7 else 90 for number in range(40)]}, "outside a valid range"),
        ({"flags": pa.array([["no_content"] if number in (2, 35) else ["grayscale"] for number in range(40)], pa.list_(pa.string()))},
         "one colour, or nearly"),
    ],
)  # fmt: skip
def test_images_that_the_card_does_not_speak_for_are_left_out(
    tmp_path, monkeypatch, columns, reason
):
    """Smaller than a detector takes, compressed more than its card bears, or showing nothing."""
    bounds = Fragility.model_validate({"abstains": {"jpeg_quality": {"below": 60}}})
    monkeypatch.setattr(
        "ray_app.evaluation.calibrate.data.readable_card",
        lambda name: load_card(name).model_copy(update={"fragility": bounds}),
    )
    images = drawn(20, 20)
    images = type(images)(**{**vars(images), "scores": {"corvi2023": images.scores["fine"]}})
    found = read_labelled(
        run_of(tmp_path / "run", images, **columns), labels_of(tmp_path / "labels.csv", images)
    )
    assert found.left_out == {reason: 2}
    assert found.labelled.image_id.tolist() == [
        number for number in range(40) if number not in (2, 35)
    ]


def test_without_a_file_the_runs_own_columns_tell(tmp_path):
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
    assert (both.labelled.source[:2], both.labelled.part[:2]) == (
        ["g0", "g1"],
        ["choose", "choose"],
    )


def test_the_same_bytes_are_not_both(tmp_path):
    images = drawn(5, 5)
    sha256 = [*images.sha256[:9], images.sha256[0]]
    url = run_of(tmp_path / "run", images, sha256=sha256)
    with pytest.raises(
        ConfigError,
        match=f"1 files are labelled real in one place and fake in another, for example sha256 {sha256[0]}",
    ):
        read_labelled(url, labels_of(tmp_path / "labels.csv", images))


def test_a_run_of_a_cascade_is_no_fair_sample(tmp_path):
    images = drawn(5, 5)
    members = (EnsembleMember(detector="coarse"), EnsembleMember(detector="fine"))
    card = EnsembleCard(
        name="c", title="c", members=members, rule="cascade", cascade=Cascade(first=1, band=(-1, 1))
    )
    url = run_of(tmp_path / "run", images, card.model_dump(mode="json"))
    with pytest.raises(ConfigError, match="a cascade scored it") as refused:
        read_labelled(url, labels_of(tmp_path / "labels.csv", images))
    assert "--detector A --detector B" in refused.value.hint


def test_what_is_not_there_is_said(tmp_path):
    images = drawn(5, 5)
    labels = labels_of(tmp_path / "labels.csv", images)
    url = run_of(tmp_path / "run", images)
    with pytest.raises(ConfigError, match="the run has no scores of npr") as refused:
        read_labelled(url, labels, detectors=("npr",))
    assert refused.value.hint == "it has coarse, fine"
    other = type(images)(**{**vars(images), "image_id": images.image_id + 1_000})
    with pytest.raises(ConfigError, match="none of 10 labels belongs to a row"):
        read_labelled(url, labels_of(tmp_path / "others.csv", other))
    unread = run_of(tmp_path / "unread", images, status=["empty_file"] * 10)
    with pytest.raises(
        ConfigError, match="no labelled image has a score of every detector"
    ) as refused:
        read_labelled(unread, labels)
    assert "10 labelled images are left out: empty_file." in refused.value.hint


def test_another_card_of_the_same_name_is_not_what_was_scored(tmp_path):
    images = drawn(5, 5)
    images = type(images)(**{**vars(images), "scores": {"touchstone-tiny": images.scores["fine"]}})
    url = run_of(tmp_path / "run", images)
    labels = labels_of(tmp_path / "labels.csv", images)
    read_labelled(url, labels)
    path = tmp_path / "run" / "run.json"
    path.write_text(
        path.read_text().replace(
            '"touchstone-tiny": {}', f'"touchstone-tiny": {{"weights": "{"0" * 64}"}}'
        )
    )
    with pytest.raises(
        ConfigError,
        match="touchstone-tiny: its card has other weights than the run was scored with",
    ):
        read_labelled(url, labels)
