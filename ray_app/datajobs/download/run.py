"""`touchstone data collect`: `collect` reads the list, has what is missing fetched, writes the tables. The same command resumes."""

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ray_app.cluster.progress import Progress
from ray_app.datajobs.download import sink, url_table, worker
from ray_app.datajobs.download.config import OK, CollectConfig
from ray_app.datajobs.download.session import DownloadSession, Records, State, wants_ray
from ray_app.errors import ClusterError, resumable
from ray_app.storage import Lease, canonical, strip_secrets


def collect(config: CollectConfig, *, retry: Sequence[str] = ()) -> dict[str, Any]:
    """Collect what `config.meta` lists into `config.out`; returns the content of `summary.json`.

    `retry`: statuses of failed urls that are asked again; all other urls that have an outcome are left as they are. Raises ConfigError,
    IdentityError, StorageError, ClusterError, and KeyboardInterrupt after what has ended is committed.
    """
    start = time.monotonic()
    config = config.model_copy(update={"out": canonical(config.out)})  # workers have other current folders
    listed, records = url_table.read_list(config), Records(config)
    with Lease(records.store, unguarded=config.unguarded) as lease:
        records.claim()
        names, cases = sink.file_stems(listed.rows["id"].to_pylist())
        tasks, stale = _missing(listed, names, records.read(), retry, with_columns=config.form != "files")
        for place in stale:
            records.images.delete(place)
        with resumable(KeyboardInterrupt, ClusterError):
            session = _run(config, records, lease, listed, tasks)
        records.join()
        mended = sum(sink.safe_name(name) != name for name in listed.rows["id"].to_pylist())
        facts = {"session": {"urls": len(tasks), "statuses": dict(session), "wall_s": round(time.monotonic() - start, 2), **lease.facts()}}
        summary = _summary(config, records, listed) | {"mended_names": mended, "names_alike": cases} | facts
        records.store.write("summary.json", json.dumps(summary, indent=2, ensure_ascii=False).encode())
    return summary


def _run(
    config: CollectConfig, records: Records, lease: Lease, listed: url_table.UrlTable, tasks: Sequence[sink.Task]
) -> Mapping[str, int]:
    if not tasks:
        return {}
    total = len(listed.rows)
    progress = Progress(total, done=total - len(tasks), name="collect")
    hosts = len({task.host for task in tasks})
    progress.say(f"{total:,} urls, {len(tasks):,} to be asked at {hosts:,} host{'s' * (hosts != 1)}")
    session = DownloadSession(config, records, lease, progress)
    try:
        columns = [name for name in listed.columns if name != "url"]
        with worker.crew_for(config, records.url, columns, on_ray=wants_ray(config, len(tasks)), hosts=hosts) as crew:
            session.run(crew, tasks)
    finally:
        progress.close()
    return Counter(session.ended.values())


def _missing(
    listed: url_table.UrlTable, names: Sequence[str], state: State, retry: Sequence[str], *, with_columns: bool
) -> tuple[list[sink.Task], list[str]]:
    """What is to be fetched, and places of images whose ids have another url now."""
    rows = zip(*(state.rows[name].to_pylist() for name in ("id", "url", "status", "place", "ended_at")), strict=True)
    known = {name: found for name, *found in rows}
    tasks, stale = [], []
    for name, url, stem, columns in _rows(listed, names, with_columns=with_columns):
        wanted = strip_secrets(url)
        before, status, place, ended_at = known.get(name, (None, None, None, None))
        if before == wanted and status not in retry:
            continue
        if before not in (None, wanted) and place is not None and place.rpartition("/")[2].rpartition(".")[0] == stem:
            stale.append(place)
        tasks.append(sink.Task(name, wanted, url, stem, state.left.get(stem, ()), columns, before=ended_at))
    return tasks, stale


def _rows(listed: url_table.UrlTable, names: Sequence[str], *, with_columns: bool) -> Iterator[tuple[str, str, str, dict[str, str | None]]]:
    beside = [name for name in listed.columns if name != "url"] if with_columns else []
    columns = listed.rows.select(beside).to_pylist() if beside else [{}] * len(names)
    yield from zip(listed.rows["id"].to_pylist(), listed.rows["url"].to_pylist(), names, columns, strict=True)


def _summary(config: CollectConfig, records: Records, listed: url_table.UrlTable) -> dict[str, Any]:
    """The figures, and the tables beside. Raises ClusterError where a url has no outcome."""
    rows = records.read().rows
    there = set(rows["id"].to_pylist())
    if lost := [name for name in listed.rows["id"].to_pylist() if name not in there]:
        raise ClusterError(f"{records.url}: {len(lost)} urls have no outcome, {lost[0]!r} for one", hint="the same command asks them again")
    url_table.write_results(records, listed, rows)
    wanted = set(listed.rows["id"].to_pylist())
    kept = [row for row in rows.select(["id", "status", "size_bytes"]).to_pylist() if row["id"] in wanted]
    statuses = Counter(row["status"] for row in kept)
    return {
        "schema": 1,
        "meta": strip_secrets(config.meta),
        "out": records.images.url,
        "records": records.store.url,
        "form": config.form,
        "folder": config.folder if config.form == "files" else "data",
        "urls": len(kept),
        "ok": statuses[OK],
        "size_bytes": sum(row["size_bytes"] or 0 for row in kept if row["status"] == OK),
        "statuses": dict(statuses.most_common()),
        "repeated": listed.repeated,
        "without_url": listed.without_url,
    }
