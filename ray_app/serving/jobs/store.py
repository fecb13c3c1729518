"""Where jobs are kept: `job_store` opens one in memory, or small files under one root.

<root>/states/<id>.json          the record
<root>/lines/<id>-<index>.json   one scored image of an unfinished job of URLs
<root>/results/<id>.jsonl        all lines in order, once it is done
<root>/lease.json                one process works on a root at a time
"""

import asyncio
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

from pydantic import ValidationError

from ray_app.errors import IdentityError, TouchstoneError
from ray_app.serving.config import JobLimits
from ray_app.serving.http.errors import Refusal
from ray_app.serving.jobs.queue import RETRY_AFTER_S
from ray_app.serving.jobs.record import JobRecord
from ray_app.storage import Lease, Store

_PREDECESSOR_S = 120.0  # how long the process that is being replaced may take to let go
_ASK_AGAIN_S = 0.5
_log = logging.getLogger(__name__)

Kept = list[tuple[JobRecord, Mapping[int, bytes]]]


class JobStore(Protocol):
    """Keeps records and results. Every method raises TouchstoneError, with a hint, where the place is out of reach."""

    async def open(self) -> Kept:
        """All records, with the lines of unfinished ones by index; nobody else works on them from now on."""
        ...

    async def save(self, record: JobRecord) -> None:
        """Write a record over what was there."""
        ...

    async def add_line(self, record: JobRecord, index: int, line: bytes) -> None:
        """Keep one image's answer before the job is done, if a later process could go on from it."""
        ...

    async def finish(self, record: JobRecord, results: bytes | None) -> None:
        """Keep the end of a job: its results first, then its record, so that who sees the record finds them. Its lines may go."""
        ...

    async def results(self, record: JobRecord) -> bytes:
        """The results of a job that is done."""
        ...

    async def forget(self, record: JobRecord) -> None:
        """Remove all there is of a job."""
        ...

    def is_crowded(self) -> bool:
        """Whether the oldest results have to go before their time."""
        ...

    async def close(self) -> None:
        """Let go of the place."""
        ...


def job_store(limits: JobLimits) -> JobStore:
    """The store that the settings ask for. Raises ConfigError for a directory that cannot be opened."""
    return (
        MemoryJobs(limits.max_waiting_bytes)
        if limits.directory is None
        else StoredJobs(Store.open(limits.directory), unguarded=limits.unguarded)
    )


@contextmanager
def reachable() -> Iterator[None]:
    """To a client, a store that is out of reach is the endpoint's trouble, and passes."""
    try:
        yield
    except TouchstoneError as error:
        _log.exception("job_store_unreachable hint=%r", error.hint)
        raise Refusal("overloaded", "jobs cannot be kept now", headers={"Retry-After": str(RETRY_AFTER_S)}) from None
    except FileNotFoundError:
        raise Refusal("not_found", "its results are gone") from None


class MemoryJobs:
    """Results in memory, within a budget: a busy endpoint must not grow for as long as `keep_hours`."""

    def __init__(self, budget_bytes: int) -> None:
        self._budget, self._results = budget_bytes, dict[str, bytes]()
        self._held = 0

    async def open(self) -> Kept:
        """Nothing was kept."""
        return []

    async def save(self, record: JobRecord) -> None:
        """The book itself holds it."""

    async def add_line(self, record: JobRecord, index: int, line: bytes) -> None:
        """The work itself holds it."""

    async def finish(self, record: JobRecord, results: bytes | None) -> None:
        """Hold the results."""
        if results is not None:
            self._results[record.id] = results
            self._held += len(results)

    async def results(self, record: JobRecord) -> bytes:
        """As they were."""
        return self._results[record.id]

    async def forget(self, record: JobRecord) -> None:
        """Let them go."""
        self._held -= len(self._results.pop(record.id, b""))

    def is_crowded(self) -> bool:
        """Whether they are over the budget."""
        return self._held > self._budget

    async def close(self) -> None:
        """Nothing to let go of."""


class StoredJobs:
    """Files under a root, each written whole; a lease keeps a second process away until the first is gone."""

    def __init__(self, store: Store, *, unguarded: bool = False) -> None:
        self._store, self._lease, self._is_ours = store, Lease(store, unguarded=unguarded), False

    async def open(self) -> Kept:
        """As promised; waits for the process that is being replaced. Raises IdentityError where that one stays."""
        await self._take_lease()
        return await asyncio.to_thread(self._load)

    async def save(self, record: JobRecord) -> None:
        """The record as JSON."""
        await self._write(f"states/{record.id}.json", record.kept())

    async def add_line(self, record: JobRecord, index: int, line: bytes) -> None:
        """One file per line, so that a kill loses no image that was scored."""
        if record.urls is not None:
            await self._write(f"lines/{record.id}-{index:06}.json", line)

    async def finish(self, record: JobRecord, results: bytes | None) -> None:
        """Results, then the record, then the single lines go."""
        if results is not None:
            await self._write(f"results/{record.id}.jsonl", results)
        await self.save(record)
        await asyncio.to_thread(self._delete_lines, record.id)

    async def results(self, record: JobRecord) -> bytes:
        """Read on request: memory does not grow with what is kept."""
        return await asyncio.to_thread(self._store.read, f"results/{record.id}.jsonl")

    async def forget(self, record: JobRecord) -> None:
        """The record goes first: without it the rest is nobody's, and swept at the next start."""
        self._lease.check()
        await asyncio.to_thread(self._store.delete, f"states/{record.id}.json")
        await asyncio.to_thread(self._store.delete, f"results/{record.id}.jsonl")

    def is_crowded(self) -> bool:
        """A folder has no budget but `keep_hours`."""
        return False

    async def close(self) -> None:
        """Let the next process in."""
        if self._is_ours:
            await asyncio.to_thread(self._lease.release)

    async def _take_lease(self) -> None:
        until = asyncio.get_running_loop().time() + _PREDECESSOR_S
        while not self._is_ours:
            try:
                await asyncio.to_thread(self._lease.acquire)
                self._is_ours = True
            except IdentityError:
                if asyncio.get_running_loop().time() > until:
                    raise
                _log.info("jobs_wait_for_predecessor url=%s", self._store.url)
                await asyncio.sleep(_ASK_AGAIN_S)

    async def _write(self, path: str, data: bytes) -> None:
        self._lease.check()
        await asyncio.to_thread(self._store.write, path, data)

    def _load(self) -> Kept:
        names = self._store.names("states")
        records = [record for name in names if (record := self._record(name)) is not None]
        lines: dict[str, dict[int, bytes]] = {record.id: {} for record in records if not record.has_ended}
        for name in self._store.names("lines"):
            job, _, index = name.removesuffix(".json").rpartition("-")
            if job in lines:
                lines[job][int(index)] = self._store.read(f"lines/{name}")
            else:
                self._store.delete(f"lines/{name}")
        for name in self._store.names("results"):  # of jobs that were being forgotten when the last process died
            if f"{name.removesuffix('.jsonl')}.json" not in names:
                self._store.delete(f"results/{name}")
        return [(record, lines.get(record.id, {})) for record in records]

    def _record(self, name: str) -> JobRecord | None:
        try:
            return JobRecord.model_validate_json(self._store.read(f"states/{name}"))
        except ValidationError:
            _log.warning("job_record_unreadable name=%r", name)  # of another version: left as it is
            return None

    def _delete_lines(self, job: str) -> None:
        for name in self._store.names("lines"):
            if name.startswith(f"{job}-"):
                self._store.delete(f"lines/{name}")
