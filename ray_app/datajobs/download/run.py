"""`touchstone data collect`: read a list of URLs, fetch what is missing, and write the tables.

`collect` is the way through. The same command resumes: a row counts if its image is there, the file
with its size or the shard, and every URL without such a row is fetched. `Records` is the directory:

collect.json       the settings that may not change
parts/             rows as they were committed; the last row of an id counts
collected.parquet  the rows of the list that have an image
failed.parquet     the other rows, with the reason
"""

import json
import secrets
import shlex
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ray_app.cluster.progress import Progress
from ray_app.datajobs.download import sink, url_table
from ray_app.datajobs.download.config import MEANING, PASSING, CollectConfig
from ray_app.datajobs.download.fetch import fetch_images
from ray_app.datajobs.parts import OK, labelled, part_names, read_parts, remove_part, write_part
from ray_app.errors import StorageError, resumable
from ray_app.reports import format as wording
from ray_app.runs.directory import claim_directory, is_claimed
from ray_app.runs.table_files import write_tables
from ray_app.storage import Lease, Store, canonical, strip_secrets, with_s3_settings

_MAX_PARTS = 8
_ROWS = 10_000
_FACTS = ("sha256", "format", "width", "height", "size_bytes")
_SAME = "form and folder"
_REASONS = ("status", "detail", "http_status", "requests", "final_url")


@with_s3_settings
def collect(config: CollectConfig, *, retry: Sequence[str] = ()) -> dict[str, Any]:
    """Collect the images that `config.meta` lists into `config.out`.

    Args:
        config: The list, the directory, and the limits.
        retry: Statuses of failed URLs to request again. All other URLs with an outcome are left as
            they are.

    Returns:
        The content of `summary.json`.

    Raises:
        ConfigError: The list or the directory cannot be used.
        IdentityError: The directory is of another command.
        StorageError: A file cannot be read or written.
        KeyboardInterrupt: A signal, after what has ended is committed.
    """
    start = time.monotonic()
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
        with resumable(KeyboardInterrupt, StorageError):
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
    state: "State",
    retry: Sequence[str],
    *,
    with_columns: bool,
) -> tuple[list[sink.Task], list[str]]:
    """Return the URLs to fetch, and the files of ids that have another URL now."""
    rows = zip(
        *(state.rows[name].to_pylist() for name in ("id", "url", "status", "place")), strict=True
    )
    known = {name: found for name, *found in rows}
    beside = [name for name in listed.columns if name != "url"] if with_columns else []
    columns = listed.rows.select(beside).to_pylist() if beside else [{}] * len(stems)
    tasks, stale = [], []
    for name, url, stem, words in zip(
        listed.rows["id"].to_pylist(), listed.rows["url"].to_pylist(), stems, columns, strict=True
    ):
        wanted = strip_secrets(url)
        before, status, place = known.get(name, (None, None, None))
        if before == wanted and status not in retry:
            continue
        if (
            before not in (None, wanted)
            and place is not None
            and place.rpartition("/")[2].rpartition(".")[0] == stem
        ):
            stale.append(place)
        tasks.append(sink.Task(name, wanted, url, stem, state.left.get(stem, ()), words))
    return tasks, stale


def _fetch(
    records: "Records", lease: Lease, listed: url_table.UrlTable, tasks: Sequence[sink.Task]
) -> Counter[str]:
    """Fetch all tasks and return how many ended with each status."""
    statuses: Counter[str] = Counter()
    if not tasks:
        return statuses
    config, total = records.config, len(listed.rows)
    hosts = wording.counted(len({task.host for task in tasks}), "host")
    progress = Progress(total, done=total - len(tasks), name="collect")
    progress.say(f"{total:,} urls, {len(tasks):,} to be asked at {hosts}")

    def watch(ended: Sequence[str]) -> None:
        statuses.update(ended)
        progress.advance(len(ended), sum(status != OK for status in ended))
        progress.redraw()
        lease.check()

    columns = [name for name in listed.columns if name != "url"]
    try:
        fetch_images(
            tasks, config, sink.Sink(records.images, records.store, config, columns), watch
        )
    finally:
        progress.close()
    return statuses


def _summary(records: "Records", listed: url_table.UrlTable) -> dict[str, Any]:
    """Write the tables, and return the counts. Raises StorageError if a URL has no outcome."""
    rows, wanted = records.read().rows, set(listed.rows["id"].to_pylist())
    if lost := wanted - set(rows["id"].to_pylist()):
        raise StorageError(
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


@dataclass(frozen=True)
class State:
    """What a directory holds.

    Attributes:
        rows: The row that counts of each id, with the columns of `OUTCOME`.
        left: Files that no row names, by their names without ending.
    """

    rows: pa.Table
    left: Mapping[str, tuple[str, ...]]


class Records:
    """The directory of a collection.

    Attributes:
        images: The store of the images, which are in `folder`, or as shards in `data`.
        store: The store of all other files.
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
        """Return the rows that count, and the files that no row names."""
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
        """Join many parts into one. After a kill, rows may be in two parts, which does no harm."""
        names = part_names(self.store)
        if len(names) >= _MAX_PARTS:
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
    """Return the last row of each id."""
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
