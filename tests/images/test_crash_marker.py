import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ray_app.images import Breadcrumb, Watchdog

ROOT = Path(__file__).parents[2]


def start(folder: Path, script: str) -> subprocess.Popen[bytes]:
    code = "import os, signal, sys, time, threading; from pathlib import Path; from ray_app.images import *\n"
    code += "crumb = Breadcrumb(Path(sys.argv[1]))\n" + script
    return subprocess.Popen([sys.executable, "-c", code, str(folder)], cwd=ROOT, stdout=subprocess.PIPE)


def run(folder: Path, script: str) -> int:
    process = start(folder, script)
    process.communicate(timeout=60)
    return process.returncode


def test_a_killed_process_leaves_the_id_that_it_was_decoding(tmp_path):
    code = run(tmp_path, "crumb.note(1); crumb.clear(); crumb.note(-(2**63)); os.kill(os.getpid(), signal.SIGKILL)")
    assert code == -signal.SIGKILL
    assert Breadcrumb.left_in(tmp_path) == {-(2**63)}
    assert Breadcrumb.left_in(tmp_path, remove=True) == {-(2**63)}
    assert Breadcrumb.left_in(tmp_path) == set()
    assert list(tmp_path.iterdir()) == []


def test_a_crash_in_c_leaves_the_id(tmp_path):
    assert run(tmp_path, "import ctypes; crumb.note(77); ctypes.string_at(0)") == -signal.SIGSEGV
    assert Breadcrumb.left_in(tmp_path) == {77}


def test_nothing_is_left_between_decodes_or_after_a_good_end(tmp_path):
    assert run(tmp_path, "crumb.note(5); crumb.clear(); os.kill(os.getpid(), signal.SIGKILL)") == -signal.SIGKILL
    assert Breadcrumb.left_in(tmp_path, remove=True) == set()
    assert run(tmp_path, "crumb.note(5); crumb.clear(); crumb.close()") == 0
    assert list(tmp_path.iterdir()) == []
    assert Breadcrumb.left_in(tmp_path / "never made") == set()


def test_the_living_are_not_suspected_and_each_thread_has_its_own(tmp_path):
    mine, other = Breadcrumb(tmp_path), Breadcrumb(tmp_path)
    mine.note(1)
    other.note(2)
    assert Breadcrumb.left_in(tmp_path, remove=True) == set()
    process = start(tmp_path, "second = Breadcrumb(Path(sys.argv[1])); crumb.note(3); second.note(4); print(flush=True); signal.pause()")
    assert process.stdout is not None
    process.stdout.readline()
    assert Breadcrumb.left_in(tmp_path) == set()
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert Breadcrumb.left_in(tmp_path) == {3, 4}, "a zombie is dead"
    process.communicate()
    assert Breadcrumb.left_in(tmp_path) == {3, 4}
    mine.close()
    other.close()


def test_a_later_process_under_the_same_id_is_not_mistaken(tmp_path):
    crumb = Breadcrumb(tmp_path)
    crumb.note(9)
    pid, start_time, serial = crumb.path.stem.split("-")
    (tmp_path / f"{pid}-{int(start_time) - 1}-{serial}.crumb").write_bytes(crumb.path.read_bytes())
    assert Breadcrumb.left_in(tmp_path) == {9}
    crumb.close()


def test_a_note_costs_next_to_nothing(tmp_path):
    crumb = Breadcrumb(tmp_path)
    best = 1.0
    for _ in range(5):
        started = time.perf_counter()
        for image_id in range(10_000):
            crumb.note(image_id)
            crumb.clear()
        best = min(best, (time.perf_counter() - started) / 10_000)
    crumb.close()
    assert best < 2e-6


def test_a_hang_ends_the_process_and_leaves_the_id(tmp_path):
    started = time.monotonic()
    code = run(tmp_path, "watchdog = Watchdog(crumb, 0.5).__enter__(); crumb.note(42); threading.Event().wait()")
    assert code == Watchdog.EXIT_CODE
    assert time.monotonic() - started < 30
    assert Breadcrumb.left_in(tmp_path) == {42}


def test_many_short_decodes_and_idleness_are_no_hang(tmp_path):
    script = """
with Watchdog(crumb, 0.2):
    end = time.monotonic() + 0.6
    while time.monotonic() < end:
        crumb.note(1); crumb.clear()
    threading.Event().wait(0.6)
crumb.close()
"""
    assert run(tmp_path, script) == 0


def test_a_slow_decode_in_c_leaves_the_watchdog_its_turn(tmp_path):
    """Pillow decodes without the interpreter lock, so even a decode that never ends is ended."""
    script = """
from PIL import Image
import io
out = io.BytesIO(); Image.effect_noise((4000, 4000), 90).convert("RGB").save(out, "JPEG", quality=95)
with Watchdog(crumb, 0.05):
    crumb.note(8); decode_image(out.getvalue(), ImageLimits())
"""
    assert run(tmp_path, script) == Watchdog.EXIT_CODE
    assert Breadcrumb.left_in(tmp_path) == {8}


def test_closing_twice_is_an_error_of_the_caller(tmp_path):
    crumb = Breadcrumb(tmp_path)
    crumb.close()
    with pytest.raises(ValueError, match="released"):
        crumb.note(1)
