import csv
import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq

from ray_app.runs.table_files import to_json_value, write_tables
from ray_app.storage import Store
from tests.datajobs.shards.archives import HOSTILE


def test_every_value_becomes_json():
    value = {"a": [1, 2.5, float("nan"), b"\x00\xff"], "c": None, "d": True}
    value["b"] = {"when": datetime(2020, 1, 2, tzinfo=UTC)}
    expected = {"a": [1, 2.5, None, "AP8="], "c": None, "d": True}
    expected["b"] = {"when": "2020-01-02T00:00:00+00:00"}
    assert json.loads(json.dumps(to_json_value(value), allow_nan=False)) == expected


def test_every_type_and_name_has_a_place_in_both_files(tmp_path):
    rows = [
        {"name": name, "tags": ["a", None], "nested": {"x": 1.5}, "raw": b"\xff", "price": Decimal("1.50"), "took": timedelta(seconds=2),
         "when": datetime(2020, 1, 2, tzinfo=UTC), "count": 3, "nothing": None}
        for name in HOSTILE
    ]  # fmt: skip
    table, store = pa.Table.from_pylist(rows), Store.open(str(tmp_path))
    assert write_tables(
        store, "list", table.schema, [table.slice(0, 2), table.slice(2)], forms=("parquet", "csv")
    ) == len(rows)
    assert pq.read_table(tmp_path / "list.parquet").to_pylist() == rows
    with (tmp_path / "list.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert tuple(row["name"].removeprefix("'") for row in found) == HOSTILE
    texts = {"tags": '["a", null]', "nested": '{"x": 1.5}', "raw": "/w==", "price": "1.50"}
    assert found[0].items() >= texts.items()


def test_names_are_no_formulas_of_a_spreadsheet(tmp_path):
    formulas = ["=1+1.jpg", "+1.jpg", "-1.jpg", "@x.jpg", "\t=1.jpg"]
    tame = ["a=1.jpg", "-5", "+1.5", "", None]
    names = [*formulas, *tame]
    columns = {"member": names, "=own": pa.array(names).dictionary_encode()}
    table = pa.table(columns | {"score": [-1.0] * len(names)})
    write_tables(Store.open(str(tmp_path)), "list", table.schema, [table], forms=("parquet", "csv"))
    assert pq.read_table(tmp_path / "list.parquet")["member"].to_pylist() == names
    with (tmp_path / "list.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["member", "'=own", "score"]
    shown = [*(f"'{name}" for name in formulas), *(name or "" for name in tame)]
    assert rows == [[name, name, "-1"] for name in shown]
