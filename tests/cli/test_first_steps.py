"""`touchstone demo --archive-only`."""

import csv

import pytest


def test_demo_archive_only_writes_archive_and_labels(tmp_path, touchstone):
    sample = tmp_path / "sample"
    ended = touchstone(f"demo --archive-only --out {sample}")
    assert ended.code == 0
    files = [path for path in (sample / "archive").rglob("*") if path.is_file()]
    assert f"{len(files)} files, 3 of them broken or not an image" in ended.out
    assert f"credits: {sample / 'CREDITS.txt'} names" in ended.out
    assert not (sample / "run").exists()
    labels = sample / "archive-labels.csv"
    assert f"labels: {labels}" in ended.out
    rows = list(csv.DictReader(labels.open(newline="")))
    assert len(rows) == len(files) - 3
    assert all((sample / row["uri"]).is_file() for row in rows)


@pytest.mark.parametrize("words", ["FOLDER", "--images 10"])
def test_demo_archive_only_rejects_other_options(words, touchstone):
    ended = touchstone(f"demo --archive-only {words}")
    assert ended.code == 2
    assert "--archive-only writes the whole sample archive" in ended.err
