"""`ray job submit` on a real head: a job that succeeds, one that fails, one that is stopped, and
the size of what is uploaded.
"""

import json
import re
import subprocess
import zipfile

import pytest

from benchmarks.photographs import write_photographs
from benchmarks.seeded import seeded_card, write_card
from ray_app.runs import RunDirectory
from tests.make.leases import is_released
from tests.make.ray_head import BIN, ray_head
from tests.make.runs import ROOT, files_below, rows_of
from tests.make.waiting import wait_until

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def head():
    with ray_head() as running:
        yield running.environment


SCORE = ("--working-dir", ".", "--", "python", "jobs/score.py")
LAPTOP = ("--config", "configs/score/laptop.yaml", "--ensemble", "tiny")


def submit(environment, *arguments, options=()):
    return job(environment, "submit", *options, *SCORE, *arguments)


def job(environment, *words):
    """What `ray job` answers."""
    command = [BIN / "ray", "job", *map(str, words)]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_submitted_job_scores_and_a_failing_one_reports_why(head, archive, tmp_path):
    out = tmp_path / "run"
    done = submit(head, *LAPTOP, archive, "--out", out)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "succeeded" in done.stdout
    assert len(rows_of(out)) == len(files_below(archive))

    failed = submit(head, *LAPTOP, tmp_path / "nowhere", "--out", tmp_path / "other")
    printed = failed.stdout + failed.stderr
    assert failed.returncode == 1
    for words in ("failed", "nowhere", "exit code 2"):
        assert words in printed


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_stopped_job_ends_in_time_and_resumes(head, tmp_path):
    write_photographs(tmp_path / "photos", 48, size=(320, 320))
    seeded, out = seeded_card("community-forensics-vits384", tmp_path), tmp_path / "run"
    card = write_card(seeded, tmp_path / "card.yaml")
    settings = [f"detectors=[{card}]", "block_members=4", "batch_slots=4", "cluster.workers=1"]
    words = [word for setting in settings for word in ("--set", setting)]
    command = [tmp_path / "photos", "--out", out, *words]
    run = RunDirectory.open(str(out))
    environment = json.dumps({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "20"}})
    options = ["--no-wait", "--submission-id", "stopped", "--runtime-env-json", environment]
    submitted = submit(head, *command, options=options)
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    wait_until(lambda: run.exists() and run.parts(0))
    assert "was stopped" in job(head, "stop", "stopped").stdout
    said = job(head, "logs", "stopped").stdout
    assert run.read_json("sessions/00001.json")["state"] == "interrupted", said[-2000:]
    assert is_released(run.store)
    # 17 s from the signal on; it is said up to a second or two later, with what is left then.
    message = r"has 1[4-7] s to be committed \(Ray kills a job 20 s after its stop"
    assert re.search(message, said), said
    assert "resume: " in said

    done = submit(head, *command)
    assert done.returncode == 0, done.stdout[-3000:]
    assert len(rows_of(out)) == 48


def test_uploaded_package_is_small(tmp_path):
    from ray._private.runtime_env.packaging import create_package

    package = tmp_path / "package.zip"
    create_package(str(ROOT), package, include_gitignore=True)
    files = zipfile.ZipFile(package).infolist()
    # The three shipped backbones are 59 MB of it. Ray refuses more than 512 MiB.
    assert package.stat().st_size < 75 * 2**20, sorted(
        (file.compress_size, file.filename) for file in files
    )[-5:]
    names = [file.filename for file in files]
    assert "jobs/score.py" in names
    assert not [name for name in names if name.startswith((".git/", ".venv/", "docs/", "tests/"))]
