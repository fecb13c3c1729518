"""`touchstone data collect`: `collect` reads the list, has what is missing fetched, writes the
tables. The same command resumes.

Without a cluster one `Downloader` fetches all. On Ray, hosts are divided into parts, of which each
is with one process at a time (`HostSchedule`), so that a host's limits hold for all processes
together. The directory is `Records`:

collect.json        whose directory it is parts/              rows as processes committed them, the
latest of an id counts; joined into one when a session ends collected.parquet   the rows of the list
that have an image; failed.parquet: those without, and why

A row counts where its image is there: the file, of its size, or the shard. What no row counts for
is unfinished.
"""

import json
import secrets
import shlex
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ray_app.cluster.progress import Progress
from ray_app.cluster.ray_cluster import cluster, named_cluster, resources
from ray_app.datajobs.download import sink, url_table
from ray_app.datajobs.download.config import MEANING, PASSING, CollectConfig
from ray_app.datajobs.download.fetch import Downloader, Fetched, Unit
from ray_app.datajobs.download.hosts import Host
from ray_app.datajobs.parts import OK, labelled, part_names, read_parts, remove_part, write_part
from ray_app.errors import ClusterError, StorageError, resumable
from ray_app.reports import format as wording
from ray_app.runs.directory import claim_directory, is_claimed
from ray_app.runs.table_files import write_tables
from ray_app.storage import Lease, Store, canonical, strip_secrets, with_s3_settings
from ray_app.streams.worker_pool import in_pool

_MANY_PARTS = 8
_ROWS = 10_000
_FACTS = ("sha256", "format", "width", "height", "size_bytes")
_SAME = "form and folder"
_REASONS = ("status", "detail", "http_status", "requests", "final_url")


@dataclass(frozen=True)
class State:
    """`rows`: one per id (`OUTCOME`). `left`: files without a row, by their names without ending."""

    rows: pa.Table
    left: Mapping[str, tuple[str, ...]]


class Records:
    """Where a collection lies. `images`: the store in which images go, below `folder` or as shards
    below data; `store`: all else.
    """

    def __init__(self, config: CollectConfig) -> None:
        self.config = config
        out = config.out.rstrip("/") or "/"
        self.url = out if config.form != "files" or config.folder else f"{out}/_collected"
        self.images, self.store = Store.open(config.out), Store.open(self.url)

    def check(self) -> None:
        """Check that the directory is free, or of this command, and write nothing.

        Raises:
            ConfigError: Another command wrote the directory.
            IdentityError: The directory has files and this command writes shards, or the reverse.
        """
        is_claimed(self.store, "collect.json", self._identity(), same=_SAME)

    def claim(self) -> None:
        """Make the directory this command's. Raises as `check`."""
        claim_directory(self.store, "collect.json", self._identity(), same=_SAME)

    def _identity(self) -> dict[str, Any]:
        return {"format": 1, "form": self.config.form, "folder": self.config.folder}

    def read(self) -> State:
        """The rows that count, and the files that none of all rows names."""
        rows = self._table(part_names(self.store)).sort_by("ended_at")
        is_failed = pc.not_equal(rows["status"], OK)
        if self.config.form == "files":
            prefix = f"{self.config.folder}/" if self.config.folder else ""
            sizes = {
                prefix + name: size for name, size in self.images.sizes(self.config.folder).items()
            }
            rows = _last_of_each(rows)
            found = zip(
                rows["place"].to_pylist(),
                rows["size_bytes"].to_pylist(),
                rows["status"].to_pylist(),
                strict=True,
            )
            counts = [
                status != OK or (place in sizes and sizes[place] in (None, size))
                for place, size, status in found
            ]
            rows, named = rows.filter(pa.array(counts, pa.bool_())), set(rows["place"].to_pylist())
            return State(
                rows, _images(path.rpartition("/")[2] for path in sizes if path not in named)
            )
        there = pa.array([f"data/{name}" for name in self.images.names("data")], pa.string())
        return State(
            _last_of_each(rows.filter(pc.or_(is_failed, pc.is_in(rows["place"], value_set=there)))),
            {},
        )

    def join(self) -> None:
        """Make one part of many. Killed in between, rows stand in two of them, which does no harm."""
        names = part_names(self.store)
        if len(names) >= _MANY_PARTS:
            write_part(
                self.store, secrets.token_hex(8), self._table(names).to_pylist(), sink.OUTCOME
            )
            for name in names:
                remove_part(self.store, name)

    def _table(self, names: list[str]) -> pa.Table:
        return pa.concat_tables(
            [
                sink.OUTCOME.empty_table(),
                *(part.cast(sink.OUTCOME) for _, part in read_parts(self.store, names)),
            ]
        )

    def write_results(self, listed: url_table.UrlTable, rows: pa.Table) -> None:
        """collected.parquet, in the order of the list: `uri` (relative to it; `shard` where images
        are in shards), the list's columns, facts of the file; and failed.parquet. `rows`: one per
        id of the list.
        """
        order = pc.index_in(listed.rows["id"], value_set=rows["id"].combine_chunks())
        ordered, shown = rows.take(order), _without_secrets(listed.rows)
        is_ok = pc.equal(ordered["status"], OK)
        failed = {
            "id": shown["id"],
            "url": shown["url"],
            **{name: ordered[name] for name in _REASONS},
        }
        is_files = self.config.form == "files"
        up = "../" if is_files and not self.config.folder else ""
        places = [None if place is None else up + place for place in ordered["place"].to_pylist()]
        collected: dict[str, Any] = {"uri" if is_files else "shard": pa.array(places, pa.string())}
        collected |= dict(zip(shown.schema.names, shown.columns, strict=True)) | {
            name: ordered[name] for name in _FACTS
        }
        for name, columns, chosen in (
            ("failed", failed, pc.invert(is_ok)),
            ("collected", collected, is_ok),
        ):
            table = pa.table(columns).filter(chosen)
            write_tables(
                self.store,
                name,
                table.schema,
                (table.slice(start, _ROWS) for start in range(0, len(table), _ROWS)),
            )


