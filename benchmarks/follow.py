"""A day of a bucket in ten minutes: 20,000 objects that arrive unevenly, some that change or go,
while one command follows it, is killed once, and loses a node. How long does each arrival wait for
its row, and is the end what one run over the end says?

    nice python -m benchmarks.follow --json follow.json            lists the bucket again every ten seconds

Everything is real but small: an S3 server (moto's), a Ray of a head and two nodes, the command of a
user in a process of its own, its run directory in a bucket, pictures of 24 × 24 pixels, the shipped
ensemble `tiny`. A latency is from the end of an object's PUT to the moment that its row was made,
which is when its part is written. Server, nodes, command and the pictures' sender share this
machine's cores.
"""

import argparse
import io
import json
import os
import random
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from PIL import Image

from ray_app.archives import ListedMember, image_id, list_complete_manifests
from ray_app.errors import ExitCode
from ray_app.runs import RunDirectory, current_tables, verify_run
from tests.make.nodes import Nodes
from tests.make.runs import ROOT
from tests.make.servers.s3 import S3Server
from tests.make.waiting import kill_family, wait_until

# how much of a day comes in each of its hours
HOURS = (1, 0, 0, 0, 1, 3, 8, 12, 10, 6, 5, 9, 14, 6, 4, 4, 6, 10, 16, 9, 5, 3, 2, 1)
SOURCE, OUT, WHOLE = "s3://day/in", "s3://day-run/run", "s3://day-run/whole"
COLUMNS = ["image_id", "uri", "status", "score", "scores", "verdict", "scored_at"]


@dataclass(frozen=True)
class Day:
    """What happens: `seconds` long, `objects` arrive, `changed` and `deleted` of them later; listed
    every `every_s` seconds.
    """

    objects: int = 20_000
    changed: int = 50
    deleted: int = 20
    seconds: float = 600.0
    every_s: float = 10.0
    idle_s: float = 30.0
    killed_at: float = 0.45  # of the day: in the rush of its noon
    lost_at: float = 0.75


@dataclass
class Bucket:
    """The bucket's own side: what was put there and when, by the id that a listing gives it;
    `there`: what is there now, by key.
    """

    day: Day
    client: Any
    put_at: dict[int, float] = field(default_factory=dict)
    there: dict[str, int] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def put(self, key: str, seed: int) -> None:
        """A new object, or another under the same key."""
        data = io.BytesIO()
        Image.fromarray(
            np.random.default_rng(seed).integers(0, 256, (24, 24, 3), dtype=np.uint8)
        ).save(data, "PNG", compress_level=1)
        etag = self.client.put_object(Bucket="day", Key=f"in/{key}", Body=data.getvalue())[
            "ETag"
        ].strip('"')
        number = image_id(ListedMember(f"{SOURCE}/{key}", None, 0, etag, len(data.getvalue())))
        with self.lock:
            self.put_at[number], self.there[key] = time.time(), number

    def delete(self, key: str) -> None:
        """Gone."""
        self.client.delete_object(Bucket="day", Key=f"in/{key}")
        with self.lock:
            del self.there[key]

    def live(self, happens: list[tuple[float, Callable[[], None]]]) -> None:
        """Let the whole day pass; `happens`: what else, and when."""
        chance, day = random.Random(46), self.day
        hours = chance.choices(range(len(HOURS)), HOURS, k=day.objects)
        hour_s = day.seconds / len(HOURS)
        arrive_at = sorted((hour + chance.random()) * hour_s for hour in hours)
        name = "{:02}/{:06} ü+.png".format  # as S3's events encode it
        keys = [name(int(at / hour_s), number) for number, at in enumerate(arrive_at)]
        plan = [
            (at, lambda key=key, number=number: self.put(key, number))
            for number, (at, key) in enumerate(zip(arrive_at, keys, strict=True))
        ]
        chosen = chance.sample(range(day.objects), day.changed + day.deleted)
        for place, number in enumerate(chosen):
            later = arrive_at[number] + (day.seconds - arrive_at[number]) * (
                0.2 + 0.8 * chance.random()
            )
            change = lambda key=keys[number], seed=day.objects + number: self.put(key, seed)  # noqa: E731
            plan.append(
                (
                    later,
                    change if place < day.changed else lambda key=keys[number]: self.delete(key),
                )
            )
        began = time.monotonic()
        with ThreadPoolExecutor(8) as pool:
            waiting = []
            for at, step in sorted([*plan, *happens], key=lambda one: one[0]):
                time.sleep(max(0.0, began + at - time.monotonic()))
                waiting.append(pool.submit(step))
            for one in waiting:
                one.result()


@contextmanager
def world(folder: Path) -> Iterator[tuple[S3Server, Nodes]]:
    """A server with two buckets, and a Ray."""
    # Ray has 15
    token = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_worker_niceness": "0",
    }
    with S3Server.start(folder) as server, patch.dict(os.environ, server.environment | token):
        for name in ("day", "day-run"):
            server.bucket(name)
        nodes = Nodes()
        try:
            yield server, nodes
        finally:
            kill_family(nodes.process)


