"""`touchstone results`: what is shown of a run, in which order, and into which file it goes."""

import json
import subprocess
import sys

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


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_rows_are_written_to_a_file(plain_run, rows, ending, tmp_path, capsys):  # noqa: F811
    out = tmp_path / f"verdicts.{ending}"
    assert main(["results", plain_run, "--sort", "-score", "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{len(rows)} rows: {out}\n"
    table = pyarrow.csv.read_csv(out) if ending == "csv" else pyarrow.parquet.read_table(out)
    assert sorted(table["image_id"].to_pylist()) == sorted(row["image_id"] for row in rows)
    assert ("scores.touchstone-tiny" in table.column_names) == (ending == "csv")
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_file_without_rows_has_its_columns(plain_run, ending, tmp_path, capsys):  # noqa: F811
    out = tmp_path / f"none.{ending}"
    assert main(["results", plain_run, "--min-score", "1000", "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"0 rows: {out}\n"
    table = pyarrow.csv.read_csv(out) if ending == "csv" else pyarrow.parquet.read_table(out)
    assert len(table) == 0
    assert {"uri", "verdict", "score"} <= set(table.column_names)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--status", "corupt_image"], "'corrupt_image'"),
        (["--sort", "scroe"], "there is no column scroe to sort by"),
        (["--sort", "flags"], "one of image_id, uri"),
        (["--out", "verdicts.xlsx"], "the name ends with neither .csv nor .parquet"),
        (["--out", "verdicts.csv", "--json"], "choose one"),
        (["--generator", "flux"], "this run named no generators"),
    ],
)
def test_what_cannot_be_is_answered_with_what_can(words, said, plain_run, capsys):  # noqa: F811
    assert main(["results", plain_run, *words]) == 2
    assert said in capsys.readouterr().err


def test_a_pipe_that_closes_early_is_no_error(plain_run):  # noqa: F811
    code = f"import sys; from ray_app.cli.main import main; sys.exit(main(['results', {plain_run!r}, '--json'] ))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(60) == 0
