"""What a measurement was made on, and how quiet it was there. Linux only."""

import os
import platform
import re
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.work import cores


def machine() -> dict[str, Any]:
    """Its processor, cores and memory; the load before we add to it. Warns on stderr where others
    are busy on it.
    """
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    load = os.getloadavg()[0]
    if load > cores() / 2:
        print(
            f"the machine is not quiet: load {load:.1f} on {cores()} cores; the figures will be too",
            file=sys.stderr,
            flush=True,
        )
    return {
        "cpu": model[1] if model else platform.processor(),
        "cores": cores(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
        "load_before": load,
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Of Python and of packages; of those that are not installed that."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


class Steal:
    """The share of the machine's time that its host gave to others since this object was made."""

    def __init__(self) -> None:
        self._before = _cpu_times()

    def share(self) -> float:
        spent = [end - start for start, end in zip(self._before, _cpu_times(), strict=True)]
        return spent[7] / max(sum(spent), 1)

    def busy_s(self) -> float:
        """CPU seconds that this machine worked since then, for whomever."""
        spent = [end - start for start, end in zip(self._before, _cpu_times(), strict=True)]
        return (sum(spent) - spent[3] - spent[4] - spent[7]) / os.sysconf("SC_CLK_TCK")


def _cpu_times() -> list[int]:
    """Ticks spent in user, nice, system, idle, iowait, irq, softirq and steal."""
    return [int(ticks) for ticks in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
