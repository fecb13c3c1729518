"""How long does listing a prefix take, and how many requests? Against a server of its own
process that answers by a formula.

    python -m benchmarks.listing --keys 1000000 10000000 --ways stream folders portions --processes 2 --json listing.json

Ways: `stream`: one page after the other; `folders`: the whole, in its folders, into raw files, by so
many processes as tasks; `portions`: into
a manifest, as the listing process of `touchstone score` does it. Each case is a process of its own, whose peak memory
is counted without its children; `--seconds` ends it early: keys and requests are then those until
there.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from benchmarks.listing_server import started

SOURCES = ("s3://bucket/photos",)
WAYS = ("stream", "folders", "portions")
PLAIN = {
    "AWS_ACCESS_KEY_ID": "none",
    "AWS_SECRET_ACCESS_KEY": "none",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


class _TimeIsUpError(Exception):
    """As long as was wanted."""


def list_keys(way: str, processes: int, seconds: float) -> dict[str, Any]:
    """List `s3://bucket/photos` of the server that the environment names."""
    from ray_app.archives import (
        BlockPlan,
        map_serial,
        open_source,
        read_complete,
        read_last_listing,
    )
    from ray_app.archives.listing import ListingRequest, list_archive
    from ray_app.archives.members import identity_digest
    from ray_app.archives.raw_listing import SectionLister
    from ray_app.archives.walk import ArchiveWalker
    from ray_app.storage import Store

    began, archive, keys = time.monotonic(), open_source(SOURCES), 0
    portions: list[dict[str, Any]] = []

    def progress(members: int) -> None:
        nonlocal keys
        keys = members
        if time.monotonic() - began > seconds:
            raise _TimeIsUpError

    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="listing-"))
        each = (
            map_serial
            if processes == 1
            else _tasks(stack.enter_context(ProcessPoolExecutor(processes)), processes)
        )
        with suppress(_TimeIsUpError):
            if way == "portions":
                # As the listing process of `touchstone score` does it.
                list_archive(
                    ListingRequest(run=folder, lease=0, sources=SOURCES, plan=BlockPlan()), progress
                )
                store = Store.open(folder)
                listed = read_last_listing(store)
                infos = [
                    read_complete(store, 0, k) for k in range(listed.portions if listed else 0)
                ]
                portions = [
                    {"members": info.members, "took_s": info.listing_s} for info in infos if info
                ]
            else:
                lister = SectionLister(
                    Store.open(folder), "raw", archive.selection, archive.fetcher, identity_digest
                )
                ArchiveWalker(lister, archive, each, progress=progress).sources(
                    in_order=way == "stream"
                )
        wall, own = time.monotonic() - began, resource.getrusage(resource.RUSAGE_SELF)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "listed": keys,
        "wall_s": round(wall, 1),
        "cpu_s": round(own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime, 1),
        "peak_mib": own.ru_maxrss >> 10,
        "portions": portions,
    }


def _tasks(
    pool: ProcessPoolExecutor, processes: int
) -> Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]:
    """As Ray runs tasks: some at once, results in the order of items."""

    def each(function: Callable[[Any], Any], items: Iterable[Any], /) -> Iterator[Any]:
        rest, running = iter(items), []
        while True:
            while len(running) < 2 * processes and (item := next(rest, rest)) is not rest:
                running.append(pool.submit(function, item))
            if not running:
                return
            yield running.pop(0).result()

    return each


def measured(keys: int, way: str, processes: int, latency: float, seconds: float) -> dict[str, Any]:
    """One case, in a process of its own, against a server of its own."""
    server, url = started(keys, latency)
    try:
        command = [
            sys.executable,
            "-m",
            "benchmarks.listing",
            "--one",
            way,
            "--processes",
            str(processes),
            "--seconds",
            str(seconds),
        ]
        ran = subprocess.run(
            command,
            env=os.environ | PLAIN | {"AWS_ENDPOINT_URL": url},
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        with urllib.request.urlopen(f"{url}/.counts") as answer:  # noqa: S310 - this machine
            counts = json.load(answer)
        server_cpu = _cpu_s(server.pid)
    finally:
        server.kill()
        server.wait()
    found: dict[str, Any] = json.loads(ran.stdout)
    rate = {
        "keys_per_s": round(found["listed"] / found["wall_s"]),
        "us_cpu_per_key": round(found["cpu_s"] / max(found["listed"], 1) * 1e6, 1),
    }
    return {
        "keys": keys,
        "way": way,
        "processes": processes,
        "latency_s": latency,
        **found,
        **rate,
        **counts,
        "server_cpu_s": server_cpu,
    }


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return round((int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), 1)


def table(cases: Sequence[dict[str, Any]]) -> str:
    """The cases as Markdown."""
    lines = [
        "| keys | way | processes | listed | seconds | keys/s | requests | CPU µs/key | peak MiB |",
        "| --- " * 9 + "|",
    ]
    for one in cases:
        cells = [
            one["keys"],
            one["way"],
            one["processes"],
            one["listed"],
            one["wall_s"],
            one["keys_per_s"],
            one["requests"],
        ]
        lines.append(
            "| "
            + " | ".join(
                f"{cell:,}" if isinstance(cell, int) else str(cell)
                for cell in [*cells, one["us_cpu_per_key"], one["peak_mib"]]
            )
            + " |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure each number of keys in each way."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--keys", type=int, nargs="+", default=[1_000_000])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--latency", type=float, default=0.03)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", choices=WAYS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(list_keys(given.one, given.processes, given.seconds)))
        return
    cases = []
    for keys in given.keys:
        for way in given.ways:
            cases.append(measured(keys, way, given.processes, given.latency, given.seconds))
            print(json.dumps(cases[-1]), file=sys.stderr, flush=True)
    print(table(cases))
    if given.json:
        # which loads what would count as memory of the cases
        from benchmarks.machine import machine

        given.json.write_text(json.dumps({"machine": machine(), "cases": cases}, indent=1))


if __name__ == "__main__":
    main()
