"""`tools.compare_rows` on the reference commit and this checkout: equal but for the intended
differences, and a difference is found.
"""

import csv
import io
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tools import compare_rows

ROOT = Path(__file__).resolve().parents[2]
# 0.29.1. An older version needs libraries that this environment no longer has.
REFERENCE = "24008c9c"


def checkout_reference(folder: Path) -> Path:
    """Unpack the reference commit; its .venv has starters that use this checkout's environment with
    the reference's code.
    """
    archive = subprocess.run(["git", "-C", ROOT, "archive", REFERENCE], capture_output=True)
    if archive.returncode:
        pytest.skip(f"the history of this checkout does not contain {REFERENCE}")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(folder, filter="data")
    programs = folder / ".venv" / "bin"
    programs.mkdir(parents=True)
    start = f'{sys.executable} -c "from ray_app.cli.__main__ import script; script()"'
    for name, command in (("python", sys.executable), ("touchstone", start)):
        (programs / name).write_text(f'#!/bin/sh\nPYTHONPATH={folder} exec {command} "$@"\n')
        (programs / name).chmod(0o755)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_rows_equal_the_reference_commits_rows(tmp_path, capsys):
    options = [
        str(checkout_reference(tmp_path / "old")),
        str(ROOT),
        "--work",
        str(tmp_path / "work"),
        "--also",
    ]
    result = compare_rows.main(options)
    assert result == 0, capsys.readouterr().out
    assert "86 files before, 86 after" in capsys.readouterr().out


def test_report_returns_only_unlisted_differences(tmp_path):
    found = list(
        compare_rows.compare(
            "detectors-fp32",
            {"a.jpg": {"status": "ok", "score": 1.0, "flags": []}, "b.jpg": {"status": "ok"}},
            {
                "a.jpg": {"status": "ok", "score": 1.0000001, "flags": ["x"]},
                "c.jpg": {"status": "ok"},
            },
        )
    )
    intended = [
        {
            "file": "*.jpg",
            "column": "flags",
            "before": "*",
            "after": '["x"]',
            "reason": "a new flag",
        }
    ]
    unexpected = compare_rows.report(found, intended, tmp_path / "differences.csv")
    assert [(difference.file, difference.column) for difference in unexpected] == [
        ("a.jpg", "score"),
        ("b.jpg", "row"),
        ("c.jpg", "row"),
    ]
    listed = list(csv.DictReader((tmp_path / "differences.csv").open()))
    assert [(line["column"], line["intended"]) for line in listed].count(("flags", "True")) == 1
