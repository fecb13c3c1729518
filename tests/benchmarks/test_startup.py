"""The clock of start-up times, on commands that take little."""

import os
import sys

import pytest

from benchmarks.measuring import ContenderError
from benchmarks.startup import TOUCHSTONE, Command, Started, UnknownCommandError, _has_part, measure, medians, table

SLOWLY = """
import pathlib, time
begun = time.monotonic()
print("begun", flush=True)
held = b"x" * 200_000_000
parts = pathlib.Path("run/parts")
parts.mkdir(parents=True)
while time.monotonic() < begun + 0.5:
    pass
(parts / "0.parquet").touch()
while time.monotonic() < begun + 1.0:
    pass
"""


def test_what_a_command_does_is_timed(tmp_path):
    found = measure(Command("slowly", (sys.executable, "-c", SLOWLY), verdict=_has_part), os.environ, tmp_path)
    assert 0 < found.first_output_s <= found.first_verdict_s < found.end_s
    assert found.first_verdict_s >= 0.5
    assert found.end_s - found.first_verdict_s >= 0.1  # half a second, less what a loaded machine takes to look
    assert 200e6 < found.peak_memory_bytes < 400e6
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_is_measured_as_it_is(tmp_path):
    wrong = (*TOUCHSTONE, "score", str(tmp_path / "nowhere"), "--out", "{out}/run")
    assert measure(Command("wrong path", wrong, exit_code=2), os.environ, tmp_path).first_output_s > 0
    with pytest.raises(ContenderError, match="exit code 2"):
        measure(Command("wrong path", wrong), os.environ, tmp_path)
    with pytest.raises(UnknownCommandError):
        measure(Command("chekc", (*TOUCHSTONE, "chekc", "photo.jpg")), os.environ, tmp_path)


def test_a_service_is_ended_once_it_is_ready(tmp_path):
    waiting = "import time; print('http://here', flush=True); time.sleep(200)"
    found = measure(Command("serve", (sys.executable, "-c", waiting), serves=True), os.environ, tmp_path)
    assert found.first_output_s > 0
    assert found.end_s is None


def test_medians_of_what_there_was():
    rounds = [Started("score", 1.0, 3.0, 9.0, 2**20), Started("help", 0.5, None, 1.0, 0), Started("score", 2.0, None, 7.0, 3 * 2**20)]
    lines = medians(rounds)
    assert lines == [Started("score", 1.5, 3.0, 8.0, 2 * 2**20), Started("help", 0.5, None, 1.0, 0)]
    assert table(lines).splitlines()[1].split() == ["score", "1.50", "s", "3.00", "s", "8.00", "s", "2", "MiB"]
