"""One table of labels, however a spreadsheet or a program saves it."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_app.archives.label_tables import LabelTable, match_columns
from ray_app.errors import ConfigError

ROWS = [{"uri": "größe/1.jpg", "label": "real"}, {"uri": "a,b;c.jpg", "label": "1.0"}]


def separated(mark, names=("uri", "label")):
    return (
        "\r\n".join(
            [
                mark.join(names),
                *(mark.join(f'"{row[name]}"' for name in ("uri", "label")) for row in ROWS),
            ]
        )
        + "\r\n"
    )


@pytest.fixture
def saved(tmp_path):
    def save(name, content):
        place = tmp_path / name
        place.write_bytes(content)
        return LabelTable(str(place))

    return save


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
def test_csv_is_read_with_any_separator_and_encoding(saved, mark, encoding):
    table = saved("labels.csv", separated(mark).encode(encoding))
    assert pa.concat_tables(table.tables(["uri", "label"])).to_pylist() == ROWS


@pytest.mark.parametrize("name", ["labels.tsv", "labels.txt", "labels.TSV"])
def test_text_of_a_spreadsheet_is_read(saved, name):
    assert saved(name, separated("\t").encode("utf-16")).read().to_pylist() == ROWS


@pytest.mark.parametrize("names", [("URI", "Label"), (" uri ", "LABEL"), ("Uri", "label")])
def test_columns_are_found_in_any_case(saved, names):
    table = saved("labels.csv", separated(";", names).encode())
    assert table.column_names == list(names)
    assert pa.concat_tables(table.tables(["label", "uri"])).column_names == ["label", "uri"]


def test_columns_are_found_in_json_and_parquet_in_any_case(saved, tmp_path):
    rows = [{"URI": "a.jpg", "Label": 1, "Mask URI": None}, {"URI": "b.jpg", "Label": True}]
    table = saved("labels.jsonl", "\n".join(map(json.dumps, rows)).encode())
    assert pa.concat_tables(table.tables(["uri", "label", "mask_uri"])).to_pylist() == [
        {"uri": "a.jpg", "label": "1", "mask_uri": None},
        {"uri": "b.jpg", "label": "true", "mask_uri": None},
    ]
    pq.write_table(
        pa.Table.from_pylist([{"URI": "a.jpg", "Label": 1.0}]), tmp_path / "labels.parquet"
    )
    assert [
        table.to_pylist()
        for table in LabelTable(str(tmp_path / "labels.parquet")).tables(["label"])
    ] == [[{"label": 1.0}]]


def test_json_column_that_begins_late_is_found(saved):
    rows = [*({"url": str(number)} for number in range(70_000)), {"url": "last", "label": "fake"}]
    table = saved("urls.jsonl", "\n".join(map(json.dumps, rows)).encode())
    assert table.column_names == ["url", "label"]
    assert pa.concat_tables(table.tables(["label"]))["label"].to_pylist()[-1] == "fake"


def test_whole_numbers_of_json_have_no_fraction(saved):
    table = saved(
        "labels.jsonl",
        b'{"image_id": 12.0, "label": 1.0, "share": 0.5}\n{"image_id": null, "label": 0}',
    )
    assert table.read().to_pylist() == [
        {"image_id": "12", "label": "1", "share": "0.5"},
        {"image_id": None, "label": "0", "share": None},
    ]


def test_columns_without_a_name_are_left_out(saved):
    table = saved("urls.csv", b";url;label;;\n0;http://x/1.jpg;real;;\n1;http://x/2.jpg;fake;;\n")
    assert table.column_names == ["url", "label"]
    assert table.read().to_pylist() == [
        {"url": "http://x/1.jpg", "label": "real"},
        {"url": "http://x/2.jpg", "label": "fake"},
    ]


def test_column_name_that_is_there_twice_is_refused(saved):
    with pytest.raises(ConfigError, match="name each column once: 'url', 'label', 'label'"):
        saved("urls.csv", b"url,label,label\na,real,fake\n").read()


def test_exact_column_name_wins_and_two_others_are_refused():
    assert match_columns(["Label", "label"], ["label"], "labels.csv") == {"label": "label"}
    with pytest.raises(ConfigError, match="may be any of Label, LABEL"):
        match_columns(["Label", "LABEL"], ["label"], "labels.csv")


def test_missing_column_is_reported_with_those_found(saved):
    with pytest.raises(ConfigError, match="no column 'label'") as refused:
        list(saved("labels.csv", b"path;truth\na.jpg;real\n").tables(["label"]))
    assert refused.value.hint == "its columns: path, truth"


@pytest.mark.parametrize("rows", [1, 200_000])
def test_other_encoding_is_refused_with_how_to_save(saved, rows):
    text = (
        "uri,label,generator\n"
        + "a-file-with-a-long-name.jpg,fake,flux\n" * rows
        + "b.jpg,real,Müller\n"
    )
    with pytest.raises(ConfigError, match=r"labels\.csv: its text is not UTF-8") as refused:
        saved("labels.csv", text.encode("cp1252")).read()
    assert "save it as UTF-8" in refused.value.hint


@pytest.mark.parametrize("content", [b"", b"\n"])
def test_empty_file_is_refused(saved, content):
    with pytest.raises(ConfigError, match=r"labels\.csv: "):
        saved("labels.csv", content).read()
