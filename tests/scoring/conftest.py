"""Small archives, runs over them, and ways to look at a finished run."""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from benchmarks.photographs import write_photographs
from ray_app.config import config_root
from ray_app.runs import RunDirectory, current_rows
from ray_app.scoring import ScoreConfig
from ray_app.scoring.identity import resolve
from ray_app.scoring.run import score_archive
from ray_app.storage import Store
from tests.images.factory import encoded, photo
from tests.scoring.stages import of_tiny, without_ray
from tests.simulation.archive import build_sample_archive

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def sample_archive(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sample") / "archive"
    build_sample_archive(folder, files=14)
    return folder


def write_many(folder, images):
    """So many files, cheap to make: 60 photographs, each under several names."""
    write_photographs(folder, 60, size=(640, 480))
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        for copy in range(1, images // 60):
            shutil.copy(path, path.with_stem(f"{path.stem}-{copy}"))
    return folder


def fill_bucket(bucket, count):
    """Write different small JPEG files, cheap to make, below `photos`."""
    base, store = photo(256, 192), Store.open(f"{bucket}/photos")
    for index in range(count):
        image = base.rotate(0, translate=(index % 61, index // 61 % 53))
        image.putpixel((index % 256, index // 256), (index % 256, 0, 0))
        data = encoded(image, "JPEG", quality=80 + index % 15)
        store.write(f"{index % 7}/{index:05d}.jpg", data)


def write_photo(path, seed, size=(320, 240)):
    path.write_bytes(encoded(photo(*size, seed), "JPEG"))


@pytest.fixture
def archive(sample_archive, tmp_path):
    """A copy that a test may change."""
    return Path(shutil.copytree(sample_archive, tmp_path / "archive"))


@pytest.fixture
def score(tmp_path):
    """Score a source into a run directory and return (finished, rows by path); the stages in this
    process.
    """

    def run(source, out=None, **settings):
        return score_here(out or tmp_path / "run", source, **settings)

    return run


@pytest.fixture
def score_on_ray(ray_cluster, tmp_path):
    """The same, on a real local Ray."""

    def run(source, out=None, **settings):
        return score_into(out or tmp_path / "run", source, **settings)

    return run


def score_here(out, source, **settings):
    """The same without Ray: the stages one after another in this process."""
    with without_ray():
        return score_into(out, source, **settings)


def score_into(out, source, **settings):
    """The finished run, and its rows by path; its report has no pictures, which would be read from
    the archive again.
    """
    settings = {"block_members": 8, "thumbnails": False} | of_tiny(settings)
    return score_archive(ScoreConfig(source=(str(source),), out=str(out), **settings)), rows_of(out)


def rows_of(out, **options):
    rows = list(current_rows(RunDirectory.open(str(out)), **options))
    by_uri = {row["uri"]: row for row in rows}
    assert len(by_uri) == len(rows)
    return by_uri


def write_ensemble(path, detectors=("touchstone-tiny",), **facts):
    """The path of an ensemble's card with these members, named as its file; `facts`: what else
    stands in it.
    """
    members = [{"detector": str(detector)} for detector in detectors]
    path.write_text(
        yaml.safe_dump({"name": path.stem, "title": path.stem, "members": members, **facts})
    )
    return path


def write_tiny(path, **changes):
    """The path of a copy of the shipped detector's card, with these changes."""
    shipped = config_root() / "detectors" / "touchstone-tiny.yaml"
    card = yaml.safe_load(shipped.read_text())
    card["weights"]["uri"] = str(shipped.with_name(card["weights"]["uri"]))
    path.write_text(yaml.safe_dump(card | changes))
    return path


def begin(out, **settings):
    """A run without rows, which has the settings of such a command."""
    run, begun = RunDirectory.open(str(out)), resolve(ScoreConfig(**settings))
    spec = begun.spec(0)
    run.claim(begun.facts(spec), list(spec.cards), spec.ensemble.model_dump(mode="json"))
    return run


def write_points(path):
    """The path of a card whose thresholds state 1 %, and that has a point for 10 % which flags
    everything.
    """
    point = {"rate": 0.1, "threshold": -50.0, "false_positive_rate": 0.09}
    point |= {"upper_bound": 0.12, "recall": 0.9}
    return write_ensemble(
        path,
        thresholds={"real_below": -1.43, "fake_above": 50.0, "target_fpr": 0.01},
        operating_points=[point],
    )


def comparable(row):
    """A row without what differs between two runs over the same bytes."""
    return {
        name: value
        for name, value in row.items()
        if name not in ("image_id", "uri", "attempt", "scored_at")
    }


def files_below(folder):
    return sorted(os.path.join(root, name) for root, _, names in os.walk(folder) for name in names)


def start(source, out, *settings, modules=()):
    """Start `touchstone score` in a session of its own; `modules`: folders that it imports from."""
    words = ["--out", out]
    if not any(setting.startswith("detectors=") for setting in settings):
        words += ["--ensemble", "tiny"]
    words += [word for setting in settings or ["block_members=32"] for word in ("--set", setting)]
    return run_score(source, *words, modules=modules)


def run_score(*words, modules=(), environment=None):
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


def wait_until(condition, timeout_s=180.0):
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.05)
    return found


def await_parts(run, process, count):
    """Wait until a command has committed so many blocks of the first manifest."""
    wait_until(lambda: len(run.parts(0)) >= count or process.poll() is not None)
    assert process.poll() is None, process.stderr.read()


def family_of(pid):
    """A process and all its descendants."""
    family, parents = [pid], {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                parents.setdefault(parent, []).append(int(entry.name))
    for member in family:
        family += parents.get(member, [])
    return family


def kill_family(process):
    for pid in family_of(process.pid):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
