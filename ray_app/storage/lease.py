"""Prevent two processes from writing to one directory at the same time (`Lease`).

`lease/00042.json` describes the process that made the 42nd claim on the directory (`Holder`). The
store creates each file exclusively, so only one of several processes gets the next number. The
process with the highest number holds the directory. A process that finds a higher number than its
own has lost the directory. A heartbeat renews the file of the holder.

A holder that died on this machine is replaced immediately. A holder on another machine is watched
for `ttl_s`, because only its heartbeat shows whether it is alive. The clocks of two machines are
never compared. To detect a store that does not create exclusively, the same file is created twice.
"""

import json
import logging
import os
import platform
import re
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

from ray_app.child_process import identify_process, is_running
from ray_app.errors import IdentityError, StorageError, TouchstoneError
from ray_app.storage.errors import refuses_condition
from ray_app.storage.store import Store

UNGUARDED = "write into a directory whose store has no conditional writes: then nothing stops two commands from writing there at once"
_IGNORED, _UNTRIED = "it ignores or refuses If-None-Match", "this kind of store was not tested"
_FOLDER, _NAME = "lease", re.compile(r"(\d+)\.json")
_MAX_FILES = 3  # The newest file has the number. The files before it show the previous writers.
_OLD_PATH = "lease.json"  # Touchstone up to 0.24 used this file.
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Holder:
    """The process that has claimed a directory, so that it is the only writer there.

    A file in the folder `lease` of the directory has these values as JSON.

    Attributes:
        machine: The identity of the machine (see `host_identity`).
        started: The start time of the process, which distinguishes it from other processes with the
            same id.
        token: Random hex digits, by which a process recognises the file that it wrote itself.
        beat: The number of heartbeats so far. It shows other machines that the process is alive.
    """

    host: str
    machine: str
    pid: int
    started: str
    token: str
    beat: int = 0
    released: bool = False

    @classmethod
    def this_process(cls) -> "Holder":
        """Return a `Holder` that describes this process, with a new token."""
        pid, started = identify_process()
        return cls(platform.node(), host_identity(), pid, started, secrets.token_hex(16))

    def died_here(self) -> bool:
        """Return whether the process ran on this machine and has ended.

        Return False for a process on another machine, because this machine cannot detect its end.
        """
        return self.machine == host_identity() and not is_running(self.pid, self.started)

    def encode(self) -> bytes:
        """Return the content of the lease file for this holder."""
        return json.dumps(asdict(self)).encode()


def find_newest_claim(store: Store) -> int:
    """Return the number of the newest claim on a directory (`Lease.number`), 0 if there is none.

    Each process that writes to the directory claims it first, with a higher number than before.
    """
    names = filter(_NAME.fullmatch, store.names(_FOLDER))
    return max((_parse_number(f"{_FOLDER}/{name}") for name in names), default=0)


