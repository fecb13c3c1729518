"""One table of labels, however a spreadsheet or a program saves it."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_app.archives.label_tables import LabelTable, match_columns
from ray_app.errors import ConfigError

ROWS = [{"uri": "größe/1.jpg", "label": "real"}, {"uri": "a,b;c.jpg", "label": "1.0"}]


def separated(mark, names=("uri", "label")):
    lines = [mark.join(names), *(mark.join(f'"{value}"' for value in row.values()) for row in ROWS)]
    return "".join(f"{line}\r\n" for line in lines)


@pytest.fixture
def saved(tmp_path):
    def save(name, content):
        place = tmp_path / name
        place.write_bytes(content)
        return LabelTable(str(place))

    return save


@pytest.mark.parametrize(
    ("name", "mark", "encoding"),
    [
        ("labels.csv", ",", "utf-8"),
        ("labels.csv", ";", "utf-8-sig"),
        ("labels.csv", "\t", "utf-16"),
        ("labels.csv", "|", "utf-16-le"),
        ("labels.tsv", "\t", "utf-16"),
        ("labels.TSV", "\t", "utf-8"),
        ("labels.txt", "\t", "utf-16"),
    ],
)
def test_labels_of_any_separator_and_encoding_are_read(saved, name, mark, encoding):
    table = saved(name, separated(mark).encode(encoding))
    assert pa.concat_tables(table.tables(["uri", "label"])).to_pylist() == ROWS
    assert table.read().to_pylist() == ROWS


@pytest.mark.parametrize("names", [("URI", "Label"), (" uri ", "LABEL"), ("Uri", "label")])
def test_label_columns_are_found_in_any_case(saved, names):
    table = saved("labels.csv", separated(";", names).encode())
    assert table.column_names == list(names)
    assert pa.concat_tables(table.tables(["label", "uri"])).column_names == ["label", "uri"]


def test_label_columns_of_json_and_parquet_are_found_in_any_case(saved, tmp_path):
    rows = [{"URI": "a.jpg", "Label": 1, "Mask URI": None}, {"URI": "b.jpg", "Label": True}]
    table = saved("labels.jsonl", "\n".join(map(json.dumps, rows)).encode())
    found = pa.concat_tables(table.tables(["uri", "label", "mask_uri"])).to_pylist()
    expected = [{"uri": "a.jpg", "label": "1"}, {"uri": "b.jpg", "label": "true"}]
    assert found == [row | {"mask_uri": None} for row in expected]
    path = tmp_path / "labels.parquet"
    pq.write_table(pa.Table.from_pylist([{"URI": "a.jpg", "Label": 1.0}]), path)
    [table] = LabelTable(str(path)).tables(["label"])
    assert table.to_pylist() == [{"label": 1.0}]


def test_label_column_of_json_that_begins_late_is_found(saved):
    rows = [*({"url": str(number)} for number in range(70_000)), {"url": "last", "label": "fake"}]
    table = saved("urls.jsonl", "\n".join(map(json.dumps, rows)).encode())
    assert table.column_names == ["url", "label"]
    assert pa.concat_tables(table.tables(["label"]))["label"].to_pylist()[-1] == "fake"


def test_label_numbers_of_json_have_no_fraction(saved):
    table = saved(
        "labels.jsonl",
        b'{"image_id": 12.0, "label": 1.0, "share": 0.5}\n{"image_id": null, "label": 0}',
    )
    assert table.read().to_pylist() == [
        {"image_id": "12", "label": "1", "share": "0.5"},
        {"image_id": None, "label": "0", "share": None},
    ]


def test_label_columns_without_a_name_are_left_out(saved):
    table = saved("urls.csv", b";url;label;;\n0;http://x/1.jpg;real;;\n1;http://x/2.jpg;fake;;\n")
    assert table.column_names == ["url", "label"]
    assert table.read().to_pylist() == [
        {"url": "http://x/1.jpg", "label": "real"},
        {"url": "http://x/2.jpg", "label": "fake"},
    ]


def test_label_column_named_twice_is_refused(saved):
    with pytest.raises(ConfigError, match="name each column once, but is: 'url', 'label', 'label'"):
        saved("urls.csv", b"url,label,label\na,real,fake\n").read()


def test_label_column_of_the_exact_name_wins():
    assert match_columns(["Label", "label"], ["label"], "labels.csv") == {"label": "label"}
    with pytest.raises(ConfigError, match="may be any of Label, LABEL"):
        match_columns(["Label", "LABEL"], ["label"], "labels.csv")


def test_label_column_that_is_missing_is_refused(saved):
    with pytest.raises(ConfigError, match="no column 'label'") as refused:
        list(saved("labels.csv", b"path;truth\na.jpg;real\n").tables(["label"]))
    assert refused.value.hint == "check the names of its columns: path, truth"


@pytest.mark.parametrize("rows", [1, 200_000])
def test_labels_of_another_encoding_are_refused(saved, rows):
    text = (
        "uri,label,generator\n"
        + "a-file-with-a-long-name.jpg,fake,flux\n" * rows
        + "b.jpg,real,Müller\n"
    )
    with pytest.raises(ConfigError, match=r"labels\.csv: its text is not UTF-8") as refused:
        saved("labels.csv", text.encode("cp1252")).read()
    assert "save it as UTF-8" in refused.value.hint


@pytest.mark.parametrize("content", [b"", b"\n"])
def test_labels_of_an_empty_file_are_refused(saved, content):
    with pytest.raises(ConfigError, match=r"labels\.csv: "):
        saved("labels.csv", content).read()
