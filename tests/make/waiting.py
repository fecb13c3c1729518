"""Wait for a condition, and end processes with all that they started."""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path


def wait_until(condition, timeout_s=180.0):
    """Return the value of `condition()` as soon as it is true; fail after `timeout_s` seconds."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.05)
    return found


def family_of(pid):
    """Return the ids of a process and of all its descendants."""
    family, parents = [pid], {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                parents.setdefault(parent, []).append(int(entry.name))
    for member in family:
        family += parents.get(member, [])
    return family


def kill_family(process):
    """Kill a process and all its descendants, and wait for it."""
    for pid in family_of(process.pid):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
