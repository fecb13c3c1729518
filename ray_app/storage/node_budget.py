"""`NodeBudget`: memory that all processes of one node share for large files, as a counting
semaphore of file locks.

`node_memory` and `usable_cores` are what this machine or container has.

The budget is cut into seats of 64 MiB, each a file that its holder has locked; the kernel unlocks
them when a process ends, however it ends. A process that wants seats waits at the door, in turn,
until there are enough; with seats it never waits for more: no deadlock.
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

SEAT_BYTES = 64 * 2**20
NODE_SHARE = 0.25  # of a node's memory; most of the rest is planned for the processes themselves
_LOOK_EVERY_S = 0.02

# Files of cgroups with the limits of a container. If they are missing, or contain "max" or -1,
# there is no limit.
_CGROUP_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
_CGROUP_CPU, _CGROUP_CPU_V1 = Path("/sys/fs/cgroup/cpu.max"), Path("/sys/fs/cgroup/cpu")


def node_memory() -> int:
    """Bytes of memory of this machine, or of this container where it has a limit of its own."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in _CGROUP_LIMITS:
        with suppress(OSError, ValueError):
            found.append(int(path.read_text()))
    return min(found)


def usable_cores() -> int:
    """Return the number of cores that this process may use: those of its affinity, or fewer if its
    container has a smaller quota.
    """
    allowed = len(os.sched_getaffinity(0))
    for quota, period in _cpu_quotas():
        if quota > 0 and period > 0:
            allowed = min(allowed, max(int(quota / period), 1))
    return allowed


def _cpu_quotas() -> Iterator[tuple[float, float]]:
    """Yield microseconds of CPU time, and the period in which a container may take them."""
    with suppress(OSError, ValueError):  # "max 100000" has no quota.
        quota, period = map(float, _CGROUP_CPU.read_text().split())
        yield quota, period
    with suppress(OSError, ValueError):
        yield (
            float((_CGROUP_CPU_V1 / "cpu.cfs_quota_us").read_text()),
            float((_CGROUP_CPU_V1 / "cpu.cfs_period_us").read_text()),
        )


def budget_of(memory_bytes: float) -> int:
    """What large things may take together on a node with so much memory, in whole seats."""
    return max(int(NODE_SHARE * memory_bytes) // SEAT_BYTES, 1) * SEAT_BYTES


class NodeBudget:
    """So many bytes for all processes of this user on this node (null = a quarter of its memory);
    one thread at a time.

    `purpose` names the seats: other purposes have others. `folder` is for tests; all that share a
    budget must name the same.
    """

    def __init__(
        self, purpose: str, total_bytes: int | None = None, folder: Path | None = None
    ) -> None:
        self.total_bytes = budget_of(node_memory()) if total_bytes is None else total_bytes
        self._purpose, self._folder = purpose, folder
        self.waited_s = 0.0

    @contextmanager
    def turn(self, size_bytes: int) -> Iterator[Callable[[], None]]:
        """Wait until so many bytes (`total_bytes` at most) are free, and have them for the block;
        what is yielded gives them back early.
        """
        with ExitStack() as held:
            for seat in self._seats(size_bytes):
                held.callback(os.close, seat)
            yield held.close

    def _seats(self, size_bytes: int) -> list[int]:
        """Enough seats for so many bytes, as the descriptors that hold them."""
        assert size_bytes <= self.total_bytes, "more than there is"
        began, taken = time.monotonic(), list[int]()
        wanted, folder = math.ceil(size_bytes / SEAT_BYTES), self._folder or _own_folder()
        door = _opened(folder / f"{self._purpose}.door")
        try:
            fcntl.flock(door, fcntl.LOCK_EX)
            while True:
                taken += self._free(folder, wanted - len(taken))
                if len(taken) == wanted:
                    return taken
                time.sleep(_LOOK_EVERY_S)
        except BaseException:
            for seat in taken:
                os.close(seat)
            raise
        finally:
            os.close(door)
            self.waited_s += time.monotonic() - began

    def _free(self, folder: Path, wanted: int) -> list[int]:
        """Up to so many free seats, locked."""
        taken: list[int] = []
        for seat in range(math.ceil(self.total_bytes / SEAT_BYTES)):
            if len(taken) == wanted:
                break
            descriptor = _opened(folder / f"{self._purpose}.{seat:04}")
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                taken.append(descriptor)
            except BlockingIOError:
                os.close(descriptor)
        return taken


def _own_folder() -> Path:
    """A folder of this user's on the node's own disk. Raises ConfigError where another user made
    one of that name.
    """
    folder = Path(tempfile.gettempdir()) / f"touchstone-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = os.lstat(folder)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise ConfigError(
            f"{folder} belongs to another user", hint="set TMPDIR to a folder of yours"
        )
    return folder


def _opened(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
