"""`ray job submit` on a real head: a job that succeeds, one that fails, and the size of what is uploaded."""

import subprocess
import zipfile
from pathlib import Path

import pytest

from tests.ray_head import BIN, ray_head
from tests.scoring.conftest import ROOT, rows_of

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def head():
    with ray_head() as running:
        yield running.environment


def submit(environment, *arguments):
    command = [BIN / "ray", "job", "submit", "--working-dir", ".", "--", "python", "jobs/score.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.timeout(900)
def test_a_submitted_job_scores_and_a_failing_one_says_what_to_do(head, archive, tmp_path):
    out = tmp_path / "run"
    done = submit(head, "--config", "configs/score/laptop.yaml", "--ensemble", "tiny", archive, "--out", out)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "succeeded" in done.stdout
    assert len(rows_of(out)) == len(list(path for path in Path(archive).rglob("*") if path.is_file()))

    failed = submit(head, "--config", "configs/score/laptop.yaml", "--ensemble", "tiny", tmp_path / "nowhere", "--out", tmp_path / "other")
    assert failed.returncode == 1
    assert "failed" in failed.stdout + failed.stderr
    assert "nowhere" in failed.stdout
    assert "exit code 2" in failed.stdout + failed.stderr


def test_what_is_uploaded_is_small(tmp_path):
    from ray._private.runtime_env.packaging import create_package

    package = tmp_path / "package.zip"
    create_package(str(ROOT), package, include_gitignore=True)
    files = zipfile.ZipFile(package).infolist()
    # The weights of the default ensemble are 6.7 MB of it.
    assert package.stat().st_size < 20 * 2**20, sorted((file.compress_size, file.filename) for file in files)[-5:]
    names = [file.filename for file in files]
    assert "jobs/score.py" in names
    assert not [name for name in names if name.startswith((".git/", ".venv/"))]
