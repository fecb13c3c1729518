"""`Archive`: what a person names as sources → the sections that can be listed in parallel.

Every file is listed, whatever its name says it is: what is no image gets a row that says so. Hidden
files are files too.

A source is a URL or path. `KIND::URL` says what it is where its name does not: `files::photos/`
opens no container in it, `tar::https://host/download` is a tar, `list::uris.txt` a list of uris (as
is one file that ends in .csv, .tsv, .jsonl or .ndjson).
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
from ray_app.archives.selection import Found, Selection
from ray_app.errors import ConfigError
from ray_app.storage import (
    Fetcher,
    Guard,
    KeyRange,
    RetryPolicy,
    canonical,
    list_divisions,
    strip_secrets,
    urls,
)

# ranges of keys that threads read ahead; members to a chunk; chunks ahead in each
_RANGES_AT_ONCE, _CHUNK, _AHEAD = 8, 1000, 32


EMBEDDINGS = "features"
"""The kind of a source that has embeddings in place of files (`ray_app.scoring.stored_embeddings`)."""

RETIRED_KINDS = {
    "inventory": "write the uris of the inventory to a table with DuckDB, and give list::TABLE (UPGRADING.md has the query)",
    "simulated": "write the shipped sample archive: touchstone demo --archive-only --out sample",
}
"""Kinds of sources that 1.0 retires, each with what to use instead."""


class SourceSection(Protocol):
    """A part of a source that one task lists. Picklable and small."""

    def found(self, fetcher: Fetcher) -> Iterator[Found]:
        """Members and unopened containers, each with the path that patterns are compared with, in a
        fixed order.
        """


# One way to keep an archive, as the function that names its parts, in a fixed order; their contents
# are not read yet. A new one is such a function in a file of its own, and a line in `_source_for`.
Sections = Callable[[Fetcher], Iterator[SourceSection]]


@dataclass(frozen=True)
class Opened:
    """Some containers as a section of their own."""

    containers: tuple[Container, ...]

    def found(self, fetcher: Fetcher) -> Iterator[Found]:
        """Their members, one container after the other."""
        for container in self.containers:
            table = (
                None
                if container.samples is None
                else object_prefix.SidecarTable(container.samples, fetcher)
            )
            for item in list_container(container, fetcher):
                name = _name_in(container, item)
                if table is not None and item.member is not None:
                    item = table.joined(item, item.member)
                yield f"{container.path}/{name}" if name else container.path, item


def _name_in(container: Container, item: members.ListedMember) -> str | None:
    """What patterns see of a member behind its container's path: its name, a row's own path, or the
    file that a list's row names.
    """
    if item.place is not None and item.place.kind == "parquet":
        path = item.input.get("path")
        return path if isinstance(path, str) else None
    return item.uri if item.uri != container.uri else item.member


class Archive:
    """All members of some sources, as patterns let them pass: files first, then what is in
    containers, each in order.

    Touches nothing until it is iterated; raises ConfigError for a KIND:: that there is not.
    Iterating lists anew, in one order; `sections` can be listed by many processes. Iterating raises
    ConfigError when no file is left, StorageError when a source is out of reach. `allow_private`:
    see `fetcher_of`.
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
            *(("--include", one) for one in include),
            *(("--exclude", one) for one in exclude),
        ]:
            if urls.has_braces(pattern):
                raise ConfigError(
                    f"{option} {pattern}: braces are not expanded",
                    hint=f"give each pattern of its own: {option} repeatedly",
                )
        self._urls, self.columns, self.limits = list(sources), columns, limits
        self.selection = Selection(
            tuple(include),
            tuple(exclude),
            tuple(strip_secrets(canonical(url)).rstrip("/") for url in skip),
        )
        self._sources = [_source_for(url, columns, limits, self.selection) for url in sources]
        self._names = [strip_secrets(url) for url in sources]
        self.fetcher = fetcher or fetcher_of(sources, allow_private=allow_private)

    def sections(self) -> Iterator[SourceSection]:
        """The parts of all sources, in order."""
        for _, _, section in self.numbered_sections():
            yield section

    def numbered_sections(self) -> Iterator[tuple[int, int, SourceSection]]:
        """The same, each with the number of its source and its own number there."""
        for number, source in enumerate(self._sources):
            for ordinal, section in enumerate(source(self.fetcher)):
                yield number, ordinal, section

    def range_of(self, source: int, keys: KeyRange) -> object_prefix.PrefixRange:
        """A stretch of the source of that number, an S3 prefix, as a section."""
        kind, url = urls.split_kind(self._urls[source])
        return object_prefix.PrefixRange(
            object_prefix.ObjectPrefix(
                canonical(url), kind, self.columns, self.limits, self.selection
            ),
            keys,
        )

    def __iter__(self) -> Iterator[members.ListedMember]:
        return self._members(_in_order(self.sections(), self.fetcher))

    def beginning(self) -> Iterator[members.ListedMember]:
        """The same with nothing read ahead of it, for those who want the first few."""
        return self._members(
            item for section in self.sections() for item in section.found(self.fetcher)
        )

    def _members(self, listed: Iterator[Found]) -> Iterator[members.ListedMember]:
        found = kept = 0
        containers: list[Container] = []
        for (_, item), passes in self.selection.chosen(listed):
            if isinstance(item, Container):
                containers += [item] * passes
                found += not passes
            else:
                found, kept = found + 1, kept + passes
                if passes:
                    yield item
        for container in containers:
            for (_, item), passes in self.selection.chosen(
                Opened((container,)).found(self.fetcher)
            ):
                assert isinstance(item, members.ListedMember)
                found, kept = found + 1, kept + passes
                if passes:
                    yield item
        if not kept:
            raise self.empty(found, len(containers))

    def check(self) -> None:
        """Whether each source is there, and something passes the patterns: as far into the archive
        as that takes. Raises as iterating.
        """
        if len(self._sources) > 1:
            for source in self._sources:
                next(
                    (True for section in source(self.fetcher) for _ in section.found(self.fetcher)),
                    None,
                )
        next(self.beginning())

    def empty(self, found: int, opened: int) -> ConfigError:
        """What to say when nothing was kept of `found` files, those in `opened` containers among
        them.
        """
        names = ", ".join(self._names)
        if not found and opened:
            return ConfigError(
                f"{names}: no file in {opened} archive{'s' * (opened != 1)}",
                hint="folders in an archive are not counted",
            )
        patterns = " ".join(
            [f"--include {p}" for p in self.selection.include]
            + [f"--exclude {p}" for p in self.selection.exclude]
        )
        if not found and not patterns:
            text = "no file there but those of the output directory, or only lists without rows"
            return ConfigError(
                f"{names}: {text}",
                hint="give --out a folder of its own, and the folder of the images as source",
            )
        files = f"none of {found} file{'s' if found > 1 else ''}" if found else "no file"
        return ConfigError(
            f"{names}: {files} passes {patterns}",
            hint="upper and lower case count: *.jpg does not match A.JPG; ** spans folders"
            + "; to choose archives and not what is in them, write the pattern into the source"
            * bool(opened),
        )


