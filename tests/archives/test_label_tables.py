"""One table of labels, however a spreadsheet or a program saves it."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_app.archives.label_tables import LabelTable, match_columns
from ray_app.errors import ConfigError

ROWS = [{"uri": "größe/1.jpg", "label": "real"}, {"uri": "a,b;c.jpg", "label": "1.0"}]


def separated(mark, names=("uri", "label")):
    return "\r\n".join([mark.join(names), *(mark.join(f'"{row[name]}"' for name in ("uri", "label")) for row in ROWS)]) + "\r\n"


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
    pq.write_table(pa.Table.from_pylist([{"URI": "a.jpg", "Label": 1.0}]), tmp_path / "labels.parquet")
    assert [table.to_pylist() for table in LabelTable(str(tmp_path / "labels.parquet")).tables(["label"])] == [[{"label": 1.0}]]


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
    text = "uri,label,generator\n" + "a-file-with-a-long-name.jpg,fake,flux\n" * rows + "b.jpg,real,Müller\n"
    with pytest.raises(ConfigError, match=r"labels\.csv: its text is not UTF-8") as refused:
        saved("labels.csv", text.encode("cp1252")).read()
    assert "save it as UTF-8" in refused.value.hint


@pytest.mark.parametrize("content", [b"", b"\n"])
def test_empty_file_is_refused(saved, content):
    with pytest.raises(ConfigError, match=r"labels\.csv: "):
        saved("labels.csv", content).read()
