"""What does a night cost after so many nights? One `score` command a night in this process, and the
requests that its run directory gets.

    python -m benchmarks.nights --nights 365 --json nights.json

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
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from ray_app.archives import read_block
from ray_app.archives.listing import ListingProcess
from ray_app.errors import Status
from ray_app.images import ImageFileFacts
from ray_app.inference import DecodeResult, DetectorOutputs, judge
from ray_app.runs import RunDirectory, result_rows
from ray_app.scoring import ScoreConfig
from ray_app.scoring.backlog import work_of
from ray_app.scoring.run import ScoringRun, score_archive
from tests.s3_server import Request, S3Server
from tests.scoring.stages import without_ray

BUCKET = "nights"
NEW = 3  # images of a night
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
        listing.raise_error()
    directory = run.directory
    for ref in work_of(directory).pending:
        members = read_block(directory.store, ref)
        digests = [hashlib.sha256(uri.encode()) for uri in members["uri"].to_pylist()]
        outcomes = [
            DecodeResult(Status.OK, None, ImageFileFacts(one.hexdigest(), "JPEG", 300, 200))
            for one in digests
        ]
        scores = np.array([one.digest()[0] / 32 - 4 for one in digests], np.float32)
        scored = judge(
            run.spec,
            outcomes,
            DetectorOutputs.clean(scores={name: scores for name in run.spec.cards}),
        )
        rows = result_rows(members, scored, attempt=run.session.number, scored_at=datetime.now(UTC))
        directory.write_part(ref.manifest, ref.block, rows)


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
    return found


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
    given = parser.parse_args()
    found = measure(given.nights, given.at)
    later = found["totals"][1:]
    if later:
        requests = (
            f"{min(later)} to {max(later)} requests, {sum(later) / len(later):.1f} on average"
        )
        took = f"{sum(found['seconds']):.0f} s in all, {np.median(found['seconds']):.2f} s a night"
        print(f"nights 2 to {given.nights}: {requests}; {found['files']} files in scores/; {took}")
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
