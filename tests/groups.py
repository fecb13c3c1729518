"""The slow tests, in groups of minutes, each with what it shows.

    python -m tests.groups kills faults      these, one after another, and a table
    python -m tests.groups all               every one
    python -m tests.groups today             the one of this day of the year, as CI takes it: each comes within two weeks

A slow test belongs to the first group that names its file, or a folder that it lies in (`group_of`). Exit code 1 where a test failed.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
LONGEST_MINUTES = 15


@dataclass(frozen=True)
class Group:
    """`shows`: what for; `places`: files and folders below `tests`; `processes`: how many at a time, 1 where the tests start Rays."""

    shows: str
    places: tuple[str, ...]
    processes: int = 1


GROUPS = {
    "cluster": Group("a submitted job and its stop, an autoscaler, cluster.yaml on AWS's API, nodes of other versions and processors", (
        "cluster", "scoring/test_job.py", "scoring/test_autoscaled.py", "scoring/test_mixed_processors.py",
    )),
    "kills": Group("drivers, workers and nodes killed at seeded moments: nothing lost, nothing twice; late nodes", (
        "scoring/test_kills.py", "scoring/test_killed.py", "scoring/test_decoder_deaths.py",
    )),
    "faults": Group("faults of storage and output; runs that stop and go on; twenty nights; other clouds", (
        "scoring/test_faults.py", "scoring/test_faulty_storage.py", "scoring/test_run_more.py", "scoring/test_nights.py",
        "scoring/test_run_metrics.py", "scoring/test_pod_end.py", "storage",
    )),
    "memory": Group("what hostile and huge files leave in memory; every layout of every format against libvips", (
        "scoring", "images", "inference", "runs", "archives",
    )),
    "detectors": Group("detectors in bf16 and against all golden values; evaluations, calibrations, benchmarks", (
        "detectors", "evaluation", "benchmarks",
    )),
    "training": Group("two processes against one, killed trainings, bad images, the linear probe; splits, augmentations", (
        "training/test_killed.py", "training/test_linear_probe.py", "training/test_notice.py", "datasets", "transforms",
    )),
    "recipes": Group("recipes from pictures to a card that scores, every family in every precision and as ONNX", ("training",)),
    "data": Group("what makes, fetches and packs images; commands; from prompts to names", ("datajobs", "cli", "test_profile_walk.py")),
    "endpoint": Group("the endpoint under hostile clients on both servers; its pages, and all reports, by axe", (
        "reports", "serving/test_pressure.py", "serving/test_server.py",
    )),
    "deployed": Group("the endpoint deployed on a cluster", ("serving/test_deployed.py",)),
    "soak": Group("minutes of hostile traffic on the endpoint", ("serving/test_soak.py",)),
    "strangers": Group("what a stranger gets from every command that starts a Ray: nothing", ("test_strangers.py",)),
    "docs": Group("the wheel where nothing else is, the lines of the documents as a reader types them, the site", (
        "docs", "test_distribution.py", "test_readme.py", "test_upgrading.py",
    )),
    "statistics": Group("what is promised of errors, on 1,000 seeds each", ("statistics",), processes=2),
}  # fmt: skip


class Ended(NamedTuple):
    """How a group ended: counts of tests, and seconds."""

    name: str
    passed: int
    skipped: int
    failed: int
    seconds: float


def group_of(path: Path) -> str | None:
    """The group of a file with slow tests, by its path; None where no group has it."""
    place = path.relative_to(ROOT / "tests")
    return next((name for name, group in GROUPS.items() if any(place.is_relative_to(one) for one in group.places)), None)


def of_today(today: datetime) -> str:
    """The group of a day: all of them in turn."""
    names = list(GROUPS)
    return names[today.timetuple().tm_yday % len(names)]


def make_targets() -> frozenset[str]:
    """What `make` makes: the targets that stand in the Makefile, and one for each group."""
    written = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    return frozenset(written) | {f"test-{name}" for name in (*GROUPS, "all", "today")}


def run(name: str) -> Ended:
    """Run one group; its log goes where ours goes."""
    group, begun = GROUPS[name], time.monotonic()
    print(f"== {name}: {group.shows}", flush=True)
    apart = ["-n", str(group.processes), "--dist", "worksteal", "--max-worker-restart", "0"] if group.processes > 1 else []
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "junit.xml"
        words = ["--durations", "10", "-m", "slow", f"--junitxml={report}", f"--group={name}", *apart]
        done = subprocess.run([sys.executable, "-m", "pytest", *words, *(f"tests/{one}" for one in group.places)], cwd=ROOT, check=False)
        suite = ElementTree.parse(report).getroot().find("testsuite") if report.exists() else None
    tests, skipped, *bad = (int(suite.get(key, 0)) if suite is not None else 0 for key in ("tests", "skipped", "failures", "errors"))
    failed = sum(bad) or int(done.returncode != 0)  # one that ran no test, or that was killed, has failed too
    return Ended(name, max(tests - skipped - sum(bad), 0), skipped, failed, time.monotonic() - begun)


def table(ended: list[Ended]) -> str:
    """A line for each group, and the sum."""
    total = Ended("all", *(sum(one[place] for one in ended) for place in range(1, 4)), sum(one.seconds for one in ended))
    lines = [f"{'group':12} {'passed':>7} {'skipped':>8} {'failed':>7} {'minutes':>8}"]
    for name, passed, skipped, failed, seconds in [*ended, total]:
        late = f"  more than {LONGEST_MINUTES}" if name != "all" and seconds > 60 * LONGEST_MINUTES else ""
        lines.append(f"{name:12} {passed:7} {skipped:8} {failed:7} {seconds / 60:8.1f}{late}")
    return "\n".join(lines)


def main(words: list[str]) -> int:
    """Run the groups that are named."""
    names = [one for word in words for one in {"all": list(GROUPS), "today": [of_today(datetime.now(UTC))]}.get(word, [word])]
    if unknown := [name for name in names if name not in GROUPS]:
        print(f"no group {', '.join(unknown)}; there are {', '.join(GROUPS)}, all and today", file=sys.stderr)
        return 2
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    ended = [run(name) for name in names]
    print(f"\n{table(ended)}")
    return int(any(one.failed for one in ended))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
