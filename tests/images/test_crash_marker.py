import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ray_app.images import CrashMarker, Watchdog

ROOT = Path(__file__).parents[2]


def start(folder: Path, script: str) -> subprocess.Popen[bytes]:
    code = "import ctypes, os, signal, sys, time, threading; from pathlib import Path; from ray_app.images import *\n"
    code += "crumb = CrashMarker(Path(sys.argv[1]))\n" + script
    return subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], cwd=ROOT, stdout=subprocess.PIPE
    )


SLOW_IN_C = """
from PIL import Image
import io
out = io.BytesIO(); Image.effect_noise((4000, 4000), 90).convert("RGB").save(out, "JPEG", quality=95)
with Watchdog(crumb, 0.05):
    crumb.note(8); decode_image(out.getvalue(), ImageLimits())
"""
BUSY_AND_IDLE = """
with Watchdog(crumb, 0.2):
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        crumb.note(1); crumb.clear()
    threading.Event().wait(0.5)
crumb.close()
"""
ENDS = {
    "killed while it decodes": (
        "crumb.note(1); crumb.clear(); crumb.note(-(2**63)); os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, {-(2**63)}
    ),
    "a crash in C": ("crumb.note(77); ctypes.string_at(0)", -signal.SIGSEGV, {77}),
    "killed between decodes": ("crumb.note(5); crumb.clear(); os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, set()),
    "a good end": ("crumb.note(5); crumb.clear(); crumb.close()", 0, set()),
    "a hang": ("watchdog = Watchdog(crumb, 0.3).__enter__(); crumb.note(42); threading.Event().wait()", Watchdog.EXIT_CODE, {42}),
    # Pillow decodes without the interpreter's lock
    "a decode in C that is slow": (SLOW_IN_C, Watchdog.EXIT_CODE, {8}),
    "one decode, and none": (
        "with Watchdog(crumb, 0.2): crumb.note(1); crumb.clear(); threading.Event().wait(0.5)\ncrumb.close()", 0, set()
    ),
    "many short decodes, and none": (BUSY_AND_IDLE, 0, set()),
}  # fmt: skip


@pytest.mark.parametrize("end", ENDS)
def test_process_that_dies_leaves_the_id_of_its_image(end, tmp_path):
    script, code, left = ENDS[end]
    process = start(tmp_path, script)
    process.communicate(timeout=60)
    assert process.returncode == code
    assert CrashMarker.read_crashed_ids(tmp_path) == left
    assert CrashMarker.read_crashed_ids(tmp_path / "never made") == set()


def test_process_that_lives_is_not_suspected(tmp_path):
    mine, other = CrashMarker(tmp_path), CrashMarker(tmp_path)
    mine.note(1)
    other.note(2)
    assert CrashMarker.read_crashed_ids(tmp_path) == set()
    process = start(
        tmp_path,
        "second = CrashMarker(Path(sys.argv[1])); crumb.note(3); second.note(4); print(flush=True); signal.pause()",
    )
    process.stdout.readline()
    assert CrashMarker.read_crashed_ids(tmp_path) == set()
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert CrashMarker.read_crashed_ids(tmp_path) == {3, 4}, "a zombie is dead"
    process.communicate()
    assert CrashMarker.read_crashed_ids(tmp_path) == {3, 4}
    mine.close()
    other.close()


def test_process_with_the_number_of_a_dead_one_is_not_suspected(tmp_path):
    crumb = CrashMarker(tmp_path)
    crumb.note(9)
    pid, start_time, serial = crumb.path.stem.split("-")
    (tmp_path / f"{pid}-{int(start_time) - 1}-{serial}.crumb").write_bytes(crumb.path.read_bytes())
    assert CrashMarker.read_crashed_ids(tmp_path) == {9}
    crumb.close()
