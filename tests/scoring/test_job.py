"""`ray job submit` on a real head: a job that succeeds, one that fails, one that is stopped, and
the size of what is uploaded.
"""

import json
import re
import subprocess
import zipfile
from pathlib import Path

import pytest
import yaml

from benchmarks.photographs import write_photographs
from benchmarks.seeded import seeded_card
from ray_app.runs import RunDirectory
from tests.ray_head import BIN, ray_head
from tests.scoring.conftest import ROOT, rows_of, wait_until
from tests.storage.leases import is_released

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def head():
    with ray_head() as running:
        yield running.environment


def submit(environment, *arguments, options=()):
    return job(
        environment,
        "submit",
        *options,
        "--working-dir",
        ".",
        "--",
        "python",
        "jobs/score.py",
        *arguments,
    )


def job(environment, *words):
    """What `ray job` answers."""
    command = [BIN / "ray", "job", *map(str, words)]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_submitted_job_scores_and_a_failing_one_says_what_to_do(head, archive, tmp_path):
    out = tmp_path / "run"
    done = submit(
        head, "--config", "configs/score/laptop.yaml", "--ensemble", "tiny", archive, "--out", out
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "succeeded" in done.stdout
    assert len(rows_of(out)) == len(
        list(path for path in Path(archive).rglob("*") if path.is_file())
    )

    failed = submit(
        head,
        "--config",
        "configs/score/laptop.yaml",
        "--ensemble",
        "tiny",
        tmp_path / "nowhere",
        "--out",
        tmp_path / "other",
    )
    assert failed.returncode == 1
    assert "failed" in failed.stdout + failed.stderr
    assert "nowhere" in failed.stdout
    assert "exit code 2" in failed.stdout + failed.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_stopped_job_ends_within_the_time_it_was_told_and_goes_on_when_submitted_again(
    head, tmp_path
):
    write_photographs(tmp_path / "photos", 48, size=(320, 320))
    card, out = tmp_path / "card.yaml", tmp_path / "run"
    card.write_text(
        yaml.safe_dump(
            seeded_card("community-forensics-vits384", tmp_path).model_dump(
                mode="json", exclude_none=True
            )
        )
    )
    settings = [f"detectors=[{card}]", "block_members=4", "batch_slots=4", "cluster.workers=1"]
    command = [
        tmp_path / "photos",
        "--out",
        out,
        *(word for setting in settings for word in ("--set", setting)),
    ]
    run = RunDirectory.open(str(out))
    environment = json.dumps({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "20"}})
    submitted = submit(
        head,
        *command,
        options=["--no-wait", "--submission-id", "stopped", "--runtime-env-json", environment],
    )
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    wait_until(lambda: run.exists() and run.parts(0))
    assert "was stopped" in job(head, "stop", "stopped").stdout
    said = job(head, "logs", "stopped").stdout
    assert run.read_json("sessions/00001.json")["state"] == "interrupted", said[-2000:]
    assert is_released(run.store)
    # 17 s from the signal on; it is said up to a second or two later, with what is left then.
    assert re.search(
        r"has 1[4-7] s to be committed \(Ray kills a job 20 s after its stop: RAY_JOB_STOP_WAIT_TIME_S\)",
        said,
    ), said
    assert "resume: " in said

    done = submit(head, *command)
    assert done.returncode == 0, done.stdout[-3000:]
    assert len(rows_of(out)) == 48


def test_what_is_uploaded_is_small(tmp_path):
    from ray._private.runtime_env.packaging import create_package

    package = tmp_path / "package.zip"
    create_package(str(ROOT), package, include_gitignore=True)
    files = zipfile.ZipFile(package).infolist()
    # The two shipped backbones are 13.4 MB of it.
    assert package.stat().st_size < 20 * 2**20, sorted(
        (file.compress_size, file.filename) for file in files
    )[-5:]
    names = [file.filename for file in files]
    assert "jobs/score.py" in names
    assert not [name for name in names if name.startswith((".git/", ".venv/", "docs/", "tests/"))]
