"""Ours: the `touchstone score` command as any user starts it, and what its run directory says
afterwards.
"""

import json
import statistics
import sys
from collections import Counter
from datetime import datetime
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq

from benchmarks.contenders.contender import Contender, Record
from benchmarks.measuring import cumulative
from benchmarks.work import DETECTORS, Work, cores

PROGRAM = "touchstone"
BLOCKS = 12  # per core and run: enough commits between which to see the steady state


def command(
    work: Work, count: int, out: Path, *, bin_folder: Path = Path(sys.executable).parent
) -> list[str]:
    """Blocks small enough that the rate can be read off their commits; the rest as it comes."""
    members = max(count // (BLOCKS * cores()) // 4, 1) * 4
    return [
        *default_command(work, count, out, bin_folder=bin_folder),
        "--set",
        f"block_members={members}",
    ]


def default_command(
    work: Work, count: int, out: Path, *, bin_folder: Path = Path(sys.executable).parent
) -> list[str]:
    """The command with every setting at its default."""
    detector = ["--ensemble", work.ensemble] if work.ensemble else ["--detector", work.card]
    return [
        str(bin_folder / PROGRAM),
        "score",
        work.folder,
        "--out",
        str(out),
        "--limit",
        str(count),
        *detector,
    ]


def read(stdout: str, out: Path) -> Record:
    """Commit times and scores from the rows of the finished run."""
    rows = pq.read_table(out / "scores", columns=["uri", "scores", "scored_at"]).to_pylist()
    commits = Counter(row["scored_at"].timestamp() for row in rows)
    scores = {
        row["uri"].rpartition("/")[2]: statistics.fmean(row["scores"].values())
        for row in rows
        if None not in row["scores"].values()
    }
    sessions = [json.loads(path.read_text()) for path in sorted((out / "sessions").glob("*.json"))]
    marks = (
        {"ray up": datetime.fromisoformat(sessions[0]["started_at"]).timestamp()}
        if sessions
        else {}
    )
    return Record(cumulative(list(commits.items())), scores, marks, detail=_stages(sessions))


def _stages(sessions: list[dict]) -> dict[str, float]:
    """Seconds that the workers spent in each stage, per image."""
    rows = sum(session["rows"] for session in sessions)
    return {
        f"{stage}_s": seconds / rows
        for session in sessions[-1:]
        for stage, seconds in session["seconds"].items()
        if rows
    }


def _lacks(folder: Path) -> str | None:
    program = Path(sys.executable).with_name(PROGRAM)
    return None if program.exists() else f"no {program}; `make setup` installs it"


def another_checkout(root: Path) -> Contender:
    """Return `touchstone score` of another checkout with its own .venv."""
    return Contender(
        "touchstone_before",
        f"touchstone score of {root}",
        partial(command, bin_folder=root / ".venv/bin"),
        read,
        environment={"PYTHONPATH": str(root)},
        needs_ray=True,
        works=tuple(DETECTORS),
    )


TOUCHSTONE = Contender(
    "touchstone",
    "touchstone score",
    command,
    read,
    needs_ray=True,
    lacks=_lacks,
    works=tuple(DETECTORS),
)