class Following:
    """The command, which can be killed and given again."""

    def __init__(self, day: Day, address: str, log: Path) -> None:
        self._words = [
            "score",
            SOURCE,
            "--out",
            OUT,
            "--ensemble",
            "tiny",
            "--follow",
            f"{day.every_s}s",
        ]
        self._words += [
            "--set",
            f"cluster.idle_s={day.idle_s}",
            "--set",
            f"cluster.address={address}",
            "--set",
            "thumbnails=false",
        ]
        self.log, self.given = log, 0
        self.begin()

    def begin(self) -> None:
        """Give the command."""
        command = [sys.executable, "-m", "ray_app.cli", *self._words]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                stdout=log,
                stderr=log,
            )
        self.given += 1

    def kill(self) -> None:
        """SIGKILL, and the same command again."""
        self.process.kill()
        self.process.wait()
        self.begin()

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(180)


def rows_of(url: str, *, vanished: bool = False) -> dict[int, dict[str, Any]]:
    """By id the rows of a run, whatever it is doing."""
    tables = current_tables(RunDirectory.open(url), COLUMNS, vanished=vanished, unfinished=True)
    return {row["image_id"]: row for table in tables for row in table.to_pylist()}


def facts_of(rows: dict[int, dict[str, Any]]) -> dict[int, Any]:
    """What two runs must agree on, scores to the bit."""
    return {
        number: tuple(repr(row[name]) for name in COLUMNS if name != "scored_at")
        for number, row in rows.items()
    }


def measure(day: Day, log: Path | None = None) -> dict[str, Any]:
    """Let the day pass; what was found."""
    with (
        tempfile.TemporaryDirectory(prefix="follow-") as name,
        world(Path(name)) as (server, nodes),
    ):
        bucket = Bucket(day, server.client())
        bucket.put("first.png", 10 * day.objects)
        following = Following(day, nodes.address, log or Path(name) / "score.log")
        run = RunDirectory.open(OUT)
        wait_until(lambda: run.exists() and len(rows_of(OUT)) == 1)
        moments: dict[str, float] = {}

        def node() -> None:
            moments["lost"] = time.time()
            os.kill(min(nodes.raylets.values()), signal.SIGKILL)

        def driver() -> None:
            moments["killed"] = time.time()
            following.kill()

        bucket.live([(day.killed_at * day.seconds, driver), (day.lost_at * day.seconds, node)])
        ended = time.time()
        wait_until(lambda: rows_of(OUT).keys() == set(bucket.there.values()), 2 * day.seconds + 600)
        settled_s = time.time() - ended
        code = following.stop()
        every, rows = rows_of(OUT, vanished=True), rows_of(OUT)
        numbers = list_complete_manifests(run.store)
        summary = run.read_json("summary.json")
        found = {
            "mode": f"listed every {day.every_s:g} s",
            "objects": day.objects + 1,
            "days": summary["days"],
            "exit_code": code,
            "proved": verify_run(run).current == len(rows) == summary["members"]
            and run.last_finished() == numbers[-1],
            "manifests": len(numbers),
            "commands": following.given,
            "vanished": len(every) - len(rows),
            "after_the_last_s": round(settled_s, 1),
        }
        waited = {
            number: row["scored_at"].timestamp() - bucket.put_at[number]
            for number, row in every.items()
            if number in bucket.put_at
        }
        found["arrivals"] = len(waited)
        found["latency_s"] = quantiles(list(waited.values()))
        calm = [
            one
            for number, one in waited.items()
            if not any(-30 < bucket.put_at[number] - at < 60 for at in moments.values())
        ]
        found["latency_s_beside_kill_and_loss"] = quantiles(calm)
        found["pauses"] = following.log.read_text().count("processes end until something comes")
        words = [
            sys.executable,
            "-m",
            "ray_app.cli",
            "score",
            SOURCE,
            "--out",
            WHOLE,
            "--ensemble",
            "tiny",
            "--set",
            "thumbnails=false",
        ]
        subprocess.run(
            words,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            check=True,
            capture_output=True,
        )
        found["equal"] = facts_of(rows) == facts_of(rows_of(WHOLE)) and rows.keys() == set(
            bucket.there.values()
        )
        return found


def quantiles(seconds: list[float]) -> dict[str, float]:
    """Of latencies: how long half of them, 99 of 100, and the longest took."""
    middle, late = np.quantile(seconds, [0.5, 0.99])
    return {
        "count": len(seconds),
        "median": round(float(middle), 1),
        "p99": round(float(late), 1),
        "max": round(max(seconds), 1),
    }


def main() -> int:
    """Measure, print, and write what was found; 0 where the end is what it must be."""
    given = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    given.add_argument("--objects", type=int, default=Day.objects)
    given.add_argument("--changed", type=int, default=Day.changed)
    given.add_argument("--deleted", type=int, default=Day.deleted)
    given.add_argument("--seconds", type=float, default=Day.seconds)
    given.add_argument(
        "--every", type=float, default=Day.every_s, help="seconds between two listings"
    )
    given.add_argument("--log", type=Path, help="what the command says")
    given.add_argument("--json", type=Path)
    words = given.parse_args()
    day = Day(words.objects, words.changed, words.deleted, words.seconds, words.every)
    found = measure(day, words.log)
    print(json.dumps(found, indent=1))
    if words.json:
        words.json.write_text(json.dumps(found, indent=1))
    return int(
        not (found["equal"] and found["proved"] and found["exit_code"] == ExitCode.INTERRUPTED)
    )


if __name__ == "__main__":
    sys.exit(main())
