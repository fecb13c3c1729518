"""Which process this is, and whether another one still runs. Knows the operating system only."""

import os
import platform
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path


def host_name() -> str:
    """The machine's name, as people know it."""
    return platform.node()


@cache
def host_identity() -> str:
    """What two processes share exactly when one can see whether the other runs: name, boot and process namespace.

    Containers of one machine share its boot, not its process numbers: hence the namespace.
    """
    return f"{platform.node()} {_or_unknown(_boot)} {_or_unknown(_namespace)}"


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _namespace() -> str:
    return os.readlink("/proc/self/ns/pid")


def _or_unknown(read: Callable[[], str]) -> str:
    try:
        return read()
    except OSError:
        return "?"


def own_process() -> tuple[int, str]:
    """This process: its number and when it started."""
    return os.getpid(), start_of(os.getpid()) or "?"


def is_running(pid: int, started: str) -> bool:
    """Whether that very process still runs, not another one with its number; a zombie does not run."""
    return start_of(pid) == started


def start_of(pid: int) -> str | None:
    """When a process started, in the system's own words; None when there is no such process."""
    if Path("/proc/self/stat").exists():
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return None
        state, *fields = stat.rpartition(")")[2].split()  # the name before may hold spaces and parentheses
        return None if state in "ZX" else fields[18]  # field 22 of proc(5): clock ticks from boot to start
    shown = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return shown.stdout.strip() or None
