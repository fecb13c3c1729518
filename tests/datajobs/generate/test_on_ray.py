"""The same by actors of Ray, the whole family killed after the first commits."""

import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.datajobs.generate.cards import write_prompts
from tests.scoring.conftest import kill_family, wait_until

ROOT = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.ray


def start(card, prompts, out):
    command = [sys.executable, ROOT / "jobs/generate.py", card, "--prompts", prompts, "--out", out]
    for setting in ("device=cpu", "cluster.workers=2", "cluster.cpus=2", "block_images=4", "steps=1"):
        command += ["--set", setting]
    return subprocess.Popen(command, cwd=ROOT, start_new_session=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_killed_actors_make_every_image_once(sd3, tmp_path):
    prompts, out = write_prompts(tmp_path / "prompts.txt", 64), tmp_path / "out"
    first, parts = start(sd3, prompts, out), out / "parts"
    wait_until(lambda: (parts.is_dir() and len(list(parts.glob("*.parquet"))) > 1) or first.poll() is not None, 600)
    assert first.poll() is None, first.stderr.read()
    kill_family(first)
    committed = {path: path.stat().st_mtime_ns for path in parts.glob("*.parquet")}
    assert 1 < len(committed) < 16
    second = start(sd3, prompts, out)
    said, errors = second.communicate(timeout=900)
    assert second.returncode == 0, errors
    assert "64 of 64 images" in said
    assert all(path.stat().st_mtime_ns == when for path, when in committed.items())
    rows = pq.read_table(out / "generated.parquet").to_pylist()
    assert sorted(row["index"] for row in rows) == list(range(64))
    assert len({row["latents_sha256"] for row in rows}) == 64
    print(said)
