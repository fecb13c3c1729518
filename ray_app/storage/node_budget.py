"""Share memory for large files between all processes of one node (`NodeBudget`).

The budget is a counting semaphore of file locks. It is divided into slots of 64 MiB. Each slot is a
file. A process holds the slot while it holds the lock on that file, and the kernel releases the
lock when the process ends in any way. A process that needs slots queues until there are enough. A
process with slots never waits for more, so that no deadlock is possible.

`node_memory` and `usable_cores` return the resources of this machine or container.
"""

import fcntl
import math
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from ray_app.errors import ConfigError

SLOT_BYTES = 64 * 2**20
# The fraction of a node's memory for the budget. Most of the rest is planned for the processes.
NODE_FRACTION = 0.25
_POLL_INTERVAL_S = 0.02

# cgroup files with the limits of a container. There is no limit if they are missing, or contain "max"
# or -1.
_CGROUP_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
_CGROUP_CPU, _CGROUP_CPU_V1 = Path("/sys/fs/cgroup/cpu.max"), Path("/sys/fs/cgroup/cpu")


def node_memory() -> int:
    """Return the memory in bytes that this machine has, or that its container may use."""
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in _CGROUP_LIMITS:
        with suppress(OSError, ValueError):
            sizes.append(int(path.read_text()))
    return min(sizes)


def usable_cores() -> int:
    """Return the number of cores that this process may use.

    It is the number of cores in its affinity, or less if its container has a smaller quota.
    """
    cores = len(os.sched_getaffinity(0))
    for quota, period in _cpu_quotas():
        if quota > 0 and period > 0:
            cores = min(cores, max(int(quota / period), 1))
    return cores


def _cpu_quotas() -> Iterator[tuple[float, float]]:
    """Yield pairs of CPU time in microseconds and the period in which a container may use it."""
    with suppress(OSError, ValueError):  # "max 100000" has no quota.
        quota, period = map(float, _CGROUP_CPU.read_text().split())
        yield quota, period
    with suppress(OSError, ValueError):
        yield (
            float((_CGROUP_CPU_V1 / "cpu.cfs_quota_us").read_text()),
            float((_CGROUP_CPU_V1 / "cpu.cfs_period_us").read_text()),
        )


def compute_budget(memory_bytes: float) -> int:
    """Return the memory budget for large files on a node, in bytes.

    It is a quarter of the node's memory, rounded down to slots of 64 MiB, but at least one slot.

    Args:
        memory_bytes: The memory of the node.
    """
    return max(int(NODE_FRACTION * memory_bytes) // SLOT_BYTES, 1) * SLOT_BYTES


class NodeBudget:
    """A memory budget that all processes of this user on this node share, for large files.

    Only one thread of a process may use the object at a time. `waited_s` is the total time in
    seconds that this object waited for memory.

    Args:
        purpose: The name of the budget. Budgets with different names are independent.
        total_bytes: The size of the budget. None for a quarter of the node's memory.
        folder: The folder of the lock files, for tests. All processes that share a budget must use
            the same folder.
    """

    def __init__(
        self, purpose: str, total_bytes: int | None = None, folder: Path | None = None
    ) -> None:
        self.total_bytes = compute_budget(node_memory()) if total_bytes is None else total_bytes
        self._purpose, self._folder = purpose, folder
        self.waited_s = 0.0

    @contextmanager
    def reserve(self, size_bytes: int) -> Iterator[Callable[[], None]]:
        """Wait until `size_bytes` of the budget are free, and reserve them for a `with` block.

        `size_bytes` must be at most `total_bytes`. Call the yielded function to release the memory
        before the block ends.
        """
        with ExitStack() as slots:
            for slot in self._acquire_slots(size_bytes):
                slots.callback(os.close, slot)
            yield slots.close

    def _acquire_slots(self, size_bytes: int) -> list[int]:
        """Wait for the slots for `size_bytes`, and return the descriptors that hold them."""
        assert size_bytes <= self.total_bytes, "more than the budget"
        started_at, slots = time.monotonic(), list[int]()
        count, folder = math.ceil(size_bytes / SLOT_BYTES), self._folder or _get_user_folder()
        queue_lock = _open_lock(folder / f"{self._purpose}.door")
        try:
            fcntl.flock(queue_lock, fcntl.LOCK_EX)
            while True:
                slots += self._lock_free_slots(folder, count - len(slots))
                if len(slots) == count:
                    return slots
                time.sleep(_POLL_INTERVAL_S)
        except BaseException:
            for slot in slots:
                os.close(slot)
            raise
        finally:
            os.close(queue_lock)
            self.waited_s += time.monotonic() - started_at

    def _lock_free_slots(self, folder: Path, count: int) -> list[int]:
        """Lock up to `count` free slots, and return their descriptors."""
        slots: list[int] = []
        for index in range(math.ceil(self.total_bytes / SLOT_BYTES)):
            if len(slots) == count:
                break
            descriptor = _open_lock(folder / f"{self._purpose}.{index:04}")
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                slots.append(descriptor)
            except BlockingIOError:
                os.close(descriptor)
        return slots


def _get_user_folder() -> Path:
    """Return a folder of this user on the disk of the node.

    Raises:
        ConfigError: Another user owns a folder with that name.
    """
    folder = Path(tempfile.gettempdir()) / f"touchstone-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    folder_stat = os.lstat(folder)
    if not stat.S_ISDIR(folder_stat.st_mode) or folder_stat.st_uid != os.getuid():
        raise ConfigError(
            f"{folder} belongs to another user", hint="set TMPDIR to a folder that you own"
        )
    return folder


def _open_lock(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
