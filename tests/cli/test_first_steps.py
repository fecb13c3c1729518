"""What a newcomer meets first: an archive to try on."""

import csv
import hashlib

from ray_app.cli.main import main


def test_the_sample_archive_alone(tmp_path, capsys):
    assert main(["demo", "--archive-only", "--images", "10", "--out", str(tmp_path / "sample")]) == 0
    said = capsys.readouterr().out
    assert main(["demo", "--archive-only", str(tmp_path)]) == 2
    assert "--archive-only writes the sample archive" in capsys.readouterr().err
    assert main(["demo", str(tmp_path), "--photos", str(tmp_path)]) == 2
    assert "name it once" in capsys.readouterr().err
    files = [path for path in (tmp_path / "sample" / "archive").rglob("*") if path.is_file()]
    assert f"{len(files)} files, 3 of them broken or no picture" in said
    assert not (tmp_path / "sample" / "run").exists()
    labels = tmp_path / "sample" / "archive-labels.csv"
    assert f"labels: {labels}" in said
    rows = list(csv.DictReader(labels.open(newline="")))
    assert len(rows) == len(files) - 3
    assert {row["label"] for row in rows} == {"real", "fake"}
    assert all(hashlib.sha256((labels.parent / row["uri"]).read_bytes()).hexdigest() == row["sha256"] for row in rows)
