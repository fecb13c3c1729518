"""The split layout, on a local cluster of several nodes with logical GPUs that come late."""

import json
import os
import subprocess
import sys

import pytest

from ray_app.datasets.simulation.archive import write_photographs
from tests.scoring.conftest import ROOT, rows_of

IMAGES = 192


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.timeout(600)
def test_gpu_nodes_that_come_late_are_both_used_and_nothing_spills(tmp_path):
    source, out = tmp_path / "photos", tmp_path / "run"
    write_photographs(source, IMAGES, size=(320, 320))
    command = [sys.executable, "-m", "tests.scoring.late_gpus", str(source), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=500)
    assert done.stdout.strip(), done.stderr[-3000:]
    told = json.loads(done.stdout.strip().splitlines()[-1])
    assert told["returncode"] == 0, told["errors"]
    assert told["scorer_nodes"] == 2
    assert not told["spilled"], told["last"]
    rows = rows_of(out)
    assert len(rows) == IMAGES
    assert {row["status"] for row in rows.values()} == {"ok"}
    session = json.loads((out / "summary.json").read_text())["session"]
    assert (session["layout"], session["workers"]) == ("split", 3)
