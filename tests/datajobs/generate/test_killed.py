"""Sixty-four images, killed with SIGKILL in the middle of a block and of a file, and run again: in
one process, and by a pool on Ray.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from ray_app.datajobs.generate import GenerateConfig
from ray_app.datajobs.generate.requests import cut_blocks, make_requests, read_prompts
from ray_app.datajobs.generate.run import generate_images, resolve_card
from ray_app.storage import Store
from tests.datajobs.generate.cards import job, write_prompts
from tests.make.ray_head import pool_workers
from tests.make.waiting import kill_family, wait_until

ROOT = Path(__file__).resolve().parents[3]
NEVER_NULL = (
    "uri", "label", "generator", "prompt", "prompt_id", "index", "seed", "pipeline", "model", "revision", "diffusers",
    "precision", "steps", "guidance", "generated_width", "generated_height", "width", "height", "format", "sha256", "blanked", "status",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_process_resumes_and_makes_each_image_once(sd3, tmp_path):
    prompts = write_prompts(tmp_path / "prompts.txt", 64)
    config = job(sd3, prompts, tmp_path / "out", steps=1, block_images=8)
    command = [sys.executable, "-m", "tests.datajobs.generate.test_killed"]
    command += [config.model_dump_json(), _a_file_in_the_middle(config)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    out = tmp_path / "out"
    committed = {
        row["uri"]
        for part in sorted((out / "parts").iterdir())
        for row in pq.read_table(part).to_pylist()
    }
    before = {path: path.stat().st_mtime_ns for path in (out / "images").iterdir()}
    assert 8 <= len(committed) < 64
    assert len(before) > len(committed)  # some of the block that was under way

    summary = generate_images(config)
    rows = pq.read_table(out / "generated.parquet").to_pylist()
    assert sorted(row["index"] for row in rows) == list(range(64))
    assert len({row["seed"] for row in rows}) == summary["made"] == 64
    assert {path.relative_to(out).as_posix() for path in (out / "images").iterdir()} == {
        row["uri"] for row in rows
    }
    assert all(before[out / uri] == (out / uri).stat().st_mtime_ns for uri in committed), (
        "a committed image was made again"
    )
    assert all(
        hashlib.sha256((out / row["uri"]).read_bytes()).hexdigest() == row["sha256"] for row in rows
    )
    assert not [name for name in NEVER_NULL if any(row[name] is None for row in rows)]
    again = config.model_copy(update={"out": str(tmp_path / "whole"), "batch": 3})
    generate_images(again)
    whole = {
        row["index"]: row for row in pq.read_table(tmp_path / "whole/generated.parquet").to_pylist()
    }
    assert all(whole[row["index"]]["seed"] == row["seed"] for row in rows)


def _a_file_in_the_middle(config):
    """The third image of the fourth block."""
    prompts = read_prompts(config, images=False)
    orders = make_requests(
        prompts, per_prompt=1, base_seed=0, sizes=resolve_card(config).sizes, encoding=config.encode
    )
    return cut_blocks(orders, config.block_images)[3].requests[2].image_path


def _on_ray(card, prompts, out):
    command = [sys.executable, ROOT / "jobs/generate.py", card, "--prompts", prompts, "--out", out]
    cluster = ("cluster.workers=2", "cluster.cpus=2")
    for setting in ("device=cpu", "block_images=4", "steps=1", *cluster):
        command += ["--set", setting]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, cwd=ROOT, start_new_session=True, stdout=pipe, stderr=pipe, text=True
    )


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(1500)
def test_killed_pool_and_worker_make_each_image_once(sd3, tmp_path):
    prompts, out = write_prompts(tmp_path / "prompts.txt", 64), tmp_path / "out"
    first, parts = _on_ray(sd3, prompts, out), out / "parts"
    wait_until(lambda: len(list(parts.glob("*.parquet"))) > 1 or first.poll() is not None, 600)
    assert first.poll() is None, first.stderr.read()
    kill_family(first)
    committed = {path: path.stat().st_mtime_ns for path in parts.glob("*.parquet")}
    assert 1 < len(committed) < 16
    second = _on_ray(sd3, prompts, out)
    wait_until(
        lambda: len(list(parts.glob("*.parquet"))) > len(committed) or second.poll() is not None,
        600,
    )
    os.kill(pool_workers(second)[0], signal.SIGKILL)
    said, errors = second.communicate(timeout=900)
    assert second.returncode == 0, errors
    assert "64 of 64 images" in said
    assert all(path.stat().st_mtime_ns == when for path, when in committed.items())
    rows = pq.read_table(out / "generated.parquet").to_pylist()
    assert sorted(row["index"] for row in rows) == list(range(64))
    assert len({row["seed"] for row in rows}) == 64


def _die_at(victim, write=Store.write):
    """As a machine that is switched off, when it is about to write that file."""

    def deadly(self, path, data):
        if path == victim:
            os.kill(os.getpid(), signal.SIGKILL)
        write(self, path, data)

    Store.write = deadly


if __name__ == "__main__":
    _die_at(sys.argv[2])
    generate_images(GenerateConfig.model_validate(json.loads(sys.argv[1])))
