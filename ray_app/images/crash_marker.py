"""`Breadcrumb`: a crash marker that names the image a process was decoding when it died; `Watchdog` ends a process whose decode hangs.

An in-process decode that crashes takes the process along, and no `except` runs. A note in a mapped file outlives it: the kernel keeps it.
"""

import itertools
import mmap
import os
import struct
import threading
from pathlib import Path
from types import TracebackType

_LAYOUT = struct.Struct("<qq")  # image_id; how often it was noted or cleared: odd while a decode is under way
_SUFFIX = ".crumb"
_serial = itertools.count()


class Breadcrumb:
    """A note of the image being decoded by one thread, in a file of its own in `folder` (local to the node).

    The file is named by process id and process start time, so that a process which comes later under the same id is not mistaken for it.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        pid = os.getpid()
        self.path = folder / f"{pid}-{_start_time(pid)}-{next(_serial)}{_SUFFIX}"
        with open(self.path, "w+b") as file:
            file.write(_LAYOUT.pack(0, 0))
            file.flush()
            self._map = mmap.mmap(file.fileno(), _LAYOUT.size)
        self._fields = memoryview(self._map).cast("q")
        self.count = 0
        self.patience = 1.0

    def note(self, image_id: int, patience: float = 1.0) -> None:
        """From now on this image is being decoded, for so many times the wall limit at most."""
        self._fields[0] = image_id
        self.patience = patience
        self.count += 1
        self._fields[1] = self.count

    @property
    def is_noted(self) -> bool:
        """Whether a decode is under way."""
        return self.count % 2 == 1

    def clear(self) -> None:
        """The decode is over, however it ended."""
        self.count += 1
        self._fields[1] = self.count

    def close(self) -> None:
        """Remove the file: this process ends well, and with nothing under way."""
        self._fields.release()
        self._map.close()
        self.path.unlink(missing_ok=True)

    @staticmethod
    def left_in(folder: Path, *, remove: bool = False, own: Path | None = None) -> set[int]:
        """The ids that dead processes were decoding; `remove` deletes the files of dead processes as well. `own`: not looked at."""
        left: set[int] = set()
        for path in folder.glob("*" + _SUFFIX):
            pid, start_time, _ = path.stem.split("-")
            if path == own or _start_time(int(pid)) == start_time:
                continue
            note = path.read_bytes()
            if len(note) == _LAYOUT.size:
                image_id, count = _LAYOUT.unpack(note)
                if count % 2:
                    left.add(image_id)
            if remove:
                path.unlink(missing_ok=True)
        return left


class Watchdog:
    """Ends this process with `EXIT_CODE` if one noted decode lasts longer than the wall limit: a hang then costs the same as a crash.

    A thread that looks ten times per limit, so a hang is ended after 1.0 to 1.1 limits (times the note's `patience`). It gets its turn
    since all decoders run without the interpreter lock. `re` does not: what it looks for in a file must take no more than linear time.
    """

    EXIT_CODE = 86

    def __init__(self, crumb: Breadcrumb, wall_limit_s: float) -> None:
        self._marker = crumb
        self._wall_limit_s = wall_limit_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="decode-watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        seen, checks = 0, 0
        while not self._ended.wait(self._wall_limit_s / 10):
            checks = checks + 1 if self._marker.count == seen else 0
            seen = self._marker.count
            if seen % 2 and checks >= 10 * self._marker.patience:
                os._exit(self.EXIT_CODE)


def _start_time(pid: int) -> str | None:
    """When a process started, in clock ticks since boot; None if it is no more (or only waits for its parent to notice).

    Without /proc every living process counts as started at 0.
    """
    if not os.path.exists("/proc/self/stat"):
        return "0" if _exists(pid) else None
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