class Lease:
    """A claim on a directory that makes this process its only writer; a context manager.

    `number` is the number of this claim: 1 for the first claim of a directory, and higher for each
    later claim. The event `lost` is set when another process has claimed the directory, or when the
    claim was not renewed for `ttl_s`. `is_guarded` is False if the store does not exclude a second
    writer. A holder on another machine counts as dead after `ttl_s` without a heartbeat.
    `unguarded` accepts a store without conditional writes.
    """

    def __init__(
        self,
        store: Store,
        *,
        ttl_s: float = 30.0,
        beat_s: float = 5.0,
        poll_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
        holder: Holder | None = None,
        unguarded: bool = False,
    ) -> None:
        self.number = 0
        self.is_guarded = True
        self._unguarded = unguarded
        self.lost = threading.Event()
        self.holder = holder or Holder.this_process()
        self._store, self._ttl_s, self._beat_s, self._poll_s = store, ttl_s, beat_s, poll_s
        self._clock, self._sleep = clock, sleep
        self._stopped = threading.Event()
        self._heart: threading.Thread | None = None

    def __enter__(self) -> "Lease":
        self.acquire()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def acquire(self) -> None:
        """Claim the directory, and start the heartbeat that renews the claim.

        Raises IdentityError if another process holds the directory and is alive, or a lease file is
        invalid, and StorageError if the store does not exclude a second writer.
        """
        self._remove_old_lease()
        while not self._claim_next_number():
            pass
        # On a store with conditional writes the file is already there, so this creation fails.
        probe = replace(self.holder, beat=-1)
        self.is_guarded = self._store.is_exclusive and not self._create(self._path, probe)
        if not self.is_guarded and not self._unguarded:
            self._store.delete(self._path)
            raise self._make_unguarded_error()
        if not self.is_guarded:
            _log.warning(
                "lease_unguarded url=%s lost=%r",
                self._store.url,
                "nothing stops two commands from writing into this directory at once",
            )
        self._remove_old_files()
        self._heart = threading.Thread(target=self._keep_alive, name="lease", daemon=True)
        self._heart.start()

    def release(self) -> None:
        """Stop the heartbeat, and release the directory if it is still held."""
        self._stopped.set()
        if self._heart is not None:
            self._heart.join()
        try:
            if self._is_newest():
                self._release_claim()
        except TouchstoneError as error:
            _log.warning("lease_left_behind reason=%r", error.message)

    def facts(self) -> dict[str, Any]:
        """Return the entries for this lease in the JSON summary of a run.

        They are `{"unguarded": True}` if the store cannot prevent a second process from writing to
        the directory. Otherwise there are none.
        """
        return {} if self.is_guarded else {"unguarded": True}

    def check(self) -> None:
        """Raise IdentityError if this process has lost its claim on the directory."""
        if self.lost.is_set():
            raise IdentityError(
                f"{self._store.url}: another run has taken over this directory, or this process could not renew its claim in time",
                hint="wait until no other run uses the directory, then run the same command again",
            )

    @property
    def _path(self) -> str:
        return f"{_FOLDER}/{self.number:05}.json"

    def _claim_next_number(self) -> bool:
        """Create the file after the newest file. Return False if another process was faster."""
        newest = self._read_newest()
        if newest is not None and not self._is_over(*newest):
            return False
        number = 1 if newest is None else _parse_number(newest[0]) + 1
        path = f"{_FOLDER}/{number:05}.json"
        if not self._create(path, self.holder):
            return False
        if newest is not None and not newest[1].released:
            _log.warning(
                "lease_taken_over url=%s host=%s pid=%d reason=%r",
                self._store.url,
                newest[1].host,
                newest[1].pid,
                "the last command there ended without a message: it, or the Ray that it used, was killed",
            )
        self.number = number
        return True

    def _create(self, path: str, holder: Holder) -> bool:
        """Write a file unless it exists. A store that refuses the condition gets a plain write."""
        try:
            return self._store.create(path, holder.encode())
        except StorageError as error:
            if not refuses_condition(error.__cause__):
                raise
            self._store.write(path, holder.encode())
            return True

    def _list_files(self) -> list[str]:
        """List the paths of all lease files by number, the lowest first."""
        names = filter(_NAME.fullmatch, self._store.names(_FOLDER))
        return sorted((f"{_FOLDER}/{name}" for name in names), key=_parse_number)

    def _read_newest(self) -> tuple[str, Holder] | None:
        """Return the path and the holder with the highest number, None without any lease file."""
        while paths := self._list_files():
            # If the file was removed after the listing, a newer file exists, or the directory is
            # free.
            if (holder := self._read(paths[-1])) is not None:
                return paths[-1], holder
        return None

    def _is_newest(self) -> bool:
        newest = self._read_newest()
        return newest is not None and (newest[0], newest[1].token) == (
            self._path,
            self.holder.token,
        )

    def _read(self, path: str) -> Holder | None:
        try:
            return Holder(**json.loads(self._store.read(path)))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):
            raise IdentityError(
                f"{self._store.url}/{path} is not a lease of this version of Touchstone",
                hint="delete it if no run is using the directory",
            ) from None

    def _is_over(self, path: str, other: Holder) -> bool:
        """Return whether a holder released its claim or is dead.

        It is False if another process has taken over the file. Raises IdentityError if the holder
        is alive.
        """
        if other.released or other.died_here():
            return True
        if other.machine == host_identity():
            raise self._make_in_use_error(other)
        _log.info("lease_watch host=%s pid=%d seconds=%g", other.host, other.pid, self._ttl_s)
        until = self._clock() + self._ttl_s
        while self._clock() < until:
            self._sleep(self._poll_s)
            current = self._read(path)
            if current is None or current.released or current.token != other.token:
                return False
            if current.beat != other.beat:
                raise self._make_in_use_error(other)
        return True

    def _make_in_use_error(self, other: Holder) -> IdentityError:
        return IdentityError(
            f"{self._store.url} is in use by another run (host {other.host}, process {other.pid})",
            hint="wait for it, stop it, or use another --out",
        )

    def _make_unguarded_error(self) -> StorageError:
        reason = _IGNORED if self._store.is_exclusive else _UNTRIED
        return StorageError(
            f"{self._store.url}: this store has no conditional writes ({reason}), so two commands that write "
            "into one directory would not notice each other",
            hint="write to a store that has conditional writes, or to a disk and copy from there; or, if nothing else writes into this "
            "directory at the same time, set the key `unguarded` (docs/continuing.md)",
        )

    def _remove_old_lease(self) -> None:
        """Remove the lease of an older version whose holder is dead.

        Raises IdentityError if the holder is alive.
        """
        while (other := self._read(_OLD_PATH)) is not None:
            if self._is_over(_OLD_PATH, other):
                self._store.delete(_OLD_PATH)

    def _remove_old_files(self) -> None:
        try:
            self._store.delete_all(self._list_files()[:-_MAX_FILES])
        except StorageError as error:
            _log.warning("lease_files_left_behind reason=%r", error.message)

    def _release_claim(self) -> None:
        store = self._store
        if self.number == 1 and not store.names("") and store.folders("") == [_FOLDER]:
            # The command wrote nothing, so nothing refers to the number.
            store.delete(self._path)
            store.drop_folder(_FOLDER)
        else:
            store.write(self._path, replace(self.holder, released=True).encode())

    def _keep_alive(self) -> None:
        renewed_at = self._clock()
        while not self._stopped.wait(self._beat_s):
            try:
                if not self._is_newest():
                    break
                self.holder = replace(self.holder, beat=self.holder.beat + 1)
                self._store.write(self._path, self.holder.encode())
                renewed_at = self._clock()
            except IdentityError:
                break
            except StorageError as error:
                _log.warning("lease_heartbeat_failed reason=%r", error.message)
                if self._clock() - renewed_at > self._ttl_s:
                    break
        else:
            return
        self.lost.set()
        _log.error("lease_lost url=%s", self._store.url)


def _parse_number(path: str) -> int:
    return int(path.removeprefix(f"{_FOLDER}/").removesuffix(".json"))


@cache
def host_identity() -> str:
    """Return the identity of this machine: its name, boot, and process namespace.

    Two processes have the same identity exactly if each can detect whether the other is running.
    Containers of one machine have the same boot, but not the same process ids.
    """
    boot = _read_or_unknown(lambda: Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    return f"{platform.node()} {boot} {_read_or_unknown(lambda: os.readlink('/proc/self/ns/pid'))}"


def _read_or_unknown(read: Callable[[], str]) -> str:
    try:
        return read()
    except OSError:
        return "?"
