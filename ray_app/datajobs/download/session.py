"""One session of collecting: `DownloadSession` hands out what is missing and counts what comes back, until nothing is missing.

collect.json        whose directory it is
parts/              rows as the workers committed them (`Records`), the latest of an id counts; joined into one when a session ends
A row counts where its image is there: the file, of its size, or the shard. What no row counts for is unfinished.
"""

import hashlib
import io
import json
import secrets
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ray_app.cluster.progress import Progress
from ray_app.cluster.ray_cluster import named_cluster
from ray_app.datajobs.download.config import OK, CollectConfig
from ray_app.datajobs.download.sink import ENDINGS, OUTCOME, PARTS, Task
from ray_app.datajobs.download.worker import Crew, DownloadReport
from ray_app.errors import IdentityError
from ray_app.runs.directory import refuse_others
from ray_app.storage import Lease, Store

# Fewer are there before a local cluster would be up, or soon after: one process requests a thousand urls at once.
_FEW = 20_000
_LISTEN_S = 1.0
_FORMAT = 1
_READERS = 16
_MANY_PARTS = 8
_MOST_IN_HAND = 1000
_PER_PLACE = 4  # urls in a worker's hands for each request that their host may have at once


@dataclass(frozen=True)
class State:
    """`rows`: one per id (`OUTCOME`). `left`: files without a row, by their names without ending."""

    rows: pa.Table
    left: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Records:
    """The directory of one collection, and where its rows lie."""

    config: CollectConfig

    @property
    def url(self) -> str:
        """Where rows, tables and the summary are."""
        out = self.config.out.rstrip("/") or "/"
        return out if self.config.form != "files" or self.config.folder else f"{out}/_collected"

    @property
    def images(self) -> Store:
        """Where images go: files below `folder`, shards below data."""
        return Store.open(self.config.out)

    @property
    def store(self) -> Store:
        """Where all else goes."""
        return Store.open(self.url)

    def claim(self) -> None:
        """Make the directory this command's, or see that it is. Raises IdentityError where files and shards would be mixed."""
        ours = {"format": _FORMAT, "form": self.config.form, "folder": self.config.folder}
        store = self.store
        try:
            theirs = json.loads(store.read("collect.json"))
        except FileNotFoundError:
            refuse_others(store, "collect.json")
            store.write("collect.json", json.dumps(ours).encode())
            return
        if ours != theirs:
            differing = ", ".join(f"{key} {theirs.get(key)!r}, not {ours[key]!r}" for key in ours if ours[key] != theirs.get(key))
            raise IdentityError(f"{store.url} was made otherwise: {differing}", hint="give another --out, or the same form")

    def read(self) -> State:
        """The rows that count, and the files that none of all rows names."""
        rows = self._latest()
        places, sizes = self._places()
        is_ok = pc.equal(rows["status"], OK)
        known = sizes if self.config.form == "files" else dict.fromkeys(places)
        found = zip(rows["place"].to_pylist(), rows["size_bytes"].to_pylist(), is_ok.to_pylist(), strict=True)
        counts = [not ok or (place in known and known[place] in (None, size)) for place, size, ok in found]
        rows = rows.filter(pa.array(counts, pa.bool_()))
        return State(rows, self._left(rows, sizes))

    def join(self) -> None:
        """Make one part of many. Killed in between, rows stand in two of them, which does no harm."""
        names = self.store.names(PARTS)
        if len(names) < _MANY_PARTS:
            return
        file = io.BytesIO()
        pq.write_table(self._table(names), file, compression="zstd")
        self.store.write(f"{PARTS}/{secrets.token_hex(8)}.parquet", file.getvalue())
        for name in names:
            self.store.delete(f"{PARTS}/{name}")

    def _latest(self) -> pa.Table:
        """One row per id: the last by time, and of shards the one that is there."""
        table = self._table(self.store.names(PARTS)).sort_by("ended_at")
        if self.config.form != "files":
            there = pa.array([f"data/{name}" for name in self.images.names("data")], pa.string())
            table = table.filter(pc.or_(pc.not_equal(table["status"], OK), pc.is_in(table["place"], value_set=there)))
        last = {name: row for row, name in enumerate(table["id"].to_pylist())}
        return table.take(pa.array(sorted(last.values()), pa.int64()))

    def _table(self, names: list[str]) -> pa.Table:
        with ThreadPoolExecutor(_READERS) as pool:
            parts = list(pool.map(lambda name: pq.read_table(io.BytesIO(self.store.read(f"{PARTS}/{name}"))), names))
        return pa.concat_tables([OUTCOME.empty_table(), *(part.cast(OUTCOME) for part in parts)])

    def _places(self) -> tuple[set[str], dict[str, int | None]]:
        """Shards that are there; files with their sizes."""
        if self.config.form != "files":
            return {f"data/{name}" for name in self.images.names("data")}, {}
        prefix = f"{self.config.folder}/" if self.config.folder else ""
        return set(), {prefix + name: size for name, size in self.images.sizes(self.config.folder).items()}

    def _left(self, rows: pa.Table, sizes: Mapping[str, int | None]) -> dict[str, tuple[str, ...]]:
        named, left = set(rows["place"].to_pylist()), dict[str, tuple[str, ...]]()
        for stem, name in _images(path.rpartition("/")[2] for path in sizes if path not in named):
            left[stem] = (*left.get(stem, ()), name)
        return left