open_source = Archive  # as a verb


def _in_order(sections: Iterable[SourceSection], fetcher: Fetcher) -> Iterator[Found]:
    """All that sections hold, one section after the other; threads read some ranges of keys ahead
    of their turn.
    """
    waiting, reading, ended = iter(sections), deque[Iterator[Found]](), threading.Event()
    try:
        while True:
            while len(reading) < _RANGES_AT_ONCE and (section := next(waiting, None)) is not None:
                is_range = isinstance(section, object_prefix.PrefixRange)
                reading.append(
                    _read_ahead(section, fetcher, ended) if is_range else section.found(fetcher)
                )
            if not reading:
                return
            yield from reading.popleft()
    finally:
        ended.set()


def _read_ahead(
    section: SourceSection, fetcher: Fetcher, ended: threading.Event
) -> Iterator[Found]:
    """What a section holds, and raises, read by a thread of its own until `ended`, no further ahead
    than memory is meant for.
    """
    chunks: queue.Queue[list[Found] | Exception] = queue.Queue(_AHEAD)

    def put(chunk: list[Found] | Exception) -> None:
        is_put = False
        while not (is_put or ended.is_set()):
            with contextlib.suppress(queue.Full):
                chunks.put(chunk, timeout=0.2)
                is_put = True

    def read() -> None:
        try:
            found = section.found(fetcher)
            while not ended.is_set() and (chunk := list(islice(found, _CHUNK))):
                put(chunk)
            put([])
        except Exception as error:
            put(error)

    threading.Thread(target=read, name="list", daemon=True).start()

    def items() -> Iterator[Found]:
        while chunk := chunks.get():
            if isinstance(chunk, Exception):
                raise chunk
            yield from chunk

    return items()


