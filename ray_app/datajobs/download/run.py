"""Run `touchstone data collect`: `collect` is the entry point.

`collect` reads a list of URLs, downloads the missing images, and writes the tables. A repeated call
does not request the URL of an image that still exists. Failed URLs are only requested again if
`retry` has their status. An image exists if its file has the recorded size, or if its shard exists.
`Records` is the output directory, which has these files:

- `collect.json`: the settings that may not change.
- `parts/`: the committed rows. If an id has several rows, the last one counts.
- `collected.parquet`: the rows of the list that have an image.
- `failed.parquet`: the other rows, with the reason.
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
from ray_app.datajobs.parts import (
    OK,
    format_labels,
    list_parts,
    read_parts,
    remove_part,
    write_part,
)
from ray_app.errors import StorageError, resumable
from ray_app.reports import format as text_format
from ray_app.runs.directory import claim_directory, is_claimed
from ray_app.runs.table_files import write_tables
from ray_app.storage import Lease, Store, apply_s3_settings, canonicalize, strip_secrets

_MAX_PARTS = 8
_ROWS = 10_000
_IMAGE_COLUMNS = ("sha256", "format", "width", "height", "size_bytes")
_SAME = "form and folder"
_FAILURE_COLUMNS = ("status", "detail", "http_status", "requests", "final_url")


@apply_s3_settings
def collect(config: CollectConfig, *, retry: Sequence[str] = ()) -> dict[str, Any]:
    """Collect the images that `config.meta` lists into `config.out`.

    Args:
        config: The list, the directory, and the limits.
        retry: Statuses of failed URLs to request again, such as "source_timeout". Failed URLs with
            other statuses are not requested.

    Returns:
        The content of `summary.json`.

    Raises:
        ConfigError: If the list or the directory cannot be used.
        IdentityError: If the directory belongs to another command.
        StorageError: If a file cannot be read or written.
        KeyboardInterrupt: If the command is interrupted, after all results are committed.
    """
    start = time.monotonic()
    config = config.model_copy(update={"out": canonicalize(config.out)})
    listing, records = url_table.read_url_table(config), Records(config)
    records.check()
    with Lease(records.store, unguarded=config.unguarded) as lease:
        records.claim()
        stems, conflicts = sink.make_file_stems(listing.rows["id"].to_pylist())
        tasks, stale = _find_missing(
            listing, stems, records.read(), retry, with_columns=config.form != "files"
        )
        for path in stale:
            records.images.delete(path)
        with resumable(KeyboardInterrupt, StorageError):
            statuses = _fetch(records, lease, listing, tasks)
        records.merge_parts()
        changed_names = sum(
            sink.make_safe_name(name) != name for name in listing.rows["id"].to_pylist()
        )
        session = {
            "session": {
                "urls": len(tasks),
                "statuses": statuses,
                "wall_s": round(time.monotonic() - start, 2),
                **lease.facts(),
            }
        }
        summary = (
            _summarize(records, listing)
            | {"mended_names": changed_names, "names_alike": conflicts}
            | session
        )
        records.store.write(
            "summary.json", json.dumps(summary, indent=2, ensure_ascii=False).encode()
        )
    return summary


def _find_missing(
    listing: url_table.UrlTable,
    stems: Sequence[str],
    state: "State",
    retry: Sequence[str],
    *,
    with_columns: bool,
) -> tuple[list[sink.Task], list[str]]:
    """Return the URLs to fetch, and the files of ids whose URL changed."""
    rows = zip(
        *(state.rows[name].to_pylist() for name in ("id", "url", "status", "place")), strict=True
    )
    outcomes = {name: values for name, *values in rows}
    names = [name for name in listing.columns if name != "url"] if with_columns else []
    columns = listing.rows.select(names).to_pylist() if names else [{}] * len(stems)
    tasks, stale = [], []
    for name, url, stem, task_columns in zip(
        listing.rows["id"].to_pylist(), listing.rows["url"].to_pylist(), stems, columns, strict=True
    ):
        listed_url = strip_secrets(url)
        previous_url, status, path = outcomes.get(name, (None, None, None))
        if previous_url == listed_url and status not in retry:
            continue
        if (
            previous_url not in (None, listed_url)
            and path is not None
            and path.rpartition("/")[2].rpartition(".")[0] == stem
        ):
            stale.append(path)
        tasks.append(
            sink.Task(
                name, listed_url, url, stem, state.unrecorded_files.get(stem, ()), task_columns
            )
        )
    return tasks, stale


def _fetch(
    records: "Records", lease: Lease, listing: url_table.UrlTable, tasks: Sequence[sink.Task]
) -> Counter[str]:
    """Fetch all tasks and return how many ended with each status."""
    statuses: Counter[str] = Counter()
    if not tasks:
        return statuses
    config, total = records.config, len(listing.rows)
    hosts = text_format.pluralize(len({task.host for task in tasks}), "host")
    progress = Progress(total, done=total - len(tasks), name="collect")
    progress.say(f"{total:,} urls, {len(tasks):,} to request from {hosts}")

    def watch(new_statuses: Sequence[str]) -> None:
        statuses.update(new_statuses)
        progress.advance(len(new_statuses), sum(status != OK for status in new_statuses))
        progress.redraw()
        lease.check()

    columns = [name for name in listing.columns if name != "url"]
    try:
        fetch_images(
            tasks, config, sink.Sink(records.images, records.store, config, columns), watch
        )
    finally:
        progress.close()
    return statuses


def _summarize(records: "Records", listing: url_table.UrlTable) -> dict[str, Any]:
    """Write the tables, and return the counts.

    Raises:
        StorageError: If a URL has no outcome.
    """
    rows, ids = records.read().rows, set(listing.rows["id"].to_pylist())
    if lost := ids - set(rows["id"].to_pylist()):
        raise StorageError(
            f"{records.url}: {len(lost)} URLs have no recorded result, for example the one with the id {min(lost)!r}",
            hint="run the same command again to request them",
        )
    records.write_results(listing, rows)
    listed_rows = [
        row for row in rows.select(["id", "status", "size_bytes"]).to_pylist() if row["id"] in ids
    ]
    statuses = Counter(row["status"] for row in listed_rows)
    return {
        "schema": 1,
        "meta": strip_secrets(records.config.meta),
        "out": records.images.url,
        "records": records.store.url,
        "form": records.config.form,
        "folder": records.config.folder if records.config.form == "files" else "data",
        "urls": len(listed_rows),
        "ok": statuses[OK],
        "size_bytes": sum(row["size_bytes"] or 0 for row in listed_rows if row["status"] == OK),
        "statuses": dict(statuses.most_common()),
        "repeated": listing.repeated,
        "without_url": listing.without_url,
    }


@dataclass(frozen=True)
class State:
    """The results in an output directory, from all earlier calls of `collect` for it.

    Attributes:
        rows: The row on the result of each URL, with the columns of `OUTCOME` such as `id` and
            `status`. A row is left out if its image is missing or has another size.
        unrecorded_files: Names of image files that no row names, such as those of a killed process.
            The key is the name without extension. Empty if images are in shards.
    """

    rows: pa.Table
    unrecorded_files: Mapping[str, tuple[str, ...]]


class Records:
    """The output directory of `touchstone data collect`: reads and writes its records.

    Attributes:
        config: Settings of the collection.
        url: URL of the folder for all files except images, such as the tables of results.
        images: The store of the output directory. It has images as files in `folder`, or shards in
            `data`.
        store: The store of the folder `url`.
    """

    def __init__(self, config: CollectConfig) -> None:
        self.config = config
        out = config.out.rstrip("/") or "/"
        self.url = out if config.form != "files" or config.folder else f"{out}/_collected"
        self.images, self.store = Store.open(config.out), Store.open(self.url)

    def check(self) -> None:
        """Check, without writing, that the directory is unused or belongs to this command.

        Raises:
            ConfigError: If another command wrote the directory.
            IdentityError: If the directory has files and this command writes shards, or vice versa.
        """
        is_claimed(self.store, "collect.json", self._identity(), same=_SAME)

    def claim(self) -> None:
        """Record in the directory that it belongs to this command.

        Other commands then reject the directory. The settings that may not change later are
        recorded, too. Raise the errors of `check`.
        """
        claim_directory(self.store, "collect.json", self._identity(), same=_SAME)

    def _identity(self) -> dict[str, Any]:
        return {"format": 1, "form": self.config.form, "folder": self.config.folder}

    def read(self) -> State:
        """Return the rows of URLs with a result, and the image files that no row names."""
        rows = self._read_rows(list_parts(self.store)).sort_by("ended_at")
        is_failed = pc.not_equal(rows["status"], OK)
        if self.config.form == "files":
            prefix = f"{self.config.folder}/" if self.config.folder else ""
            sizes = {
                prefix + name: size for name, size in self.images.sizes(self.config.folder).items()
            }
            rows = _keep_last_rows(rows)
            values = zip(
                rows["place"].to_pylist(),
                rows["size_bytes"].to_pylist(),
                rows["status"].to_pylist(),
                strict=True,
            )
            is_valid = [
                status != OK or (path in sizes and sizes[path] in (None, size))
                for path, size, status in values
            ]
            rows, recorded = (
                rows.filter(pa.array(is_valid, pa.bool_())),
                set(rows["place"].to_pylist()),
            )
            return State(
                rows,
                _group_by_stem(path.rpartition("/")[2] for path in sizes if path not in recorded),
            )
        shards = pa.array([f"data/{name}" for name in self.images.names("data")], pa.string())
        return State(
            _keep_last_rows(
                rows.filter(pc.or_(is_failed, pc.is_in(rows["place"], value_set=shards)))
            ),
            {},
        )

    def merge_parts(self) -> None:
        """Merge the parts into one if there are eight or more. A part is a file of committed rows.

        If the process is killed meanwhile, rows may be in two parts, which is harmless.
        """
        names = list_parts(self.store)
        if len(names) >= _MAX_PARTS:
            write_part(
                self.store, secrets.token_hex(8), self._read_rows(names).to_pylist(), sink.OUTCOME
            )
            for name in names:
                remove_part(self.store, name)

    def _read_rows(self, names: list[str]) -> pa.Table:
        return pa.concat_tables(
            [
                sink.OUTCOME.empty_table(),
                *(part.cast(sink.OUTCOME) for _, part in read_parts(self.store, names)),
            ]
        )

    def write_results(self, listing: url_table.UrlTable, rows: pa.Table) -> None:
        """Write collected.parquet with the downloaded images, and failed.parquet with other URLs.

        Rows are in the order of the list. collected.parquet has the columns of the list, and facts
        of each image file such as `sha256` and `width`. If images are files, `uri` has the path of
        the file relative to the table. Otherwise, `shard` has the path of the shard. failed.parquet
        has the reason.

        Args:
            listing: The list of URLs.
            rows: One row of `OUTCOME` for each id of the list.
        """
        order = pc.index_in(listing.rows["id"], value_set=rows["id"].combine_chunks())
        outcomes, list_rows = rows.take(order), _strip_url_secrets(listing.rows)
        is_ok = pc.equal(outcomes["status"], OK)
        failed = {
            "id": list_rows["id"],
            "url": list_rows["url"],
            **{name: outcomes[name] for name in _FAILURE_COLUMNS},
        }
        is_files = self.config.form == "files"
        prefix = "../" if is_files and not self.config.folder else ""
        paths = [None if path is None else prefix + path for path in outcomes["place"].to_pylist()]
        collected: dict[str, Any] = {"uri" if is_files else "shard": pa.array(paths, pa.string())}
        collected |= dict(zip(list_rows.schema.names, list_rows.columns, strict=True)) | {
            name: outcomes[name] for name in _IMAGE_COLUMNS
        }
        for name, columns, mask in (
            ("failed", failed, pc.invert(is_ok)),
            ("collected", collected, is_ok),
        ):
            table = pa.table(columns).filter(mask)
            write_tables(
                self.store,
                name,
                table.schema,
                (table.slice(start, _ROWS) for start in range(0, len(table), _ROWS)),
            )


def _keep_last_rows(rows: pa.Table) -> pa.Table:
    """Return the last row of each id."""
    last = {name: row for row, name in enumerate(rows["id"].to_pylist())}
    return rows.take(pa.array(sorted(last.values()), pa.int64()))


def _group_by_stem(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    groups: dict[str, tuple[str, ...]] = {}
    for name in names:
        stem, _, extension = name.rpartition(".")
        if stem and extension.lower() in sink.EXTENSIONS:
            groups[stem] = (*groups.get(stem, ()), name)
    return groups


def _strip_url_secrets(rows: pa.Table) -> pa.Table:
    urls = pa.array([strip_secrets(url) for url in rows["url"].to_pylist()], pa.string())
    return rows.set_column(rows.schema.names.index("url"), "url", urls)


@format_labels
def collect_lines(summary: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Return the lines of text that the command prints about collected and failed images.

    If any image was collected, the last line is the command to run next.

    Args:
        summary: The result of `collect`.

    Yields:
        The label and the text of each line, which `format_labels` joins.
    """
    out, records = (
        text_format.escape_invisible(summary["out"]),
        text_format.escape_invisible(summary["records"]),
    )
    folder = "/".join(part for part in (out, summary["folder"]) if part)
    images = text_format.pluralize(summary["urls"], "image")
    yield (
        "collected",
        f"{summary['ok']:,} of {images} into {folder}, {text_format.size(summary['size_bytes'])}",
    )
    failed = {status: count for status, count in summary["statuses"].items() if status != OK}
    if failed:
        yield "failed", f"{sum(failed.values()):,}, listed with reasons in {records}/failed.parquet"
        for status, count in failed.items():
            yield "", f"{count:,} {status}: {MEANING.get(status, status)}"
    if passing := [status for status in PASSING if status in failed]:
        yield "retry", f"--retry {','.join(passing)} requests again what may succeed later"
    for name, text in (
        ("repeated", "rows repeat an earlier row"),
        ("without_url", "rows have no url"),
    ):
        if summary[name]:
            yield "left out", f"{summary[name]:,} {text}"
    if hashed := summary["mended_names"] + summary["names_alike"]:
        yield (
            "names",
            f"{hashed:,} ids are not safe file names, or differ only in case: their files have a hash in the name, NAME~12345678",
        )
    yield (
        "table",
        f"{records}/collected.parquet: labels, generators, prompts, and all other columns of the list",
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
