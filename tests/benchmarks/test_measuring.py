import sys

import pytest

from benchmarks.measuring import ContenderError, ProcessTree, run_measured, steady_rate

CHILD = "import time; block = bytearray(64 * 2**20); block[::4096] = b'x' * len(block[::4096]); time.sleep(60)"


def at_rate(rate, total, batch, start=10.0):
    return [(start + count / rate, count) for count in range(batch, total + 1, batch)]


@pytest.mark.parametrize("rate", [0.5, 12.0, 400.0])
def test_a_constant_rate_is_found(rate):
    assert steady_rate(at_rate(rate, 320, 16), 320) == pytest.approx(rate)


def test_start_and_end_do_not_count():
    slow_start = [(0.0, 1), (100.0, 16)]
    slow_end = [(2000.0, 319), (3000.0, 320)]
    steady = [(t, count) for t, count in at_rate(8.0, 320, 16, start=100.0) if 16 < count < 300]
    assert steady_rate([*slow_start, *steady, *slow_end], 320) == pytest.approx(8.0)


def test_a_process_is_measured_with_its_children(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.measuring.SAMPLE_EVERY_S", 0.1)
    monkeypatch.setattr("benchmarks.measuring.SAMPLE_SHARE", 1.0)
    # In a session of its own, and it outlives its parent for a while: what a Ray daemon does.
    child = CHILD.replace("time.sleep(60)", "print('large', flush=True); time.sleep(1.2)")
    started = f"subprocess.Popen([sys.executable, '-c', {child!r}], start_new_session=True, stdout=subprocess.PIPE)"
    parent = f"import subprocess, sys, time; {started}.stdout.readline(); time.sleep(0.6)"
    ran = run_measured(
        [sys.executable, "-c", f"{parent}; print('done')"], {}, timeout_s=60, log=tmp_path / "log"
    )
    assert ran.stdout.strip() == "done"
    assert 64 * 2**20 < ran.peak_memory_bytes < 300 * 2**20


def test_nothing_stays_behind_when_a_contender_fails(tmp_path):
    orphan = f"import os, subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {CHILD!r}], start_new_session=True)"
    note = tmp_path / "pid"
    command = [
        sys.executable,
        "-c",
        f"{orphan}; open({str(note)!r}, 'w').write(str(p.pid)); sys.exit('no luck')",
    ]
    with pytest.raises(ContenderError, match="no luck"):
        run_measured(command, {}, timeout_s=60, log=tmp_path / "log")
    assert ProcessTree(int(note.read_text()), "unused").living() == []
