"""Turn the sources that a user names into sections that can be listed in parallel (`Archive`).

Every file is listed, whatever its name, including hidden files. A file that is not an image gets a
row that shows this.

A source is a URL or path. `KIND::URL` states what the source is if its name does not:
`files::photos/` opens no container in it, `tar::https://host/download` is a tar, `list::uris.txt`
is a list of uris (as is a file that ends in .csv, .tsv, .jsonl or .ndjson).
"""

import contextlib
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Protocol

from ray_app.archives import members, object_prefix, uri_lists
from ray_app.archives.containers import CONTAINERS, Container, ContainerLimits, list_container
from ray_app.archives.selection import ListedEntry, Selection
from ray_app.errors import ConfigError
from ray_app.storage import (
    Fetcher,
    Guard,
    KeyPrefix,
    RetryPolicy,
    canonicalize,
    divide_prefix,
    strip_secrets,
    urls,
)

# Sections of an S3 prefix that threads read ahead, members of a chunk, and chunks read ahead.
_MAX_PARALLEL_SECTIONS, _CHUNK_MEMBERS, _MAX_CHUNKS_AHEAD = 8, 1000, 32


EMBEDDINGS = "features"
"""The kind of a source with embeddings in place of files (`ray_app.scoring.stored_embeddings`)."""

RETIRED_KINDS = {
    "inventory": "write the uris of the inventory to a table with DuckDB, and give list::TABLE (UPGRADING.md has the query)",
    "simulated": "write the shipped sample archive: touchstone demo --archive-only --out sample",
}
"""Kinds of sources that 1.0 retires, each with its replacement."""


class SourceSection(Protocol):
    """A part of a source that one task lists, such as a folder of a large S3 prefix.

    It is picklable and takes little memory.
    """

    def list_entries(self, fetcher: Fetcher) -> Iterator[ListedEntry]:
        """Yield the section's members and unopened containers in a fixed order.

        Each entry is a tuple. It has the path that the user's patterns are compared with, and the
        member or container.
        """


# A kind of source is a function that yields its sections in a fixed order, without reading their
# contents. To add a kind, write such a function in a file of its own, and add a line to
# `_source_for`.
Sections = Callable[[Fetcher], Iterator[SourceSection]]


@dataclass(frozen=True)
class Opened:
    """A part of an archive (section) that consists of the members of some containers."""

    containers: tuple[Container, ...]

    def list_entries(self, fetcher: Fetcher) -> Iterator[ListedEntry]:
        """Yield the members of the containers, one container after another."""
        for container in self.containers:
            table = (
                None
                if container.samples is None
                else object_prefix.SidecarTable(container.samples, fetcher)
            )
            for item in list_container(container, fetcher):
                name = _get_pattern_name(container, item)
                if table is not None and item.member is not None:
                    item = table.merge_columns(item, item.member)
                yield f"{container.path}/{name}" if name else container.path, item


def _get_pattern_name(container: Container, item: members.ListedMember) -> str | None:
    """Return the part of a member's path for patterns that follows its container's path, or None.

    It is the member's name, the `path` of a Parquet row, or the file that a row of a list names.
    """
    if item.place is not None and item.place.kind == "parquet":
        path = item.input.get("path")
        return path if isinstance(path, str) else None
    return item.uri if item.uri != container.uri else item.member


