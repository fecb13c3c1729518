"""`Lease`: one run per directory, by a small file that names its `Holder` (host and process) and is
renewed by a heartbeat.

A holder that died on this machine is replaced at once; one elsewhere is watched for `ttl_s`, since
only its heartbeat shows whether it lives. No clock of another machine is ever compared with ours.
Of many that find the same dead holder, one gets its place: they race for the exclusive creation of
a file named after that holder's token. A store that does not create exclusively is detected by
trying to create the lease once more.
"""

import json
import logging
import os
import platform
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

from ray_app.child_process import is_running, own_process
from ray_app.errors import IdentityError, StorageError, TouchstoneError
from ray_app.storage.errors import refuses_condition
from ray_app.storage.store import Store

UNGUARDED = "write into a directory whose store has no conditional writes: then nothing stops two commands from writing there at once"
_SAYS, _UNTRIED = "it ignores or refuses If-None-Match", "a kind that was never tried"
_PATH = "lease.json"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Holder:
    """Who holds a lease: a process (pid and when it started) of a machine, and a token that no
    other acquisition shares.
    """

    host: str
    machine: str
    pid: int
    started: str
    token: str
    beat: int = 0

    @classmethod
    def this_process(cls) -> "Holder":
        """This process, with a new token."""
        pid, started = own_process()
        return cls(platform.node(), host_identity(), pid, started, secrets.token_hex(16))

    def died_here(self) -> bool:
        """Whether it is known for sure to be gone: only a process of this very machine can be."""
        return self.machine == host_identity() and not is_running(self.pid, self.started)

    def encode(self) -> bytes:
        """The lease file's content."""
        return json.dumps(asdict(self)).encode()


