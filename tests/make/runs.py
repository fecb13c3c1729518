"""Run `score` on an archive, here or in a process of its own, and read what it left."""

import os
import subprocess
import sys
from pathlib import Path

from ray_app.runs import RunDirectory, current_rows
from ray_app.scoring import ScoreConfig
from ray_app.scoring.identity import resolve
from ray_app.scoring.run import score_archive
from tests.make.stages import of_tiny, without_ray
from tests.make.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]


def score_into(out, source, **settings):
    """Score a source into a run directory; return the finished run and its rows by path. The
    report has no thumbnails, since they would be read from the archive again.
    """
    settings = {"block_members": 8, "thumbnails": False} | of_tiny(settings)
    return score_archive(ScoreConfig(source=(str(source),), out=str(out), **settings)), rows_of(out)


def score_here(out, source, **settings):
    """Score as `score_into` does, without Ray: the stages one after another in this process."""
    with without_ray():
        return score_into(out, source, **settings)


def rows_of(out, **options):
    """Return the current rows of a run by the path of their image."""
    rows = list(current_rows(RunDirectory.open(str(out)), **options))
    by_uri = {row["uri"]: row for row in rows}
    assert len(by_uri) == len(rows)
    return by_uri


def begin(out, **settings):
    """Begin a run with the settings of `score`, and return it without rows."""
    run, begun = RunDirectory.open(str(out)), resolve(ScoreConfig(**settings))
    spec = begun.spec(0)
    run.claim(begun.facts(spec), list(spec.cards), spec.ensemble.model_dump(mode="json"))
    return run


def comparable(row):
    """Return a row without the columns that differ between two runs over the same bytes."""
    return {
        name: value
        for name, value in row.items()
        if name not in ("image_id", "uri", "attempt", "scored_at")
    }


def files_below(folder):
    """Return the paths of all files in a folder and its subfolders, sorted."""
    return sorted(os.path.join(root, name) for root, _, names in os.walk(folder) for name in names)


def start(source, out, *settings, modules=()):
    """Start `touchstone score` of a source with settings, as `run_score` does; `modules`: folders
    that it imports from.
    """
    words = ["--out", out]
    if not any(setting.startswith("detectors=") for setting in settings):
        words += ["--ensemble", "tiny"]
    words += [word for setting in settings or ["block_members=32"] for word in ("--set", setting)]
    return run_score(source, *words, modules=modules)


def run_score(*words, modules=(), environment=None):
    """Start `touchstone score` with these words in a session of its own."""
    command = [sys.executable, "-m", "ray_app.cli", "score", *words]
    paths = {"PYTHONPATH": os.pathsep.join(map(str, [*modules, ROOT]))}
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | paths | (environment or {}),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def await_parts(run, process, count):
    """Wait until a command has committed so many blocks of the first manifest."""
    wait_until(lambda: len(run.parts(0)) >= count or process.poll() is not None)
    assert process.poll() is None, process.stderr.read()
