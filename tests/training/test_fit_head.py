"""Labels of the images that a head is fitted to."""

import csv
import json

import pyarrow as pa
import pyarrow.parquet
import pytest

from ray_app.errors import ConfigError
from ray_app.training.fit_head import read_labels


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


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_labels_in_every_format(tmp_path, suffix):
    numbers = suffix != ".csv"
    rows = [
        {"uri": "a.png", "label": 0 if numbers else "Real"},
        {"uri": "/there/b.png", "label": 1 if numbers else "FAKE"},
    ]
    rows.append({"uri": "s3://bucket/c.png", "label": 1 if numbers else "1"})
    found = read_labels(str(written(tmp_path / f"mine{suffix}", rows)))
    assert [row.uri for row in found] == [f"{tmp_path}/a.png", "/there/b.png", "s3://bucket/c.png"]
    assert [row.label for row in found] == [0, 1, 1]


def test_labels_that_a_spreadsheet_saved_are_read(tmp_path):
    (tmp_path / "mine.csv").write_text(
        "URI;Label;Group\r\na.png;0.0;x\r\nb.png;1.0;y\r\n", encoding="utf-8-sig"
    )
    found = read_labels(str(tmp_path / "mine.csv"))
    assert [(row.uri, row.label, row.group) for row in found] == [
        (f"{tmp_path}/a.png", 0, "x"),
        (f"{tmp_path}/b.png", 1, "y"),
    ]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"uri": "a.png", "label": "genuine"}], "row 1: 'genuine' is not a label"),
        (
            [
                {"uri": "a.png", "label": "real", "group": "x"},
                {"uri": "b.png", "label": "real", "group": ""},
            ],
            "some rows have a group",
        ),
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
        ("mine.lst", b"a real", "not a file of labels"),
        ("mine.csv", b"uri;truth\na.png;real\n", "need the column `label`"),
        ("mine.parquet", b"PAR1", "cannot be read as a table"),
        ("absent.csv", None, r"absent\.csv"),
    ],
)
def test_files_that_are_no_labels_are_refused(tmp_path, name, content, said):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=said):
        read_labels(str(tmp_path / name))
