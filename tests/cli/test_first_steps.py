"""What a newcomer meets first: an archive to try on, counts under a table, what flags are worth."""

import csv
import hashlib

import pytest

from ray_app.cli.main import main
from ray_app.reports.check import CheckFacts, check_lines
from ray_app.reports.run import flag_lines
from tests.reports import example


def test_the_sample_archive_alone(tmp_path, capsys):
    assert main(["demo", "--archive-only", "--images", "10", "--out", str(tmp_path / "sample")]) == 0
    said = capsys.readouterr().out
    assert main(["demo", "--archive-only", "--photos", str(tmp_path)]) == 2
    assert "--archive-only writes the sample archive" in capsys.readouterr().err
    files = [path for path in (tmp_path / "sample" / "archive").rglob("*") if path.is_file()]
    assert f"{len(files)} files, 3 of them broken or no picture" in said
    assert not (tmp_path / "sample" / "run").exists()
    labels = tmp_path / "sample" / "archive-labels.csv"
    assert f"labels: {labels}" in said
    rows = list(csv.DictReader(labels.open(newline="")))
    assert len(rows) == len(files) - 3
    assert {row["label"] for row in rows} == {"real", "fake"}
    assert all(hashlib.sha256((labels.parent / row["uri"]).read_bytes()).hexdigest() == row["sha256"] for row in rows)


def rows(number):
    real = {"status": "ok", "verdict": "real", "verdict_reason": None, "calibrated": False, "probability": 0.1, "score": -2.0}
    fake = real | {"verdict": "fake", "probability": 0.9, "score": 2.0}
    broken = dict.fromkeys(real) | {"status": "empty_file", "detail": "0 bytes"}
    return [{"uri": f"file:///photos/{place}.jpg", **(fake, real, broken)[place % 3]} for place in range(number)]


@pytest.mark.parametrize(("number", "counted"), [(3, False), (12, True)])
def test_many_pictures_are_counted_under_their_table(number, counted):
    lines = check_lines(rows(number), CheckFacts("tiny", "Tiny", False, (), -1.0, 1.0, {}), 100)
    assert ("12 files: flagged as fake 4, abstained 0, no evidence found 4, not scored 4" in lines) == counted


def test_what_flags_are_worth_is_said_beside_the_report():
    summary = example.example_summary()
    first, *shares = flag_lines(summary, prior=0.01)
    assert first.startswith("flagged: ")
    assert len(shares) == 1
    assert shares[0].startswith("if 1 % of the archive is fake, ")
    assert len(flag_lines(summary)) == 4
    assert flag_lines(summary | {"ensemble": summary["ensemble"] | {"thresholds": None}}) == []