class DownloadSession:
    """The driver's side. `ended`: the status of every url that ended in this session, by id."""

    def __init__(self, config: CollectConfig, records: Records, lease: Lease, progress: Progress) -> None:
        self._config, self._records, self._lease, self._progress = config, records, lease, progress
        self.ended: dict[str, str] = {}
        self._feeders: list[Feeder] = []

    def run(self, crew: Crew, tasks: Iterable[Task]) -> None:
        """Until every task has ended and is committed. Raises the fault of a worker, IdentityError when another took the directory over."""
        self._feeders = [Feeder(self._config.politeness.per_host) for _ in range(crew.size)]
        self._add(tasks)
        try:
            while not all(feeder.is_done for feeder in self._feeders):
                self._turn(crew)
        finally:
            last = crew.close()
        for worker, found in last:
            self._heard(worker, found)

    def _turn(self, crew: Crew) -> None:
        for worker, feeder in enumerate(self._feeders):
            if tasks := feeder.next():
                crew.give(worker, tasks)
        for worker, found in crew.take(_LISTEN_S):
            if found is None:
                self._lost(worker)
            else:
                self._heard(worker, found)
        self._progress.redraw()
        self._lease.check()

    def _heard(self, worker: int, report: DownloadReport) -> None:
        feeder = self._feeders[worker]
        for name, status in report.ended:
            feeder.ended(name)
            if name not in self.ended:
                self._progress.advance(1, status != OK)
            self.ended[name] = status
        feeder.committed(report.committed)
        for task in report.moved:
            feeder.moved(task.id)
        self._add(report.moved)
        if report.fault is not None:
            raise report.fault

    def _lost(self, worker: int) -> None:
        """A worker died: what it had not committed is given out again. It may have committed more than it came to say."""
        state = self._records.read()
        there = dict(zip(state.rows["id"].to_pylist(), state.rows["ended_at"].to_pylist(), strict=True))
        again = [task for task in self._feeders[worker].again() if there.get(task.id) in (None, task.before)]
        self._progress.say(f"a worker died; {len(again):,} urls are asked again")
        self._add(replace(task, there=state.left.get(task.stem, ())) for task in again)

    def _add(self, tasks: Iterable[Task]) -> None:
        for task in tasks:
            self._feeders[owner_of(task.host, len(self._feeders))].add([task])


def wants_ray(config: CollectConfig, urls: int) -> bool:
    """Ray where there is a cluster, or where it is requested or pays; one worker without a cluster is this process."""
    if named_cluster(config.cluster.address):
        return True
    return config.cluster.workers != 1 and (config.cluster.workers is not None or urls > _FEW)


def _images(names: Iterator[str]) -> Iterator[tuple[str, str]]:
    for name in names:
        stem, _, ending = name.rpartition(".")
        if stem and ending.lower() in ENDINGS:
            yield stem, name


def owner_of(host: str, workers: int) -> int:
    """The worker of a host, for the whole session: so its limit is one for all."""
    return int.from_bytes(hashlib.sha256(host.encode()).digest()[:4], "big") % workers


class Feeder:
    """The urls of one worker, host by host in turn."""

    def __init__(self, per_host: int, most: int = _MOST_IN_HAND) -> None:
        self._per_host, self._most = per_host * _PER_PLACE, most
        self._waiting: OrderedDict[str, deque[Task]] = OrderedDict()
        self._at: Counter[str] = Counter()
        self._in_hand: dict[str, Task] = {}
        self.uncommitted: dict[str, Task] = {}

    def add(self, tasks: Iterable[Task]) -> None:
        """More that waits."""
        for task in tasks:
            self._waiting.setdefault(task.host, deque()).append(task)

    def next(self) -> list[Task]:
        """What the worker is to be given now; it is in hand from here on."""
        chosen: list[Task] = []
        while len(self._in_hand) < self._most and (host := self._host_with_room()) is not None:
            task = self._waiting[host].popleft()
            if not self._waiting[host]:
                del self._waiting[host]
            else:
                self._waiting.move_to_end(host)
            self._at[host] += 1
            self._in_hand[task.id] = self.uncommitted[task.id] = task
            chosen.append(task)
        return chosen

    def ended(self, name: str) -> None:
        """One is out of hand."""
        task = self._in_hand.pop(name, None)
        if task is not None:
            self._at[task.host] -= 1

    def moved(self, name: str) -> None:
        """One is another host's now, and nothing of it is to be committed here."""
        self.ended(name)
        self.uncommitted.pop(name, None)

    def committed(self, names: Iterable[str]) -> None:
        """These outlive the worker."""
        for name in names:
            self.uncommitted.pop(name, None)

    def again(self) -> list[Task]:
        """What a worker that died had not committed, taken out of its hand."""
        lost = list(self.uncommitted.values())
        self._in_hand.clear()
        self._at.clear()
        self.uncommitted.clear()
        return lost

    @property
    def is_done(self) -> bool:
        """Whether nothing waits and nothing is in hand."""
        return not self._waiting and not self._in_hand

    def _host_with_room(self) -> str | None:
        return next((host for host in self._waiting if self._at[host] < self._per_host), None)