def places_of(sources: Sequence[str]) -> list[str]:
    """The URLs of some sources as the user gave them, secrets and all, without the KIND:: before
    them.
    """
    return [urls.split_kind(source)[1] for source in sources]


def fetcher_of(
    sources: Sequence[str], policy: RetryPolicy | None = None, *, allow_private: bool = False
) -> Fetcher:
    """What reads the members of some sources. Lists in them may name web servers on the public
    Internet; `allow_private`: any.
    """
    urls = places_of(sources)
    return Fetcher(policy, signed=urls, guard=Guard.of(urls, allow_private=allow_private))


def name_of(source: str) -> str:
    """The one spelling of a source, KIND:: included, without secrets: what a run's identity notes."""
    kind, url = urls.split_kind(source)
    return (f"{kind}::" if kind else "") + strip_secrets(canonical(url))


def _source_for(
    source: str, columns: members.TableColumns, limits: ContainerLimits, selection: Selection
) -> Sections:
    kind, url = urls.split_kind(source)
    known = ("files", *CONTAINERS, "list")
    if kind in RETIRED_KINDS:
        raise ConfigError(f"'{kind}::' is retired", hint=RETIRED_KINDS[kind])
    if kind == EMBEDDINGS:
        raise ConfigError(
            f"{strip_secrets(source)}: a run that keeps embeddings is a source of touchstone score",
            hint="give the files themselves",
        )
    if kind is not None and kind not in known:
        raise ConfigError(
            f"{strip_secrets(source)}: '{kind}::' is not a kind of source",
            hint=f"known: {', '.join(known)}",
        )
    if not url:
        raise ConfigError(f"'{source}' is not a place", hint="give a folder, a file or a URL")
    url = canonical(url)  # here: sections are listed by tasks, whose working directory is another
    if kind == "list":
        return partial(uri_lists.lists_at, url, columns, limits)
    return partial(_objects, object_prefix.ObjectPrefix(url, kind, columns, limits, selection))


def _objects(prefix: object_prefix.ObjectPrefix, fetcher: Fetcher) -> Iterator[SourceSection]:
    """A list where its name announces one and it is a file; else objects, of a large S3 prefix
    stretch by stretch in the order of keys.
    """
    # Asked here once, and not by every task that lists a stretch.
    url, is_pattern = prefix.url, prefix.is_pattern
    if (
        prefix.kind is None
        and uri_lists.looks_like_list(url)
        and not is_pattern
        and uri_lists.is_one_file(url, fetcher)
    ):
        yield from uri_lists.lists_at(url, prefix.columns, prefix.limits, fetcher)
        return
    divisions = list_divisions(url)
    yield from (object_prefix.PrefixRange(prefix, keys) for keys in divisions)
    if not divisions:
        yield prefix