class Archive:
    """The members (files) of some sources that pass the user's patterns.

    Iterating yields the files in order, then the members of containers in order. Nothing is
    accessed before the first iteration. Each iteration lists the sources again in the same order.
    To list an archive with many processes, use the results of `sections`. A source may have a
    prefix `KIND::`, as in `tar::URL`, which states the format. URLs in `skip` are never listed,
    such as the run directory in its own source. If `allow_private`, lists may name any web server,
    also in private networks. This argument has no effect if `fetcher` is given. Raises ConfigError
    if a source or pattern is invalid. Iterating raises ConfigError if no file passes the patterns.
    """

    def __init__(
        self,
        sources: Sequence[str],
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        *,
        skip: Sequence[str] = (),
        columns: members.TableColumns = members.TableColumns(),  # noqa: B008 - frozen
        limits: ContainerLimits = ContainerLimits(),  # noqa: B008 - frozen
        allow_private: bool = False,
        fetcher: Fetcher | None = None,
    ) -> None:
        if not sources:
            raise ConfigError("no source given", hint="name a folder, s3://BUCKET/PREFIX or a file")
        for option, pattern in [
            *(("--include", text) for text in include),
            *(("--exclude", text) for text in exclude),
        ]:
            if urls.has_braces(pattern):
                raise ConfigError(
                    f"{option} {pattern}: braces are not expanded",
                    hint=f"give {option} once for each pattern",
                )
        self._urls, self.columns, self.limits = list(sources), columns, limits
        self.selection = Selection(
            tuple(include),
            tuple(exclude),
            tuple(strip_secrets(canonicalize(url)).rstrip("/") for url in skip),
        )
        self._sources = [_source_for(url, columns, limits, self.selection) for url in sources]
        self._names = [strip_secrets(url) for url in sources]
        self.fetcher = fetcher or create_fetcher(sources, allow_private=allow_private)

    def sections(self) -> Iterator[SourceSection]:
        """Yield the sections of all sources in order. Each can be listed by another process.

        A section is a part of a source, such as a folder of a large S3 prefix.
        """
        for _, _, section in self.numbered_sections():
            yield section

    def numbered_sections(self) -> Iterator[tuple[int, int, SourceSection]]:
        """Yield the number of the source, the section's number in it, and the section, in order.

        A section is a part of a source, such as a folder of a large S3 prefix.
        """
        for source_index, source in enumerate(self._sources):
            for ordinal, section in enumerate(source(self.fetcher)):
                yield source_index, ordinal, section

    def prefix_section(self, source: int, keys: KeyPrefix) -> object_prefix.PrefixSection:
        """Return the section of an S3 source that an interrupted listing has not listed yet."""
        kind, url = urls.split_kind(self._urls[source])
        return object_prefix.PrefixSection(
            object_prefix.ObjectPrefix(
                canonicalize(url), kind, self.columns, self.limits, self.selection
            ),
            keys,
        )

    def __iter__(self) -> Iterator[members.ListedMember]:
        return self._members(_iter_in_order(self.sections(), self.fetcher))

    def beginning(self) -> Iterator[members.ListedMember]:
        """Yield the members of the archive in order, without listing any section in advance.

        An iteration over the archive lists several sections of an S3 prefix at the same time. Use this
        method if only the first few members are needed, because it makes fewer requests.
        """
        return self._members(
            item for section in self.sections() for item in section.list_entries(self.fetcher)
        )

    def _members(self, entries: Iterator[ListedEntry]) -> Iterator[members.ListedMember]:
        n_found = n_kept = 0
        containers: list[Container] = []
        for (_, item), passes in self.selection.filter_entries(entries):
            if isinstance(item, Container):
                containers += [item] * passes
                n_found += not passes
            else:
                n_found, n_kept = n_found + 1, n_kept + passes
                if passes:
                    yield item
        for container in containers:
            for (_, item), passes in self.selection.filter_entries(
                Opened((container,)).list_entries(self.fetcher)
            ):
                assert isinstance(item, members.ListedMember)
                n_found, n_kept = n_found + 1, n_kept + passes
                if passes:
                    yield item
        if not n_kept:
            raise self.empty_error(n_found, len(containers))

    def check(self) -> None:
        """Check that each source exists and that at least one member passes the patterns.

        Listing stops as soon as both are known. Raises ConfigError if a source does not exist, or
        no file passes the patterns.
        """
        if len(self._sources) > 1:
            for source in self._sources:
                next(
                    (
                        True
                        for section in source(self.fetcher)
                        for _ in section.list_entries(self.fetcher)
                    ),
                    None,
                )
        next(self.beginning())

    def empty_error(self, found: int, opened: int) -> ConfigError:
        """Return the error to raise if no file of the archive passes the patterns.

        `found` counts the files before patterns are applied, including members of containers.
        """
        names = ", ".join(self._names)
        if not found and opened:
            return ConfigError(
                f"{names}: no file in {opened} archive{'s' * (opened != 1)}",
                hint="check that the archive has files; folders in it do not count",
            )
        patterns = " ".join(
            [f"--include {p}" for p in self.selection.include]
            + [f"--exclude {p}" for p in self.selection.exclude]
        )
        if not found and not patterns:
            text = "no file except those of the output directory, or only lists without rows"
            return ConfigError(
                f"{names}: {text}",
                hint="give --out a separate folder, and the folder of the images as source",
            )
        files = f"none of {found} file{'s' if found > 1 else ''}" if found else "no file"
        return ConfigError(
            f"{names}: {files} passes {patterns}",
            hint="check the patterns: *.jpg does not match A.JPG; ** spans folders; "
            "the path of a file in an archive begins with the archive's name, as in b.zip/photos/**"
            + "; to select archives instead of their members, write the pattern into the source"
            * bool(opened),
        )


open_source = Archive  # An alias that reads as a verb.


