"""What does a night cost after so many nights? One `score` command a night in this process, and the
requests that its run directory gets.

    python -m benchmarks.nights --nights 365 --json nights.json
    python -m benchmarks.nights --days 30 --json days.json        one command follows a folder: a listing every five minutes

All of a night is done as ever (checks, listing, manifest, publishing, the check that nothing is
lost, summary and report), against a real S3 server, but for the scoring itself: no Ray
is started, no picture decoded, and rows are made up. Sources lie on this disk, so that every
request is one to the run directory; those of the lease, whose number is a matter of seconds, are
left out.
"""

import argparse
import hashlib
import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from ray_app.archives import (
    BlockRef,
    list_complete_manifests,
    list_portions,
    open_source,
    read_block,
    read_blocks,
)
from ray_app.archives.dedup import IdTable
from ray_app.archives.listing import ListingProcess, ListingRequest
from ray_app.ensembles import load_ensemble_card
from ray_app.errors import Status
from ray_app.images import ImageFileFacts, ImageLimits
from ray_app.inference import DecodeResult, DetectorOutputs, ScoringSpec, judge, make_spec
from ray_app.runs import RunDirectory, current_rows, result_rows, verify_run
from ray_app.scoring import ScoreConfig
from ray_app.scoring.backlog import find_work
from ray_app.scoring.run import ScoringRun, score_archive
from tests.make.servers.s3 import Request, S3Server
from tests.make.stages import without_ray

BUCKET = "nights"
NEW = 50  # images of a night
LOOKED_AT = (2, 60, 365)


def kinds_of(requests: Sequence[Request]) -> Counter[str]:
    """How many requests of each kind: LIST, GET, HEAD, PUT, DELETE, and POST for deletes of many
    objects at once.
    """
    kinds = Counter[str]()
    for method, path in requests:
        kinds["LIST" if method == "GET" and path.strip("/").count("/") == 0 else method] += 1
    return kinds


def made_up(run: ScoringRun, listing: ListingProcess | None) -> None:
    """In the place of `ScoringRun.score`: each pending block gets rows whose scores follow from the
    images' names.
    """
    if listing is not None:
        listing.result()
    for ref in find_work(run.directory).pending:
        write_made_up(run.directory, run.spec, ref, attempt=run.session.number)


def write_made_up(run: RunDirectory, spec: ScoringSpec, ref: BlockRef, *, attempt: int) -> None:
    """Write the part of a block with made-up scores."""
    members = read_block(run.store, ref)
    digests = [hashlib.sha256(uri.encode()) for uri in members["uri"].to_pylist()]
    outcomes = [
        DecodeResult(Status.OK, None, ImageFileFacts(one.hexdigest(), "JPEG", 300, 200))
        for one in digests
    ]
    scores = np.array([one.digest()[0] / 32 - 4 for one in digests], np.float32)
    outputs = DetectorOutputs.clean(scores={name: scores for name in spec.cards})
    scored = judge(spec, outcomes, outputs)
    rows = result_rows(members, scored, attempt=attempt, scored_at=datetime.now(UTC))
    run.write_part(ref.manifest, ref.block, rows)


@contextmanager
def rows_made_up() -> Iterator[None]:
    """Inside, commands score without Ray and without a detector."""
    with without_ray(), patch.object(ScoringRun, "score", made_up):
        yield


class Nights:
    """Nights of one run on a server: `night` adds images and runs the command."""

    def __init__(self, server: S3Server, folder: Path, run: str = "run") -> None:
        self.server, self.source, self.run = (
            server,
            folder / f"{run}-images",
            RunDirectory.open(f"s3://{BUCKET}/{run}"),
        )
        self.source.mkdir()
        self._images = 0

    def add(self, count: int) -> None:
        """So many new images arrive."""
        for number in range(self._images, self._images + count):
            (self.source / f"{number:06}.jpg").write_text(str(number))
        self._images += count

    def command(self) -> dict[str, Any]:
        """One command; returns its summary."""
        config = ScoreConfig(source=(str(self.source),), out=self.run.store.url, ensemble="tiny")
        return score_archive(config).summary

    def night(self, new: int = NEW) -> Counter[str]:
        """So many new images and one command; the requests that it made, by kind."""
        self.add(new)
        self.server.clear_log()
        summary = self.command()
        kinds = kinds_of(self.server.requests(without="lease"))
        assert summary["members"] == self._images
        return kinds


def measure(nights: int, looked_at: Sequence[int] = LOOKED_AT) -> dict[str, Any]:
    """Go through so many nights; of some, the requests by kind of the night itself and of a command
    after it that finds nothing new.
    """
    found: dict[str, Any] = {"nights": {}, "unchanged": {}, "totals": [], "seconds": []}
    with (
        tempfile.TemporaryDirectory(prefix="nights-") as name,
        S3Server.start(Path(name)) as server,
        patch.dict(os.environ, server.environment),
        rows_made_up(),
    ):
        server.bucket(BUCKET)
        run = Nights(server, Path(name))
        for number in range(1, nights + 1):
            began = time.perf_counter()
            kinds = run.night()
            found["seconds"].append(round(time.perf_counter() - began, 2))
            found["totals"].append(kinds.total())
            if number in looked_at:
                found["nights"][number] = dict(kinds)
                found["unchanged"][number] = dict(run.night(0))
                print(
                    f"night {number}: {line(kinds)}; unchanged: {line(found['unchanged'][number])}",
                    flush=True,
                )
        found["files"] = len(run.run.store.names("scores"))
        began = time.perf_counter()
        found["current"] = len(list(current_rows(run.run)))
        found["read_rows_s"] = round(time.perf_counter() - began, 2)
    return found


