"""Thousands of hostile files through one worker: memory stays what it was."""

import json
import os
import subprocess
import sys

import pytest

from ray_app.cluster.local_ray import WORKER_ENVIRONMENT
from tests.make import images
from tests.make.flips import flipped
from tests.make.runs import ROOT

GOOD, HOSTILE = 256, 5_000
MOST_MIB = 50


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_hostile_files_leave_no_memory_in_a_worker(tmp_path):
    """All that the factory refuses, header flips of all that it lets in, and before them each good
    and odd file once or more.
    """
    good, hostile = tmp_path / "good", tmp_path / "hostile"
    for folder in (good, hostile):
        folder.mkdir()
    sound = [make() for _, make in [*images.SOUND.values(), *images.ODD.values()]]
    for number in range(GOOD):
        (good / f"{number:05}").write_bytes(sound[number % len(sound)])
    refused = [make() for _, make in images.REFUSED.values()]
    for number in range(HOSTILE):
        data = refused[number // 50 % len(refused)] if number % 50 == 0 else flipped(number)[1]
        (hostile / f"{number:05}").write_bytes(data)
    worker = [sys.executable, "-m", "tests.scoring.hostile_worker"]
    command = [*worker, str(good), str(hostile), str(tmp_path / "run")]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | WORKER_ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=850,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    print(f"worker: {found}")
    assert (found["members"], found["failures"]) == (HOSTILE, 0)
    assert found["after"] - found["before"] <= MOST_MIB
    assert found["peak"] <= found["budget"]