class Lease:
    """`with Lease(store) as lease:` — nobody else has this store meanwhile; `lease.check()` before
    what must not be done by two.

    Raises IdentityError on entering when another living run holds it, naming its host and process,
    and StorageError where the store would let two of them in (it ignores or refuses
    `If-None-Match`, or is of a kind that was never tried), unless `unguarded`; `is_guarded` then
    says whether it would.
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
        self.is_guarded = True
        self._unguarded = unguarded
        self.lost = threading.Event()
        self.holder = holder or Holder.this_process()
        self._store, self._ttl_s, self._beat_s, self._poll_s = store, ttl_s, beat_s, poll_s
        self._clock, self._sleep = clock, sleep
        self._released = threading.Event()
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
        """Take the lease and keep it warm. Raises IdentityError while another living run has it,
        and StorageError as the class says.
        """
        while not self._taken():
            pass
        self.is_guarded = self._store.is_exclusive and not self._created(
            _PATH, replace(self.holder, beat=-1)
        )  # that would be over the one that is there
        if not self.is_guarded:
            self._go_without_guard()
        self._heart = threading.Thread(target=self._keep_warm, name="lease", daemon=True)
        self._heart.start()

    def release(self) -> None:
        """Stop the heartbeat and leave the place free, if it is still ours."""
        self._released.set()
        if self._heart is not None:
            self._heart.join()
        try:
            now = self._read(_PATH)
            if now is not None and now.token == self.holder.token:
                self._store.delete(_PATH)
        except TouchstoneError as error:
            _log.warning("lease_left_behind reason=%r", error.message)

    def facts(self) -> dict[str, Any]:
        """For a summary: nothing, unless another writer would not have been noticed."""
        return {} if self.is_guarded else {"unguarded": True}

    def check(self) -> None:
        """Raises IdentityError once another run has taken over."""
        if self.lost.is_set():
            raise IdentityError(
                f"{self._store.url}: another run has taken this directory over",
                hint="this process could not renew its claim in time; let the other one finish, then run the same command again",
            )

    def _taken(self) -> bool:
        """Take an empty place, or a dead holder's. It is read first: not every store refuses to
        write over a living one's.
        """
        other = self._read(_PATH)
        if other is None:
            return self._created(_PATH, self.holder)
        return self._is_dead(other) and self._take_over(other)

    def _created(self, path: str, holder: Holder) -> bool:
        """Write unless something is there; where the store refuses that condition, write in any
        case.
        """
        try:
            return self._store.create(path, holder.encode())
        except StorageError as error:
            if not refuses_condition(error.__cause__):
                raise
            self._store.write(path, holder.encode())
            return True

    def _go_without_guard(self) -> None:
        url = self._store.url
        if not self._unguarded:
            self.release()
            raise StorageError(
                f"{url}: this store has no conditional writes ({_SAYS if self._store.is_exclusive else _UNTRIED}): two commands that write "
                "into one directory would not notice each other",
                hint="write to a store that has them, or to a disk, and copy from there; or, if nothing else ever writes into this "
                "directory at the same time, say so by the key `unguarded` (docs/continuing.md)",
            )
        _log.warning(
            "lease_unguarded url=%s lost=%r",
            url,
            "nothing stops two commands from writing into this directory at once",
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

    def _is_dead(self, other: Holder) -> bool:
        """False when the place changed hands while we looked. Raises IdentityError when the holder
        lives.
        """
        if other.died_here():
            return True
        if other.machine == host_identity():
            raise self._in_use(other)
        _log.info("lease_watch host=%s pid=%d seconds=%g", other.host, other.pid, self._ttl_s)
        until = self._clock() + self._ttl_s
        while self._clock() < until:
            self._sleep(self._poll_s)
            now = self._read(_PATH)
            if now is None or now.token != other.token:
                return False
            if now.beat != other.beat:
                raise self._in_use(other)
        return True

    def _in_use(self, other: Holder) -> IdentityError:
        return IdentityError(
            f"{self._store.url} is in use by another run (host {other.host}, process {other.pid})",
            hint="wait for it, stop it, or give another --out",
        )

    def _take_over(self, other: Holder) -> bool:
        """Take a dead holder's place; False when another process did."""
        claim = f"lease.{other.token}.json"
        if not self._created(claim, self.holder):
            self._await_claimant(claim)
            return False
        try:
            now = self._read(_PATH)
            if now is None or (now.token, now.beat) != (other.token, other.beat):
                return False
            self._store.write(_PATH, self.holder.encode())
            _log.info("lease_taken_over host=%s pid=%d", other.host, other.pid)
            return True
        finally:
            self._store.delete(claim)

    def _await_claimant(self, claim: str) -> None:
        """A claim lasts for moments; one that stays was left by a process that died with it in
        hand.
        """
        until = self._clock() + self._ttl_s
        while self._clock() < until:
            claimant = self._read(claim)
            if claimant is None:
                return
            if claimant.died_here():
                break
            self._sleep(self._poll_s)
        self._store.delete(claim)

    def _keep_warm(self) -> None:
        warm_at = self._clock()
        while not self._released.wait(self._beat_s):
            try:
                now = self._read(_PATH)
                if now is None or now.token != self.holder.token:
                    break
                self.holder = replace(self.holder, beat=self.holder.beat + 1)
                self._store.write(_PATH, self.holder.encode())
                warm_at = self._clock()
            except IdentityError:
                break
            except StorageError as error:
                _log.warning("lease_heartbeat_failed reason=%r", error.message)
                if self._clock() - warm_at > self._ttl_s:
                    break
        else:
            return
        self.lost.set()
        _log.error("lease_lost url=%s", self._store.url)


@cache
def host_identity() -> str:
    """What two processes share exactly when one can see whether the other runs: name, boot and
    process namespace.

    Containers of one machine share its boot, not its process numbers: hence the namespace.
    """
    boot = _or_unknown(lambda: Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    return f"{platform.node()} {boot} {_or_unknown(lambda: os.readlink('/proc/self/ns/pid'))}"


def _or_unknown(read: Callable[[], str]) -> str:
    try:
        return read()
    except OSError:
        return "?"
