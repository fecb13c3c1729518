"""`touchstone results`: which rows of a run it shows, in which order, and in which file."""

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
from ray_app.ensembles import load_ensemble_card
from ray_app.runs import RunDirectory, current_rows, fingerprint
from tests.make.images import jpeg
from tests.make.real_run import score_photos


@pytest.fixture
def results(plain_run, touchstone):
    """Run `results` on a run of seven images and one text, with further words."""
    return lambda *words: touchstone("results", plain_run, *words)


@pytest.fixture
def rows(plain_run):
    return list(current_rows(RunDirectory.open(plain_run)))


def test_results_sorts_either_way_with_empty_last(results, rows):
    known = sorted(row["score"] for row in rows if row["score"] is not None)
    missing = [None] * (len(rows) - len(known))
    assert missing
    for words, expected in (
        (["score"], known + missing),
        (["-score"], known[::-1] + missing),
        (["-score", "--limit", "3"], known[:-4:-1]),
    ):
        shown = results("--json", "--sort", *words).rows
        assert [row["score"] for row in shown] == expected, words


def test_results_shows_rows_that_meet_all_conditions(results, rows):
    middle = sorted(row["score"] for row in rows if row["score"] is not None)[5]
    last = max(row["scored_at"] for row in rows)
    scored = {row["uri"]: row["score"] for row in rows if row["score"] is not None}
    is_photo = {uri: score for uri, score in scored.items() if uri[-11:-5] == "photo-"}
    latest = {row["uri"] for row in rows if row["scored_at"] >= last}
    for words, expected in (
        (
            f"--min-score {middle} --match *photo-?.jpg",
            {u for u, s in is_photo.items() if s >= middle},
        ),
        (f"--max-score {middle} --min-score {middle + 1e-3}", set()),
        ("--status ok", set(scored)),
        (f"--since {last.isoformat()}", latest),
        (f"--since {last.replace(tzinfo=None).isoformat()}", latest),  # UTC
        ("--since 36500d", {row["uri"] for row in rows}),
        ("--since 2100-01-01", set()),
    ):
        shown = results("--json", *words.split()).rows
        assert {row["uri"] for row in shown} == expected, words


@pytest.mark.parametrize("ending", ["csv", "parquet"])
@pytest.mark.parametrize("least", ["-1000", "1000"], ids=["rows", "no-rows"])
def test_results_writes_a_file_with_columns(results, rows, ending, least, tmp_path):
    out = tmp_path / f"verdicts.{ending}"
    scored = [row for row in rows if row["score"] is not None]
    expected = sorted(row["image_id"] for row in scored if row["score"] >= float(least))
    ended = results("--min-score", least, "--sort", "-score", "--out", out)
    assert ended.out == f"{len(expected)} rows: {out}\n"
    table = pyarrow.csv.read_csv(out) if ending == "csv" else pyarrow.parquet.read_table(out)
    assert sorted(table["image_id"].to_pylist()) == expected
    assert {"uri", "verdict", "score"} <= set(table.column_names)
    assert ("scores.touchstone-tiny" in table.column_names) == (ending == "csv")
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--sort flags", "one of image_id, uri"),
        ("--out verdicts.xlsx", "must end with .csv or .parquet"),
        ("--out verdicts.csv --json", "cannot be used together"),
        ("--since yesterday", "neither a time such as"),
        ("--since 99999999d", "neither a time such as"),
        ("--image nothing.jpg", "no row of"),
        ("--image 99999999999999999999", "no row of"),
        ("--member a.jpg", "--member requires --image"),
        ("--image x.jpg --verdict fake", "--image shows one row"),
        ("--image x.jpg --out row.csv", "--image shows one row"),
    ],
)
def test_results_usage_error_exits_2(words, said, results):
    ended = results(*words.split())
    assert (ended.code, ended.out) == (2, "")
    assert said in ended.err


def sha256_of(value):
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def test_image_prints_its_row_digests_and_versions(results, plain_run, rows):
    row = next(row for row in rows if row["uri"].endswith("photo-2.jpg"))
    document = results("--json", "--image", row["uri"]).document
    assert document["row"] == results("--json", "--match", "*photo-2.jpg").rows[0]
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


def test_image_names_each_version_once(plain_run, tmp_path, touchstone):
    run = RunDirectory.open(str(shutil.copytree(plain_run, tmp_path / "run")))
    for number, version in enumerate(["0.22.0", "0.22.0", "0.24.0"], 1):
        run.write_json(f"sessions/{number:05d}.json", {"version": version})
    uri = next(current_rows(run))["uri"]
    document = touchstone("results --json", run.store.url, "--image", uri).document
    assert document["versions"]["touchstone"] == ["0.22.0", "0.24.0"]


def test_image_is_found_by_relative_path_and_image_id(results, photos, rows, monkeypatch):
    row = min(rows, key=lambda row: row["image_id"])
    assert row["image_id"] < 0  # It looks like an option.
    monkeypatch.chdir(photos)
    for name in (Path(row["uri"]).name, row["image_id"]):
        document = results("--json", "--image", name).document
        assert document["row"]["image_id"] == row["image_id"]


def test_image_without_json_is_a_table_of_one_row(results, photos):
    out = results("--image", photos / "photo-2.jpg").out
    assert "photo-2.jpg" in out.splitlines()[1]
    assert "photo-3.jpg" not in out


def test_image_in_a_container_is_chosen_by_member(tmp_path, touchstone):
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as file:
        for name in ("a.jpg", "b.jpg"):
            file.writestr(name, jpeg())
    run = score_photos(load_ensemble_card("tiny"), tmp_path / "two.zip", tmp_path / "run")
    line = f"results --json {run} --image {tmp_path}/two.zip"
    ended = touchstone(line)
    assert (ended.code, ended.out) == (2, "")
    assert "choose one with --member: a.jpg, b.jpg" in ended.err
    assert touchstone(f"{line} --member b.jpg").document["row"]["member"] == "b.jpg"


def test_repeated_member_is_chosen_by_image_id(tmp_path, touchstone):
    with tarfile.open(tmp_path / "twice.tar", "w") as file:
        for data in (jpeg(), jpeg(quality=50)):
            member = tarfile.TarInfo("a.jpg")
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
    run = score_photos(load_ensemble_card("tiny"), tmp_path / "twice.tar", tmp_path / "run")
    ended = touchstone(f"results --json {run} --image {tmp_path}/twice.tar --member a.jpg")
    assert ended.code == 2
    ids = [row["image_id"] for row in current_rows(RunDirectory.open(run))]
    assert f"choose one by its image_id: --image {ids[0]}, {ids[1]}" in ended.err
    document = touchstone(f"results --json {run} --image", ids[1]).document
    assert document["row"]["occurrence"] == 1
