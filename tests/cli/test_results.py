"""`touchstone results`: what is shown of a run, in which order, and into which file it goes."""

import json

import pyarrow.csv
import pyarrow.parquet
import pytest

from ray_app.cli.main import main
from ray_app.runs import RunDirectory, current_rows
from tests.evaluation.evidence.conftest import photos, plain_run  # noqa: F401


def shown(capsys, *words):
    assert main(["results", *words, "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.fixture
def rows(plain_run):  # noqa: F811
    return list(current_rows(RunDirectory.open(plain_run)))


def test_rows_are_sorted_either_way_with_empty_ones_last(plain_run, rows, capsys):  # noqa: F811
    known = sorted(row["score"] for row in rows if row["score"] is not None)
    missing = [None] * (len(rows) - len(known))
    assert missing
    assert [row["score"] for row in shown(capsys, plain_run, "--sort", "score")] == known + missing
    assert [row["score"] for row in shown(capsys, plain_run, "--sort", "-score")] == known[::-1] + missing
    assert [row["score"] for row in shown(capsys, plain_run, "--sort", "-score", "--limit", "3")] == known[:-4:-1]


def test_conditions_hold_together(plain_run, rows, capsys):  # noqa: F811
    middle = sorted(row["score"] for row in rows if row["score"] is not None)[5]
    found = shown(capsys, plain_run, "--min-score", str(middle), "--match", "*photo-?.jpg")
    wanted = [row for row in rows if row["score"] is not None and row["score"] >= middle and row["uri"][-11:-5] == "photo-"]
    assert found
    assert [row["uri"] for row in found] == [row["uri"] for row in wanted]
    assert shown(capsys, plain_run, "--max-score", str(middle), "--min-score", str(middle + 1e-3)) == []
    assert {row["status"] for row in shown(capsys, plain_run, "--status", "ok")} == {"ok"}


def test_rows_since_a_time_or_for_so_long(plain_run, rows, capsys):  # noqa: F811
    last = max(row["scored_at"] for row in rows)
    expected = [row["uri"] for row in rows if row["scored_at"] >= last]
    assert [row["uri"] for row in shown(capsys, plain_run, "--since", last.isoformat())] == expected
    assert [row["uri"] for row in shown(capsys, plain_run, "--since", last.replace(tzinfo=None).isoformat())] == expected  # UTC
    assert len(shown(capsys, plain_run, "--since", "36500d")) == len(rows)
    assert shown(capsys, plain_run, "--since", "2100-01-01") == []


@pytest.mark.parametrize("ending", ["csv", "parquet"])
@pytest.mark.parametrize("least", ["-1000", "1000"], ids=["rows", "no rows"])
def test_rows_are_written_to_a_file_with_its_columns(plain_run, rows, ending, least, tmp_path, capsys):  # noqa: F811
    out = tmp_path / f"verdicts.{ending}"
    wanted = [row["image_id"] for row in rows if row["score"] is not None and row["score"] >= float(least)]
    assert main(["results", plain_run, "--min-score", least, "--sort", "-score", "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{len(wanted)} rows: {out}\n"
    table = pyarrow.csv.read_csv(out) if ending == "csv" else pyarrow.parquet.read_table(out)
    assert sorted(table["image_id"].to_pylist()) == sorted(wanted)
    assert {"uri", "verdict", "score"} <= set(table.column_names)
    assert ("scores.touchstone-tiny" in table.column_names) == (ending == "csv")
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--sort", "flags"], "one of image_id, uri"),
        (["--out", "verdicts.xlsx"], "the name ends with neither .csv nor .parquet"),
        (["--out", "verdicts.csv", "--json"], "choose one"),
        (["--since", "yesterday"], "neither a time such as"),
        (["--since", "99999999d"], "neither a time such as"),
    ],
)
def test_what_cannot_be_is_answered_with_what_can(words, said, plain_run, capsys):  # noqa: F811
    assert main(["results", plain_run, *words]) == 2
    assert said in capsys.readouterr().err
