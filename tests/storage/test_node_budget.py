"""Bytes that processes share: nobody takes what another has, and the dead have nothing."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ray_app.errors import ConfigError
from ray_app.storage import node_budget
from ray_app.storage.node_budget import (
    SLOT_BYTES,
    NodeBudget,
    compute_budget,
    node_memory,
    usable_cores,
)

ROOT = Path(__file__).resolve().parents[2]
HOLD = """
import sys
from pathlib import Path
from ray_app.storage.node_budget import *
budget = NodeBudget("test", int(sys.argv[2]) * SLOT_BYTES, Path(sys.argv[1]))
with budget.reserve(int(sys.argv[3]) * SLOT_BYTES):
    print("has it", flush=True)
    sys.stdin.read()
"""


def holder(folder: Path, seats: int, of: int) -> "subprocess.Popen[str]":
    """A process that takes so many seats, and has them until its stdin ends; the line that says so
    is not read yet.
    """
    command = [sys.executable, "-c", HOLD, str(folder), str(of), str(seats)]
    return subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def has_it(process: "subprocess.Popen[str]") -> bool:
    return process.stdout.readline() == "has it\n"


def free(folder: Path, of: int) -> int:
    """How many seats nobody has."""
    taken = NodeBudget("test", of * SLOT_BYTES, folder)._lock_free_slots(folder, of)
    for descriptor in taken:
        os.close(descriptor)
    return len(taken)


def test_budget_makes_another_process_wait(tmp_path):
    with holder(tmp_path, 3, 4) as first:
        assert has_it(first)
        with holder(tmp_path, 2, 4) as second:
            waiting = threading.Thread(target=has_it, args=[second])
            waiting.start()
            waiting.join(0.5)
            assert waiting.is_alive(), "two of four, where three are taken"
            first.stdin.close()
            waiting.join(60)
            assert not waiting.is_alive()
            assert free(tmp_path, 4) == 2
            second.stdin.close()


def test_budget_of_a_killed_process_is_free(tmp_path):
    with holder(tmp_path, 4, 4) as dying:
        assert has_it(dying)
        assert free(tmp_path, 4) == 0
        dying.kill()
        with NodeBudget("test", 4 * SLOT_BYTES, tmp_path).reserve(4 * SLOT_BYTES):
            pass


def test_budget_is_a_quarter_of_the_memory(tmp_path, monkeypatch):
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(node_budget, "_CGROUP_LIMITS", (limit, tmp_path / "none"))
    assert node_memory() == physical
    limit.write_text("max\n")
    assert node_memory() == physical
    limit.write_text(f"{2**30}\n")
    assert node_memory() == 2**30
    assert NodeBudget("test").total_bytes == compute_budget(2**30) == 2**28
    assert compute_budget(0) == SLOT_BYTES


def test_usable_cores_are_those_of_affinity_and_container(tmp_path, monkeypatch):
    affinity = os.sched_getaffinity(0)
    monkeypatch.setattr(node_budget, "_CGROUP_CPU", tmp_path / "cpu.max")
    monkeypatch.setattr(node_budget, "_CGROUP_CPU_V1", tmp_path)
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert usable_cores() == len(affinity)
    program = "from ray_app.storage.node_budget import usable_cores; print(usable_cores())"
    pinned = subprocess.run(
        ["taskset", "-c", str(min(affinity)), sys.executable, "-c", program], capture_output=True
    )
    assert pinned.stdout == b"1\n"
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert usable_cores() == 1
    (tmp_path / "cpu.max").unlink()
    (tmp_path / "cpu.cfs_period_us").write_text("100000\n")
    for quota, cores in ((-1, len(affinity)), (10_000, 1)):
        (tmp_path / "cpu.cfs_quota_us").write_text(f"{quota}\n")
        assert usable_cores() == cores


def test_budget_in_a_folder_of_another_user_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(node_budget.tempfile, "gettempdir", lambda: str(tmp_path))
    (tmp_path / f"touchstone-{os.getuid()}").symlink_to(tmp_path)
    with (
        pytest.raises(ConfigError, match="belongs to another user"),
        NodeBudget("test", SLOT_BYTES).reserve(1),
    ):
        pass