def _last_of_each(rows: pa.Table) -> pa.Table:
    """One row per id, the last."""
    last = {name: row for row, name in enumerate(rows["id"].to_pylist())}
    return rows.take(pa.array(sorted(last.values()), pa.int64()))


def _images(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for name in names:
        stem, _, ending = name.rpartition(".")
        if stem and ending.lower() in sink.ENDINGS:
            found[stem] = (*found.get(stem, ()), name)
    return found


def _without_secrets(rows: pa.Table) -> pa.Table:
    urls = pa.array([strip_secrets(url) for url in rows["url"].to_pylist()], pa.string())
    return rows.set_column(rows.schema.names.index("url"), "url", urls)


# Fewer are there before a local cluster would be up, or soon after: one process requests a thousand
# urls at once.
_FEW = 20_000
_CPUS = 0.5  # of a process: it waits most of the time; its decoders are the work
_STALL_S = 900.0
_MOST_DEATHS = 3  # one after another, none of which left half of the urls done
# of the hosts, for each process: one that waits for a slow host holds up few others
_PARTS_EACH = 4
_UNIT_URLS, _UNIT_S = 1000, 60.0


@with_s3_settings
def collect(config: CollectConfig, *, retry: Sequence[str] = ()) -> dict[str, Any]:
    """Collect what `config.meta` lists into `config.out`; returns the content of `summary.json`.

    `retry`: statuses of failed urls that are asked again; all other urls that have an outcome are
    left as they are. Raises ConfigError, IdentityError, StorageError, ClusterError, and
    KeyboardInterrupt after what has ended is committed.
    """
    start = time.monotonic()
    # workers have other current folders
    config = config.model_copy(update={"out": canonical(config.out)})
    listed, records = url_table.read_list(config), Records(config)
    records.check()
    with Lease(records.store, unguarded=config.unguarded) as lease:
        records.claim()
        stems, cases = sink.file_stems(listed.rows["id"].to_pylist())
        tasks, stale = _missing(
            listed, stems, records.read(), retry, with_columns=config.form != "files"
        )
        for place in stale:
            records.images.delete(place)
        with resumable(KeyboardInterrupt, ClusterError):
            statuses = _fetch(records, lease, listed, tasks)
        records.join()
        mended = sum(sink.safe_name(name) != name for name in listed.rows["id"].to_pylist())
        facts = {
            "session": {
                "urls": len(tasks),
                "statuses": statuses,
                "wall_s": round(time.monotonic() - start, 2),
                **lease.facts(),
            }
        }
        summary = _summary(records, listed) | {"mended_names": mended, "names_alike": cases} | facts
        records.store.write(
            "summary.json", json.dumps(summary, indent=2, ensure_ascii=False).encode()
        )
    return summary


def _missing(
    listed: url_table.UrlTable,
    stems: Sequence[str],
    state: State,
    retry: Sequence[str],
    *,
    with_columns: bool,
) -> tuple[list[sink.Task], list[str]]:
    """What is to be fetched, and places of images whose ids have another url now."""
    rows = zip(
        *(state.rows[name].to_pylist() for name in ("id", "url", "status", "place", "ended_at")),
        strict=True,
    )
    known = {name: found for name, *found in rows}
    beside = [name for name in listed.columns if name != "url"] if with_columns else []
    columns = listed.rows.select(beside).to_pylist() if beside else [{}] * len(stems)
    tasks, stale = [], []
    for name, url, stem, words in zip(
        listed.rows["id"].to_pylist(), listed.rows["url"].to_pylist(), stems, columns, strict=True
    ):
        wanted = strip_secrets(url)
        before, status, place, ended_at = known.get(name, (None, None, None, None))
        if before == wanted and status not in retry:
            continue
        if (
            before not in (None, wanted)
            and place is not None
            and place.rpartition("/")[2].rpartition(".")[0] == stem
        ):
            stale.append(place)
        tasks.append(
            sink.Task(name, wanted, url, stem, state.left.get(stem, ()), words, before=ended_at)
        )
    return tasks, stale


def _fetch(
    records: Records, lease: Lease, listed: url_table.UrlTable, tasks: Sequence[sink.Task]
) -> Counter[str]:
    """Fetch all tasks; how many ended with which status. What a process that died had not committed
    is fetched again, a few times.
    """
    statuses: Counter[str] = Counter()
    if not tasks:
        return statuses
    total, hosts = len(listed.rows), len({task.host for task in tasks})
    progress = Progress(total, done=total - len(tasks), name="collect")
    progress.say(
        f"{total:,} urls, {len(tasks):,} to be asked at {hosts:,} host{'s' * (hosts != 1)}"
    )

    def watch(ended: Sequence[str]) -> None:
        statuses.update(ended)
        progress.advance(len(ended), sum(status != OK for status in ended))
        progress.redraw()
        lease.check()

    columns, deaths = [name for name in listed.columns if name != "url"], 0
    try:
        while tasks:
            try:
                (_fetch_on_ray if wants_ray(records.config, len(tasks)) else _fetch_here)(
                    records, columns, tasks, watch
                )
                tasks = ()
            except StorageError:
                # it is a ClusterError, but no process was lost: the same urls would meet the same
                # disk or store
                raise
            except ClusterError:
                again = unfinished(tasks, records.read())
                # long jobs lose many machines, and get on
                deaths = deaths + 1 if 2 * len(again) > len(tasks) else 0
                if deaths > _MOST_DEATHS or len(again) == len(tasks):
                    raise
                progress.say(f"a worker died; {len(again):,} urls are asked again")
                tasks = again
    finally:
        progress.close()
    return statuses


def unfinished(tasks: Iterable[sink.Task], state: State) -> list[sink.Task]:
    """The tasks that have no row, or only the one that they are to replace."""
    ended = dict(zip(state.rows["id"].to_pylist(), state.rows["ended_at"].to_pylist(), strict=True))
    left = (task for task in tasks if ended.get(task.id) in (None, task.before))
    return [replace(task, there=state.left.get(task.stem, ())) for task in left]


def wants_ray(config: CollectConfig, urls: int) -> bool:
    """Ray where there is a cluster, or where it is requested or pays; one worker without a cluster
    is this process.
    """
    if named_cluster(config.cluster.address):
        return True
    return config.cluster.workers != 1 and (config.cluster.workers is not None or urls > _FEW)


Watch = Callable[[Sequence[str]], None]


def _fetch_here(
    records: Records, columns: Sequence[str], tasks: Sequence[sink.Task], watch: Watch
) -> None:
    with closing(Downloader(records.config, records.url, columns, watch=watch)) as fetch:
        watch(fetch(Unit(tasks)).ended)


def _fetch_on_ray(
    records: Records, columns: Sequence[str], tasks: Sequence[sink.Task], watch: Watch
) -> None:
    config = records.config
    with cluster(config.cluster):
        hosts = len({task.host for task in tasks})
        size = config.cluster.workers or max(1, min(int(resources(config.cluster)[0]), hosts))
        schedule = HostSchedule(tasks, size * _PARTS_EACH)
        # Without a second try of a unit: whatever its process had written, the directory knows.
        results = in_pool(
            Downloader(config, records.url, columns, limit_s=_UNIT_S),
            schedule.units(),
            size=size,
            cpus=_CPUS,
            labels=config.cluster.labels,
            retries=0,
            ordered=False,
            stall_s=config.cluster.stall_timeout_s or _STALL_S,
            leaves=schedule.stop,
        )
        with closing(results):
            for fetched in results:
                schedule.ended(fetched)
                watch(fetched.ended)


class HostSchedule:
    """Tasks by the part that their host belongs to; one unit of a part is under way at a time."""

    def __init__(self, tasks: Iterable[sink.Task], parts: int) -> None:
        self._waiting = [deque[sink.Task]() for _ in range(parts)]
        self._hosts: list[dict[str, Host]] = [{} for _ in range(parts)]
        self._under_way: set[int] = set()
        self._is_stopped, self._changed = False, threading.Condition()
        self._add(tasks)

    def units(self) -> Iterator[Unit]:
        """A unit as soon as a part has one, until nothing waits or is under way. Waits for `ended`,
        of another thread, or `stop`.
        """
        while True:
            with self._changed:
                while (part := self._next()) is None and self._under_way and not self._is_stopped:
                    self._changed.wait()
                if part is None or self._is_stopped:
                    return
                self._under_way.add(part)
                waiting = self._waiting[part]
                unit = Unit(
                    [waiting.popleft() for _ in range(min(_UNIT_URLS, len(waiting)))],
                    part,
                    len(self._waiting),
                    self._hosts[part],
                )
            yield unit

    def ended(self, fetched: Fetched) -> None:
        """A unit has come back."""
        with self._changed:
            self._under_way.discard(fetched.part)
            self._hosts[fetched.part] = fetched.hosts
            self._add(fetched.left)
            self._changed.notify_all()

    def stop(self) -> None:
        """There is to be no further unit."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()

    def _next(self) -> int | None:
        return next(
            (
                part
                for part, waiting in enumerate(self._waiting)
                if waiting and part not in self._under_way
            ),
            None,
        )

    def _add(self, tasks: Iterable[sink.Task]) -> None:
        for task in tasks:
            self._waiting[sink.owner_of(task.host, len(self._waiting))].append(task)


def _summary(records: Records, listed: url_table.UrlTable) -> dict[str, Any]:
    """The figures, and the tables beside. Raises ClusterError where a url has no outcome."""
    rows, wanted = records.read().rows, set(listed.rows["id"].to_pylist())
    if lost := wanted - set(rows["id"].to_pylist()):
        raise ClusterError(
            f"{records.url}: {len(lost)} urls have no outcome, {min(lost)!r} for one",
            hint="the same command asks them again",
        )
    records.write_results(listed, rows)
    kept = [
        row
        for row in rows.select(["id", "status", "size_bytes"]).to_pylist()
        if row["id"] in wanted
    ]
    statuses = Counter(row["status"] for row in kept)
    return {
        "schema": 1,
        "meta": strip_secrets(records.config.meta),
        "out": records.images.url,
        "records": records.store.url,
        "form": records.config.form,
        "folder": records.config.folder if records.config.form == "files" else "data",
        "urls": len(kept),
        "ok": statuses[OK],
        "size_bytes": sum(row["size_bytes"] or 0 for row in kept if row["status"] == OK),
        "statuses": dict(statuses.most_common()),
        "repeated": listed.repeated,
        "without_url": listed.without_url,
    }


@labelled
def collect_lines(summary: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What is there, what is not and why, and last the command to go on with."""
    out, records = wording.visible(summary["out"]), wording.visible(summary["records"])
    where = "/".join(part for part in (out, summary["folder"]) if part)
    images = wording.counted(summary["urls"], "image")
    yield (
        "collected",
        f"{summary['ok']:,} of {images} into {where}, {wording.size(summary['size_bytes'])}",
    )
    failed = {status: number for status, number in summary["statuses"].items() if status != OK}
    if failed:
        yield "failed", f"{sum(failed.values()):,}, listed with reasons in {records}/failed.parquet"
        for status, number in failed.items():
            yield "", f"{number:,} {status}: {MEANING.get(status, status)}"
    if passing := [status for status in PASSING if status in failed]:
        yield "again", f"--retry {','.join(passing)} asks again what another hour may give"
    for name, text in (
        ("repeated", "rows said the same again"),
        ("without_url", "rows have no url"),
    ):
        if summary[name]:
            yield "left out", f"{summary[name]:,} {text}"
    if marked := summary["mended_names"] + summary["names_alike"]:
        yield (
            "names",
            f"{marked:,} ids are no safe file names, or differ only in case: their files are marked, NAME~12345678",
        )
    yield (
        "words",
        f"{records}/collected.parquet: labels, generators, prompts and all else that the list says",
    )
    if summary["ok"]:
        table = (
            f"{summary['records']}/collected.parquet"
            if summary["form"] == "files"
            else f"{summary['out']}/data"
        )
        yield (
            "next",
            shlex.join(
                [
                    "touchstone",
                    "data",
                    "index",
                    table,
                    "--layout",
                    "columns",
                    "--out",
                    f"{summary['records']}/index",
                ]
            ),
        )
