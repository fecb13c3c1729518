import csv
import json

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_app.datasets.label_reader import (
    COLUMNS,
    LabelFile,
    LabelIndex,
    open_labels,
    parse_labels,
    read_input,
)
from ray_app.errors import ConfigError
from tests.make.datasets import made_index

ROWS = [
    {"uri": "b/1.jpg", "label": "real", "generator": "real:camera", "prompt": None},
    {"uri": "/abs/2.jpg", "label": "fake", "generator": "flux, dev", "prompt": 'a "red"\nfox'},
    {"uri": "s3://bucket/3.jpg", "label": "1", "generator": "нейросеть", "prompt": "=cmd()"},
    {"uri": "../up/4.jpg", "label": "0", "generator": None, "prompt": None},
]


def write(folder, kind, rows):
    path = folder / f"labels.{kind}"
    if kind == "csv":
        with path.open("w", newline="", encoding="utf-8-sig") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
    else:
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n", encoding="utf-8")
    return path


def save(folder, text, encoding="utf-8", name="labels.csv"):
    (folder / name).write_bytes(text.encode(encoding))
    return folder / name


def read(place, *columns):
    labels = open_labels(str(place))
    return pa.concat_tables(labels.tables(columns or labels.find_columns())).to_pylist()


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_labels_are_the_same_in_every_format(tmp_path, kind):
    path = write(tmp_path, kind, ROWS)
    rows = read(path)
    whole = [f"{tmp_path}/b/1.jpg", "/abs/2.jpg", "s3://bucket/3.jpg"]
    assert [row["uri"] for row in rows] == [*whole, f"{tmp_path.parent}/up/4.jpg"]
    assert [row["label"] for row in rows] == ["real", "fake", "fake", "real"]
    for name in ("generator", "prompt"):
        assert [row[name] for row in rows] == [row[name] for row in ROWS]
    assert open_labels(str(path)).find_columns() == [name for name in COLUMNS if name in ROWS[0]]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_missing_words_are_read_as_no_labels(tmp_path, kind):
    names = ("generator", "source", "group", "split", "kind", "mask_uri")
    rows = [
        {"uri": "/nan", "label": "fake", "prompt": "none", **dict.fromkeys(names, word)}
        for word in ("nan", "None", "NULL", "N/A", "", "-")
    ]
    for row in read(write(tmp_path, kind, rows)):
        assert row == {**rows[0], **dict.fromkeys(names)}


def test_labels_with_a_gap_are_read_from_pandas_floats(tmp_path):
    frame = pd.DataFrame({"image_id": [7, 8, np.nan], "label": [0, 1, np.nan]})
    frame.to_csv(tmp_path / "labels.csv")
    frame.to_parquet(tmp_path / "labels.parquet")
    frame.to_json(tmp_path / "labels.jsonl", orient="records", lines=True)
    for kind in ("csv", "parquet", "jsonl"):
        rows = read(tmp_path / f"labels.{kind}")
        assert [row["label"] for row in rows] == ["real", "fake", None], kind
        assert [row["image_id"] for row in rows] == [7, 8, None], kind


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("uri;label\r\n/a.jpg;real\r\n", "utf-8-sig"),
        ("uri\tlabel\r\n/a.jpg\treal\r\n", "utf-16"),
        ("URI,Label\n/a.jpg,real\n", "utf-8"),
        ("\ufeffURI;Label\r\n/a.jpg;0.0\r\n", "utf-16"),
    ],
    ids=["semicolons", "utf16", "capitals", "excel"],
)
def test_labels_of_a_spreadsheet_are_read(tmp_path, text, encoding):
    assert read(save(tmp_path, text, encoding)) == [{"uri": "/a.jpg", "label": "real"}]


def test_labels_in_another_encoding_are_refused_with_a_hint(tmp_path):
    path = save(tmp_path, "uri,label,generator\r\n/a.jpg,real,Müller\r\n", "cp1252")
    with pytest.raises(ConfigError, match="not UTF-8") as raised:
        read(path)
    assert "CSV UTF-8" in raised.value.hint


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_image_ids_keep_all_digits(tmp_path, kind):
    rows = [{"image_id": -(2**63), "label": 1}, {"image_id": 2**63 - 1, "label": 0}]
    assert [row["image_id"] for row in read(write(tmp_path, kind, rows))] == [-(2**63), 2**63 - 1]


def test_invalid_label_is_refused_with_its_row(tmp_path):
    rows = [{"uri": f"/{number}.jpg", "label": "real"} for number in range(70_000)]
    rows[69_000]["label"] = "synthetic"
    path = write(tmp_path, "csv", rows)
    with pytest.raises(ConfigError, match=r"labels\.csv, row 69001: 'synthetic' is not a label"):
        read(path)


@pytest.mark.parametrize(
    ("column", "labels"),
    [
        (pa.array([True, None, False]), ["fake", None, "real"]),
        (pa.array([1, 0], pa.int8()), ["fake", "real"]),
        (pa.array([1.0, None]), ["fake", None]),
        (pa.array([" Real ", "", "FAKE", "1.0", "0,0"]), ["real", None, "fake", "fake", "real"]),
        (pa.array(["fake", "real", "fake"]).dictionary_encode(), ["fake", "real", "fake"]),
        (pa.chunked_array([["real"], [], ["1"]]), ["real", "fake"]),
    ],
)
def test_parse_labels_reads_words_numbers_and_booleans(column, labels):
    assert parse_labels(column, "labels").to_pylist() == labels