class FollowedDays:
    """Days of a folder that one command follows.

    Each listing finds new images. Images leave the folder after a day.

    Args:
        server: The server of the run directory.
        folder: The folder on this disk.
        days: Number of days.
        listings: Listings of a day.
        new: New images at each listing.
    """

    def __init__(self, server: S3Server, folder: Path, days: int, listings: int, new: int) -> None:
        self._server, self._source = server, folder / "followed"
        self._source.mkdir()
        (self._source / "first.jpg").write_text("first")
        self._days, self._listings, self._new = days, listings, new
        self._images = 0
        self.run = RunDirectory.open(f"s3://{BUCKET}/followed")
        self.day = date(2026, 1, 1)
        self.requests: list[int] = []
        self.seconds: list[float] = []

    def follow(self) -> None:
        """Run the command until the last day is over."""
        config = ScoreConfig(
            source=(str(self._source),),
            out=self.run.store.url,
            ensemble="tiny",
            follow=300,
            thumbnails=False,
        )
        with (
            without_ray(),
            patch.object(ScoringRun, "score", self._live_a_day),
            patch("ray_app.scoring.run.ListingProcess", lambda request: nullcontext(request)),
            patch("ray_app.scoring.run.today", lambda: self.day),
            suppress(KeyboardInterrupt),
        ):
            score_archive(config)

    def _live_a_day(self, request: ListingRequest) -> None:
        """In place of `ScoringRun.score`: the listings of a day, with made-up rows."""
        if (self.day - date(2026, 1, 1)).days == self._days:
            raise KeyboardInterrupt
        spec = make_spec(load_ensemble_card("tiny"), limits=ImageLimits(), precision="fp32")
        archive = open_source(request.sources)
        with IdTable(self.run.store) as ids:
            for _ in range(self._listings):
                self._change_folder()
                self._server.clear_log()
                began = time.perf_counter()
                portions = list_portions(
                    self.run.store, archive, request.plan, ids, lease=request.lease
                )
                infos = list(portions)
                self.seconds.append(time.perf_counter() - began)
                self.requests.append(len(self._server.requests(without="lease")))
                for info in infos:
                    for ref in read_blocks(self.run.store, info.manifest, info.portions - 1):
                        write_made_up(self.run, spec, ref, attempt=1)
        self.day += timedelta(days=1)

    def _change_folder(self) -> None:
        for number in range(self._images, self._images + self._new):
            (self._source / f"{number:07}.jpg").write_text(str(number))
            (self._source / f"{number - self._new * self._listings:07}.jpg").unlink(missing_ok=True)
        self._images += self._new


def measure_days(days: int, listings: int = 288, new: int = 10) -> dict[str, Any]:
    """Follow a folder for some days; return what the listings and the run cost."""
    with (
        tempfile.TemporaryDirectory(prefix="days-") as name,
        S3Server.start(Path(name)) as server,
        patch.dict(os.environ, server.environment),
    ):
        server.bucket(BUCKET)
        followed = FollowedDays(server, Path(name), days, listings, new)
        began = time.perf_counter()
        followed.follow()
        wall_s = time.perf_counter() - began
        run, requests, seconds = followed.run, followed.requests, followed.seconds
        began = time.perf_counter()
        current = len(list(current_rows(run)))
        read_s = time.perf_counter() - began
        assert verify_run(run).current == current
        last = slice(-listings, None)
        return {
            "days": days,
            "listings": len(requests),
            "manifests": len(list_complete_manifests(run.store)),
            "members": run.read_json("summary.json")["members"],
            "requests": {
                "second_listing": requests[1],
                "median_of_first_day": float(np.median(requests[1:listings])),
                "median_of_last_day": float(np.median(requests[last])),
                "most_of_last_day": max(requests[last]),
            },
            "listing_s": {
                "median_of_first_day": round(float(np.median(seconds[1:listings])), 3),
                "median_of_last_day": round(float(np.median(seconds[last])), 3),
            },
            "read_rows_s": round(read_s, 2),
            "wall_s": round(wall_s),
        }


def line(kinds: Counter[str] | dict[str, int]) -> str:
    """Requests by kind, in one line."""
    return (
        f"{sum(kinds.values())} ("
        + ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        + ")"
    )


def main() -> None:
    """Measure, print, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nights", type=int, default=365)
    parser.add_argument("--at", type=int, nargs="*", default=list(LOOKED_AT))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--days", type=int, help="follow a folder for so many days instead")
    given = parser.parse_args()
    if given.days is not None:
        found = measure_days(given.days)
        print(json.dumps(found, indent=1))
        if given.json:
            given.json.write_text(json.dumps(found, indent=1))
        return
    found = measure(given.nights, given.at)
    later = found["totals"][1:]
    if later:
        requests = (
            f"{min(later)} to {max(later)} requests, {sum(later) / len(later):.1f} on average"
        )
        took = f"{sum(found['seconds']):.0f} s in all, {np.median(found['seconds']):.2f} s a night"
        print(f"nights 2 to {given.nights}: {requests}; {found['files']} files in scores/; {took}")
        first, last = np.median(found["seconds"][1:11]), np.median(found["seconds"][-10:])
        print(f"median of nights 2 to 11 {first:.2f} s, of the last ten {last:.2f} s")
        print(f"{found['current']:,} current rows read in {found['read_rows_s']} s")
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
