"""What a newcomer meets first: an archive to try on."""

import csv

import pytest

from ray_app.cli.main import main


def test_demo_archive_only_writes_archive_labels_and_credits(tmp_path, capsys):
    assert main(["demo", "--archive-only", "--out", str(tmp_path / "sample")]) == 0
    lines = capsys.readouterr().out
    files = [path for path in (tmp_path / "sample" / "archive").rglob("*") if path.is_file()]
    assert f"{len(files)} files, 3 of them broken or not an image" in lines
    assert not (tmp_path / "sample" / "run").exists()
    labels = tmp_path / "sample" / "archive-labels.csv"
    assert f"labels: {labels}" in lines
    assert f"credits: {tmp_path / 'sample' / 'CREDITS.txt'} names" in lines
    rows = list(csv.DictReader(labels.open(newline="")))
    assert len(rows) == len(files) - 3
    assert all((labels.parent / row["uri"]).is_file() for row in rows)


@pytest.mark.parametrize("arguments", [["FOLDER"], ["--images", "10"]])
def test_demo_archive_only_rejects_what_it_would_ignore(arguments, capsys):
    assert main(["demo", "--archive-only", *arguments]) == 2
    assert "--archive-only writes the whole sample archive" in capsys.readouterr().err