def test_parse_labels_returns_further_words_if_named():
    column = pa.array(["Unsure", "real"])
    assert parse_labels(column, "answers", words=("unsure",)).to_pylist() == ["unsure", "real"]
    with pytest.raises(ConfigError, match="answers, row 5: 'Unsure' is not a label"):
        parse_labels(column, "answers", first_row=5)


def test_uris_are_written_as_runs_write_them(tmp_path):
    uris = {"file:///data/a.jpg": "/data/a.jpg", "/data/./b.jpg": "/data/b.jpg"}
    uris |= {"/data/x/../c.jpg": "/data/c.jpg"}
    uris |= {"https://h/p.jpg?X-Amz-Signature=1": "https://h/p.jpg"}
    uris |= {"https://h/p.jpg?st=1": "https://h/p.jpg?st=1"}
    uris |= {"file:x/d.jpg": f"{tmp_path}/x/d.jpg", "FILE:///data/e.jpg": "/data/e.jpg"}
    path = write(tmp_path, "jsonl", [{"uri": uri, "label": 1} for uri in uris])
    assert [row["uri"] for row in read(path, "uri")] == list(uris.values())
    [table] = LabelFile(str(path), resolves_uris=False).tables(["uri"])
    assert table["uri"].to_pylist() == list(uris)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("labels.csv", b"uri,uri,label\na,b,real\n", "each column once"),
        ("labels.csv", b"uri,label\n\xff\xfe.jpg,real\n", "its text is not UTF-8"),
        ("labels.jsonl", b'{"uri": "a", "label": 1}\n{"uri": \n', "line 2"),
        ("labels.csv", None, r"labels\.csv"),
        ("labels.parquet", b"PAR1 and nothing else", "cannot be read"),
        ("labels.csv", b"image_id,label\nx1,real\n", "column 'image_id'"),
        ("labels.lst", b"a.jpg real\n", "neither a file of labels nor an index"),
    ],
)
def test_unreadable_labels_are_refused(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read(tmp_path / name)


def test_nested_label_column_is_refused(tmp_path):
    path = write(tmp_path, "parquet", [{"uri": "/a.jpg", "label": {"name": "real"}}])
    with pytest.raises(ConfigError, match="column 'label' must have strings"):
        read(path)


def test_labels_from_elsewhere_may_not_name_local_masks(tmp_path):
    rows = [
        {"uri": "/data/1.jpg", "label": 1, "mask_uri": "m.png"},
        {"uri": "/data/2.jpg", "label": 1, "mask_uri": "/etc/hostname"},
    ]
    path = write(tmp_path, "csv", rows)
    masks = [row["mask_uri"] for row in read(path, "mask_uri")]
    assert masks == [f"{tmp_path}/m.png", "/etc/hostname"]
    with fsspec.open("memory://reader-elsewhere/labels.csv", "wb") as stream:
        stream.write(path.read_bytes())
    assert len(read("memory://reader-elsewhere/labels.csv", "uri")) == 2
    with pytest.raises(ConfigError, match="may not name the mask /etc/hostname"):
        read("memory://reader-elsewhere/labels.csv", "mask_uri")
    row = {"uri": "a", "label": 1, "mask_uri": "local:///etc/hostname"}
    with pytest.raises(ConfigError, match="may not name the mask local:///etc/hostname"):
        read(write(tmp_path, "jsonl", [row]), "mask_uri")


def test_index_is_read_like_a_file(tmp_path):
    rows = [
        {"label": "real", "generator": "real", "uri": "/1.png", "sha256": "a" * 64},
        {"label": "fake", "generator": "flux", "uri": "/2.png", "prompt": "a fox"},
    ]
    labels = open_labels(made_index(tmp_path / "index", rows))
    assert isinstance(labels, LabelIndex)
    assert labels.find_columns(["label", "kind", "prompt"]) == ["label", "prompt"]
    table = pa.concat_tables(labels.tables(labels.find_columns()))
    assert table.schema.field("image_id").type == pa.int64()
    for name in ("label", "generator", "uri", "sha256", "prompt"):
        assert table[name].to_pylist() == [row.get(name) for row in rows]


def test_read_input_prefers_the_name_of_a_class_label():
    inputs = [
        {"label": 1, "label_name": "real", "mask": None, "generator": "camera", "other": 3},
        {"label": 0, "label_name": "fake", "mask": "/m.png", "generator": "flux", "other": 4},
    ]
    table = read_input(pa.table({"input": pa.array(inputs)}), "the run")
    assert table.to_pydict() == {
        "label": ["real", "fake"],
        "generator": ["camera", "flux"],
        "mask_uri": [None, "/m.png"],
    }
    assert read_input(pa.table({"uri": ["/a"]}), "the run").column_names == []
    missing = read_input(pa.table({"input": pa.array([{"generator": "nan"}])}), "the run")
    assert missing["generator"].to_pylist() == [None]


def test_read_input_checks_only_the_requested_columns():
    rows = pa.table({"input": pa.array([{"label": 7, "prompt": "a fox"}])})
    assert read_input(rows, "the run", ["prompt"]).to_pydict() == {"prompt": ["a fox"]}
    with pytest.raises(ConfigError, match="the run, row 8: '7' is not a label"):
        read_input(rows, "the run", first_row=8)
