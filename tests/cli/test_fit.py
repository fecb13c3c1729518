"""`detectors fit` from a labels file to a card that scores."""

import csv
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from ray_app.cli.train import fit, read_labels
from ray_app.detectors import load_card, load_detector
from ray_app.errors import ConfigError
from tests.detectors.conftest import one_thread  # noqa: F401  (an autouse fixture of that folder)
from tests.detectors.small_clip import small_card


@pytest.fixture
def archive(tmp_path):
    """A small detector, and a folder of dark (real) and bright (fake) images of several sizes."""
    base = tmp_path / "base"
    base.mkdir()
    _, card = small_card(base)
    folder = tmp_path / "images"
    folder.mkdir()
    random = np.random.default_rng(0)
    rows = []
    for index in range(24):
        side = 28 + index % 3 * 9
        pixels = random.integers(0, 60 + 150 * (index % 2), (side, side + 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
        rows.append({"uri": f"images/{index}.png", "label": ("real", "fake")[index % 2]})
    return tmp_path, card, rows


def written(path, rows):
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows))
    else:
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)
    return path


def run(card, labels, out, *more):
    return fit.main([str(card), "--labels", str(labels), "--out", str(out), *more], standalone_mode=False)


@pytest.mark.parametrize("classifier", ["svm", "logistic"])
def test_from_labels_to_a_detector(archive, capsys, classifier):
    folder, base, rows = archive
    out = folder / "head"
    assert run(base, written(folder / "mine.csv", rows), out, "--classifier", classifier) == 0
    told = capsys.readouterr().out
    assert "12 real and 12 fake" in told
    assert "cross-validated ROC AUC 1.000 (mean of 5 folds, 1.000 to 1.000); each image was judged by a head that did not see it" in told
    assert f"--detector {out / 'card.yaml'}" in told
    assert sorted(path.name for path in out.iterdir()) == ["card.yaml", "features.npz", "weights.pth"]

    card = load_card(out / "card.yaml")
    assert card.name == f"small-clip-{classifier}"
    assert card.training_data.name == "mine.csv"
    detector = load_detector(card)
    prepared = np.stack([detector.prepare(Image.open(folder / row["uri"]).convert("RGB")) for row in rows])
    assert np.array_equal(detector.score(prepared) > 0, [row["label"] == "fake" for row in rows])


def test_a_second_fit_reads_no_feature_twice(archive):
    folder, base, rows = archive
    labels = written(folder / "mine.csv", rows)
    run(base, labels, folder / "head")
    before = (folder / "head" / "features.npz").stat().st_mtime_ns
    run(base, labels, folder / "head", "--classifier", "logistic", "--name", "second")
    assert (folder / "head" / "features.npz").stat().st_mtime_ns == before
    assert load_card(folder / "head" / "card.yaml").name == "second"


def test_what_cannot_be_read_is_told_and_counted(archive, capsys):
    folder, base, rows = archive
    (folder / "images" / "0.png").write_bytes(b"")
    (folder / "images" / "1.png").write_bytes(b"not an image at all")
    rows.append({"uri": "images/absent.png", "label": "fake"})
    rows.append(dict(rows[5]))
    assert run(base, written(folder / "mine.csv", rows), folder / "head") == 0
    captured = capsys.readouterr()
    assert "3 of 26 images could not be read" in captured.err
    assert "1 of 26 rows repeat an image" in captured.err
    for name, status in (("0", "empty_file"), ("1", "unsupported_format"), ("absent", "source_missing")):
        assert any(f"{name}.png" in line and status in line for line in captured.err.splitlines())
    assert "11 real and 11 fake" in captured.out


def test_groups_are_kept_together_and_said(archive, capsys):
    folder, base, rows = archive
    grouped = [row | {"group": f"scene {index // 4}"} for index, row in enumerate(rows)]
    run(base, written(folder / "mine.csv", grouped), folder / "head")
    assert "saw neither it nor any of its group" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_labels_in_every_format(tmp_path, suffix):
    numbers = suffix != ".csv"
    rows = [{"uri": "a.png", "label": 0 if numbers else "Real"}, {"uri": "/there/b.png", "label": 1 if numbers else "FAKE"}]
    rows.append({"uri": "s3://bucket/c.png", "label": 1 if numbers else "1"})
    found = read_labels(str(written(tmp_path / f"mine{suffix}", rows)))
    assert [row.uri for row in found] == [f"{tmp_path}/a.png", "/there/b.png", "s3://bucket/c.png"]
    assert [row.label for row in found] == [0, 1, 1]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"uri": "a.png", "label": "genuine"}], "row 1: label 'genuine'"),
        ([{"uri": "a.png", "label": "real"}, {"uri": "", "label": "fake"}], "row 2: `uri` and `label` are needed"),
        ([{"image": "a.png", "label": "real"}], "row 1: `uri` and `label` are needed"),
        ([{"uri": "a.png", "label": "real", "group": "x"}, {"uri": "b.png", "label": "real", "group": ""}], "some rows have a group"),
    ],
)
def test_labels_that_are_not_understood_are_told_by_row(tmp_path, rows, said):
    path = written(tmp_path / "mine.csv", rows)
    with pytest.raises(ConfigError) as caught:
        read_labels(str(path))
    assert caught.value.message.startswith(str(path))
    assert said in caught.value.message


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("mine.txt", b"a real", "a .csv, .jsonl or .parquet file"),
        ("mine.jsonl", b"{", "cannot be read as labels"),
        ("mine.jsonl", b"3", "line 1 is no object"),
        ("mine.parquet", b"PAR1", "cannot be read as labels"),
        ("mine.csv", b"\xff\xfe\x00", "cannot be read as labels"),
    ],
)
def test_files_that_are_no_labels_are_refused(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=said):
        read_labels(str(tmp_path / name))


def test_a_labels_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"absent\.csv"):
        read_labels(str(tmp_path / "absent.csv"))


def test_one_class_is_refused_before_any_image_is_read(archive):
    folder, base, rows = archive
    labels = written(folder / "mine.csv", [row | {"uri": "nowhere.png", "label": "real"} for row in rows])
    with pytest.raises(ConfigError, match="0 fake"):
        run(base, labels, folder / "head")
    assert not (folder / "head").exists()


def test_too_few_readable_images_are_refused(archive, capsys):
    folder, base, rows = archive
    for index in range(1, 24, 2):
        (folder / "images" / f"{index}.png").write_bytes(b"")
    with pytest.raises(ConfigError, match="0 fake"):
        run(base, written(folder / "mine.csv", rows), folder / "head")
    assert "12 of 24 images could not be read" in capsys.readouterr().err


def test_one_image_with_two_labels_is_refused(archive):
    folder, base, rows = archive
    rows.append(rows[0] | {"label": "fake"})
    with pytest.raises(ConfigError, match="labelled both real and fake"):
        run(base, written(folder / "mine.csv", rows), folder / "head")


def test_a_name_that_no_card_can_have_is_refused_at_once(archive):
    folder, base, rows = archive
    with pytest.raises(ConfigError, match="--name"):
        run(base, written(folder / "mine.csv", rows), folder / "head", "--name", "My Head!")
    assert not (folder / "head").exists()


def test_an_out_that_is_no_folder_here_is_refused(archive):
    folder, base, rows = archive
    with pytest.raises(ConfigError, match="--out"):
        run(base, written(folder / "mine.csv", rows), "s3://bucket/head")
