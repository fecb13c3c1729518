"""`touchstone results`: what is shown of a run, in which order, and into which file it goes."""

import hashlib
import io
import json
import shutil
import tarfile
import zipfile
from pathlib import Path

import pyarrow.csv
import pyarrow.parquet
import pytest

from ray_app import __version__
from ray_app.cli.main import main
from ray_app.ensembles import load_ensemble_card
from ray_app.runs import RunDirectory, current_rows, fingerprint
from tests.images.factory import jpeg
from tests.runs.real_run import photos, plain_run, score_here  # noqa: F401


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
    assert [row["score"] for row in shown(capsys, plain_run, "--sort", "-score")] == known[
        ::-1
    ] + missing
    assert [
        row["score"] for row in shown(capsys, plain_run, "--sort", "-score", "--limit", "3")
    ] == known[:-4:-1]


def test_conditions_hold_together(plain_run, rows, capsys):  # noqa: F811
    middle = sorted(row["score"] for row in rows if row["score"] is not None)[5]
    found = shown(capsys, plain_run, "--min-score", str(middle), "--match", "*photo-?.jpg")
    wanted = [
        row
        for row in rows
        if row["score"] is not None and row["score"] >= middle and row["uri"][-11:-5] == "photo-"
    ]
    assert found
    assert [row["uri"] for row in found] == [row["uri"] for row in wanted]
    assert (
        shown(capsys, plain_run, "--max-score", str(middle), "--min-score", str(middle + 1e-3))
        == []
    )
    assert {row["status"] for row in shown(capsys, plain_run, "--status", "ok")} == {"ok"}


def test_rows_since_a_time_or_for_so_long(plain_run, rows, capsys):  # noqa: F811
    last = max(row["scored_at"] for row in rows)
    expected = [row["uri"] for row in rows if row["scored_at"] >= last]
    assert [row["uri"] for row in shown(capsys, plain_run, "--since", last.isoformat())] == expected
    # UTC
    assert [
        row["uri"]
        for row in shown(capsys, plain_run, "--since", last.replace(tzinfo=None).isoformat())
    ] == expected
    assert len(shown(capsys, plain_run, "--since", "36500d")) == len(rows)
    assert shown(capsys, plain_run, "--since", "2100-01-01") == []


@pytest.mark.parametrize("ending", ["csv", "parquet"])
@pytest.mark.parametrize("least", ["-1000", "1000"], ids=["rows", "no rows"])
def test_rows_are_written_to_a_file_with_its_columns(
    plain_run,  # noqa: F811
    rows,
    ending,
    least,
    tmp_path,
    capsys,
):
    out = tmp_path / f"verdicts.{ending}"
    wanted = [
        row["image_id"] for row in rows if row["score"] is not None and row["score"] >= float(least)
    ]
    assert (
        main(["results", plain_run, "--min-score", least, "--sort", "-score", "--out", str(out)])
        == 0
    )
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


def image_document(capsys, *words):
    assert main(["results", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def sha256_of(value):
    return hashlib.sha256(
        json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
    ).hexdigest()


def test_image_prints_its_row_with_digests_and_versions(plain_run, rows, capsys):  # noqa: F811
    row = next(row for row in rows if row["uri"].endswith("photo-2.jpg"))
    document = image_document(capsys, plain_run, "--image", row["uri"])
    assert document["row"] == shown(capsys, plain_run, "--match", "*photo-2.jpg")[0]
    described = RunDirectory.open(plain_run).describe()
    assert document["run"]["identity"] == described["identity"]
    facts = described["identity"]["detectors"]["touchstone-tiny"]
    weights = facts.pop("weights")
    assert document["digests"] == {
        "run": fingerprint(document["run"]["identity"]),
        "ensemble": sha256_of(described["ensemble"]),
        "detectors": {"touchstone-tiny": {"card": sha256_of(facts), "weights": weights}},
    }
    versions = {"touchstone": [__version__], "row_schema": described["schema"]}
    assert document["versions"] == versions


def test_image_versions_name_each_version_once(plain_run, tmp_path, capsys):  # noqa: F811
    run = RunDirectory.open(str(shutil.copytree(plain_run, tmp_path / "run")))
    for number, version in enumerate(["0.22.0", "0.22.0", "0.24.0"], 1):
        run.write_json(f"sessions/{number:05d}.json", {"version": version})
    document = image_document(capsys, run.store.url, "--image", next(current_rows(run))["uri"])
    assert document["versions"]["touchstone"] == ["0.22.0", "0.24.0"]


def test_image_is_found_by_relative_path_and_image_id(plain_run, photos, rows, capsys, monkeypatch):  # noqa: F811
    row = min(rows, key=lambda row: row["image_id"])
    assert row["image_id"] < 0  # looks like an option
    monkeypatch.chdir(photos)
    for name in (Path(row["uri"]).name, str(row["image_id"])):
        assert (
            image_document(capsys, plain_run, "--image", name)["row"]["image_id"] == row["image_id"]
        )


def test_image_without_json_shows_the_row_in_a_table(plain_run, photos, capsys):  # noqa: F811
    assert main(["results", plain_run, "--image", str(photos / "photo-2.jpg")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "photo-2.jpg" in lines[1]
    assert not [line for line in lines if "photo-3.jpg" in line]


def test_image_in_a_container_is_chosen_with_member(tmp_path, capsys):
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as file:
        for name in ("a.jpg", "b.jpg"):
            file.writestr(name, jpeg())
    run = score_here(load_ensemble_card("tiny"), tmp_path / "two.zip", tmp_path / "run")
    assert main(["results", run, "--image", str(tmp_path / "two.zip"), "--json"]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert "2 rows of" in output.err
    assert "choose one with --member: a.jpg, b.jpg" in output.err
    document = image_document(
        capsys, run, "--image", str(tmp_path / "two.zip"), "--member", "b.jpg"
    )
    assert document["row"]["member"] == "b.jpg"


def test_repeated_member_is_chosen_by_image_id(tmp_path, capsys):
    with tarfile.open(tmp_path / "twice.tar", "w") as file:
        for data in (jpeg(), jpeg(quality=50)):
            member = tarfile.TarInfo("a.jpg")
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
    run = score_here(load_ensemble_card("tiny"), tmp_path / "twice.tar", tmp_path / "run")
    assert (
        main(
            ["results", run, "--image", str(tmp_path / "twice.tar"), "--member", "a.jpg", "--json"]
        )
        == 2
    )
    ids = [row["image_id"] for row in current_rows(RunDirectory.open(run))]
    assert f"choose one by its image_id: --image {ids[0]}, {ids[1]}" in capsys.readouterr().err
    assert image_document(capsys, run, "--image", str(ids[1]))["row"]["occurrence"] == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--image", "nothing.jpg"], "no row of"),
        (["--image", "99999999999999999999"], "no row of"),
        (["--member", "a.jpg"], "--member belongs to --image"),
        (["--image", "x.jpg", "--verdict", "fake"], "--image shows one row"),
        (["--image", "x.jpg", "--out", "row.csv"], "--image shows one row"),
    ],
)
def test_image_that_selects_no_row_exits_2(words, message, plain_run, capsys):  # noqa: F811
    assert main(["results", plain_run, *words, "--json"]) == 2
    assert message in capsys.readouterr().err


def test_image_in_a_folder_without_a_run_exits_2(tmp_path, capsys):
    assert main(["results", str(tmp_path), "--image", "a.jpg", "--json"]) == 2
    assert "it has no run.json" in capsys.readouterr().err
