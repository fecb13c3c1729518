"""The slow tests, in groups of minutes, each with what it shows.

    python -m tests.groups faults memory     these, one after another, and a table
    python -m tests.groups all               every one

A slow test belongs to the first group that names its file, or a folder that it lies in
(`group_of`). Exit code 1 where a test failed.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
LONGEST_MINUTES = 15


@dataclass(frozen=True)
class Group:
    """`shows`: what for; `places`: files and folders below `tests`; `processes`: how many at a
    time, 1 where the tests start Rays.
    """

    shows: str
    places: tuple[str, ...]
    processes: int = 1


GROUPS = {
    "cluster": Group("a submitted job, an autoscaler, cluster.yaml on AWS's API, nodes that differ; the endpoint deployed", (
        "cluster", "scoring/test_job.py", "scoring/test_autoscaled.py", "scoring/test_cascade.py", "serving/test_deployed.py",
    )),
    "kills": Group("drivers, workers, nodes, and listings killed at many moments: nothing lost, nothing twice", (
        "scoring/test_kills.py", "scoring/test_killed.py",
    )),
    "faults": Group("storage and output that fail, decoders that die: nothing lost, nothing twice; twenty nights; other clouds", (
        "scoring/test_decoder_deaths.py", "scoring/test_faults.py",
        "scoring/test_engine.py", "scoring/test_faulty_storage.py", "scoring/test_run.py", "scoring/test_nights.py",
        "scoring/test_run_metrics.py", "scoring/test_pod_end.py", "scoring/test_follow.py", "storage",
    )),
    "memory": Group("what hostile and huge files leave in memory; every layout of every format against libvips", (
        "scoring", "images", "inference", "runs", "archives",
    )),
    "detectors": Group("detectors in bf16 and against all golden values; those of other packages", ("detectors", "evaluation")),
    "benchmarks": Group("the benchmarks, each run small from end to end; rows equal to those of 0.29.1", ("benchmarks", "tools")),
    "training": Group("two processes against one, decoders apart, killed trainings, the linear probe; splits, augmentations", (
        "training/test_killed.py", "training/test_linear_probe.py", "training/test_ray_data.py", "datasets", "transforms",
    )),
    "recipes": Group("recipes from pictures to a card that scores, every family in every precision; notices, bad images", (
        "training/test_describing_e2e.py", "training/test_identifying_e2e.py", "training/test_learner.py", "training/test_notice.py",
        "training/test_published.py",
    )),
    "operators": Group("the files for operators, by promtool, nginx, and hadolint where they are installed", ("operators",)),
    "exits": Group("200 runs on Parquet that end with exit code 0", ("cli/test_exits.py",)),
    "data": Group("what makes, fetches and packs images; commands; from simulated pictures to a card, from prompts to names", (
        "datajobs", "cli", "training", "test_profile_walk.py",
    )),
    "browser": Group("the endpoint's page and every report in Chromium, by hand and by axe", (
        "reports/test_in_browser.py", "serving/test_page.py", "serving/test_page_troubles.py", "serving/test_saved_report.py",
    )),
    "endpoint": Group("the endpoint under minutes of hostile clients, on both servers; its pages, and all reports, by axe", (
        "reports", "serving/test_pressure.py", "serving/test_refused_clients.py", "serving/test_server.py", "serving/test_soak.py",
    )),
    "strangers": Group("what a stranger gets from every command that starts a Ray: nothing; files of an archive are never imported", (
        "test_strangers.py", "test_import_path.py",
    )),
    "journeys": Group("whole journeys of newcomers from an empty folder, by the wheel and the documents' own lines", ("journeys",)),
    "readme": Group("the lines of README in an empty folder", ("test_readme.py",)),
    "pages": Group("the lines of README on a fresh machine, and of the documents, as a reader types them", (
        "docs/test_blocks.py", "test_fresh_machine.py",
    )),
    "docs": Group("the tutorials, the guide, the notebook, the site; the wheel where nothing else is; from older versions", (
        "docs", "test_distribution.py", "test_upgrading.py",
    )),
    "statistics": Group("what is promised of errors, on 1,000 seeds each", (
        "statistics/test_audit.py", "statistics/test_calibrated_chances.py", "statistics/test_generators.py",
        "statistics/test_guarantee.py", "statistics/test_guarantee_commands.py",
    ), processes=2),
    "shifts": Group("archives unlike the labelled images, and shortcuts of their metadata, on 1,000 seeds", ("statistics",), processes=2),
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
    return next(
        (
            name
            for name, group in GROUPS.items()
            if any(place.is_relative_to(one) for one in group.places)
        ),
        None,
    )


def make_targets() -> frozenset[str]:
    """What `make` makes: the targets that stand in the Makefile, and one for each group."""
    written = re.findall(
        r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE
    )
    return frozenset(written) | {f"test-{name}" for name in (*GROUPS, "all")}


def run(name: str) -> Ended:
    """Run one group; its log goes where ours goes."""
    group, begun = GROUPS[name], time.monotonic()
    print(f"== {name}: {group.shows}", flush=True)
    apart = (
        ["-n", str(group.processes), "--dist", "worksteal", "--max-worker-restart", "0"]
        if group.processes > 1
        else []
    )
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "junit.xml"
        words = [
            "--durations",
            "10",
            "-m",
            "slow",
            f"--junitxml={report}",
            f"--group={name}",
            *apart,
        ]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *words, *(f"tests/{one}" for one in group.places)],
            cwd=ROOT,
            check=False,
        )
        suite = ElementTree.parse(report).getroot().find("testsuite") if report.exists() else None
    tests, skipped, *bad = (
        int(suite.get(key, 0)) if suite is not None else 0
        for key in ("tests", "skipped", "failures", "errors")
    )
    # one that ran no test, or that was killed, has failed too
    failed = sum(bad) or int(done.returncode != 0)
    return Ended(
        name, max(tests - skipped - sum(bad), 0), skipped, failed, time.monotonic() - begun
    )


def table(ended: list[Ended]) -> str:
    """A line for each group, and the sum."""
    total = Ended(
        "all",
        *(sum(one[place] for one in ended) for place in range(1, 4)),
        sum(one.seconds for one in ended),
    )
    lines = [f"{'group':12} {'passed':>7} {'skipped':>8} {'failed':>7} {'minutes':>8}"]
    for name, passed, skipped, failed, seconds in [*ended, total]:
        late = (
            f"  more than {LONGEST_MINUTES}"
            if name != "all" and seconds > 60 * LONGEST_MINUTES
            else ""
        )
        lines.append(f"{name:12} {passed:7} {skipped:8} {failed:7} {seconds / 60:8.1f}{late}")
    return "\n".join(lines)


def main(words: list[str]) -> int:
    """Run the groups that are named."""
    names = [name for word in words for name in (GROUPS if word == "all" else [word])]
    if unknown := [name for name in names if name not in GROUPS]:
        print(
            f"no group {', '.join(unknown)}; there are {', '.join(GROUPS)} and all",
            file=sys.stderr,
        )
        return 2
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    ended = [run(name) for name in names]
    print(f"\n{table(ended)}")
    return int(any(one.failed for one in ended))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