def _iter_in_order(sections: Iterable[SourceSection], fetcher: Fetcher) -> Iterator[ListedEntry]:
    """Yield the entries of all sections, one section after another.

    Threads read some sections of S3 prefixes ahead of their turn.
    """
    pending, reading, ended = iter(sections), deque[Iterator[ListedEntry]](), threading.Event()
    try:
        while True:
            while (
                len(reading) < _MAX_PARALLEL_SECTIONS
                and (section := next(pending, None)) is not None
            ):
                is_prefix = isinstance(section, object_prefix.PrefixSection)
                reading.append(
                    _read_ahead(section, fetcher, ended)
                    if is_prefix
                    else section.list_entries(fetcher)
                )
            if not reading:
                return
            yield from reading.popleft()
    finally:
        ended.set()


def _read_ahead(
    section: SourceSection, fetcher: Fetcher, ended: threading.Event
) -> Iterator[ListedEntry]:
    """Yield the entries of a section, and raise its errors, while a thread reads it ahead.

    The thread reads until `ended` is set, at most `_MAX_CHUNKS_AHEAD` chunks ahead.
    """
    chunks: queue.Queue[list[ListedEntry] | Exception] = queue.Queue(_MAX_CHUNKS_AHEAD)

    def put(chunk: list[ListedEntry] | Exception) -> None:
        is_put = False
        while not (is_put or ended.is_set()):
            with contextlib.suppress(queue.Full):
                chunks.put(chunk, timeout=0.2)
                is_put = True

    def read() -> None:
        try:
            entries = section.list_entries(fetcher)
            while not ended.is_set() and (chunk := list(islice(entries, _CHUNK_MEMBERS))):
                put(chunk)
            put([])
        except Exception as error:
            put(error)

    threading.Thread(target=read, name="list", daemon=True).start()

    def items() -> Iterator[ListedEntry]:
        while chunk := chunks.get():
            if isinstance(chunk, Exception):
                raise chunk
            yield from chunk

    return items()


def strip_kinds(sources: Sequence[str]) -> list[str]:
    """Return the URLs of sources without the format in KIND::URL. Secrets in the URLs are kept."""
    return [urls.split_kind(source)[1] for source in sources]


def create_fetcher(
    sources: Sequence[str], policy: RetryPolicy | None = None, *, allow_private: bool = False
) -> Fetcher:
    """Create the fetcher that reads the files of some sources and their members.

    Lists may name only web servers on the public Internet, or any server if `allow_private`.
    """
    urls = strip_kinds(sources)
    return Fetcher(policy, signed=urls, guard=Guard.from_urls(urls, allow_private=allow_private))


def canonical_name(source: str) -> str:
    """Return the canonical spelling of a source, without secrets.

    The prefix `KIND::` of a source, which states its format, is kept. A run stores the result, and
    compares it with the sources of later commands.
    """
    kind, url = urls.split_kind(source)
    return (f"{kind}::" if kind else "") + strip_secrets(canonicalize(url))


def _source_for(
    source: str, columns: members.TableColumns, limits: ContainerLimits, selection: Selection
) -> Sections:
    kind, url = urls.split_kind(source)
    kinds = ("files", *CONTAINERS, "list")
    if kind in RETIRED_KINDS:
        raise ConfigError(f"'{kind}::' is retired as a kind of source", hint=RETIRED_KINDS[kind])
    if kind == EMBEDDINGS:
        raise ConfigError(
            f"{strip_secrets(source)}: only touchstone score reads '{kind}::' (embeddings of a run)",
            hint="give the image files or archives as sources",
        )
    if kind is not None and kind not in kinds:
        raise ConfigError(
            f"{strip_secrets(source)}: '{kind}::' is not a kind of source",
            hint=f"use one of {', '.join(kinds)}",
        )
    if not url:
        raise ConfigError(f"'{source}' has no path or URL", hint="give a folder, a file or a URL")
    url = canonicalize(url)  # Made absolute here, because tasks have another working directory.
    if kind == "list":
        return partial(uri_lists.find_lists, url, columns, limits)
    return partial(
        _find_sections, object_prefix.ObjectPrefix(url, kind, columns, limits, selection)
    )


def _find_sections(prefix: object_prefix.ObjectPrefix, fetcher: Fetcher) -> Iterator[SourceSection]:
    """Yield the sections of a source.

    A file whose name announces a list is one section for the list. A large S3 prefix is divided
    at its folders. Any other source is one section.
    """
    # Requested once here, and not by every task that lists a section.
    url, is_pattern = prefix.url, prefix.is_pattern
    if (
        prefix.kind is None
        and uri_lists.looks_like_list(url)
        and not is_pattern
        and uri_lists.is_one_file(url, fetcher)
    ):
        yield from uri_lists.find_lists(url, prefix.columns, prefix.limits, fetcher)
        return
    divided = divide_prefix(url)
    yield from (object_prefix.PrefixSection(prefix, keys) for keys in divided)
    if not divided:
        yield prefix
