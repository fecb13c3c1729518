"""The clock of start-up times, on commands that take little."""

import os
import sys

from benchmarks.startup import Command, _has_part, measure

SLOWLY = """
import pathlib, time
print("begun", flush=True)
held = b"x" * 200_000_000
begun = time.monotonic()
parts = pathlib.Path("run/parts")
parts.mkdir(parents=True)
while time.monotonic() < begun + 0.5:
    pass
(parts / "0.parquet").touch()
while time.monotonic() < begun + 1.0:
    pass
"""


def test_what_a_command_does_is_timed(tmp_path, monkeypatch):
    # on a loaded machine a sample is dear, and the next one far away
    monkeypatch.setattr("benchmarks.measuring.SAMPLE_SHARE", 1.0)
    found = measure(
        Command("slowly", (sys.executable, "-c", SLOWLY), verdict=_has_part), os.environ, tmp_path
    )
    assert 0 < found.first_output_s <= found.first_verdict_s < found.end_s
    assert found.first_verdict_s >= 0.5
    assert found.end_s >= 1.0
    assert 200e6 < found.peak_memory_bytes < 400e6
    assert list(tmp_path.iterdir()) == []


def test_a_service_is_ended_once_it_is_ready(tmp_path):
    waiting = "import time; print('http://here', flush=True); time.sleep(200)"
    found = measure(
        Command("serve", (sys.executable, "-c", waiting), serves=True), os.environ, tmp_path
    )
    assert found.first_output_s > 0
    assert found.end_s is None
