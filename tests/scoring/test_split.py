"""The split layout, on a local cluster of several nodes with logical GPUs that come late (specs/ray.md §F9)."""

import json
import os
import subprocess
import sys

import pytest
import yaml

from benchmarks.seeded import seeded_card
from ray_app.datasets.simulation.archive import write_photographs
from tests.scoring.conftest import ROOT, rows_of

pytestmark = pytest.mark.ray


def run_late_gpus(source, out, detector):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.scoring.late_gpus", str(source), str(out), str(detector)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=600)
    assert done.stdout.strip(), done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.timeout(600)
def test_gpu_nodes_that_come_late_are_both_used_and_nothing_spills(tmp_path):
    source, out = tmp_path / "photos", tmp_path / "run"
    write_photographs(source, 256, size=(320, 320))
    told = run_late_gpus(source, out, "touchstone-tiny")
    assert told["returncode"] == 0, told["errors"]
    assert told["scorer_nodes"] == 2
    assert not told["spilled"], told["last"]
    rows = rows_of(out)
    assert len(rows) == 256
    assert {row["status"] for row in rows.values()} == {"ok"}
    session = json.loads((out / "summary.json").read_text())["session"]
    assert (session["layout"], session["workers"]) == ("split", 3)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_scorer_far_slower_than_its_decoders_spills_nothing(tmp_path):
    card = seeded_card("community-forensics-vits384", tmp_path)
    path = tmp_path / "card.yaml"
    path.write_text(yaml.safe_dump(card.model_dump(mode="json", exclude_none=True)))
    source, out = tmp_path / "photos", tmp_path / "run"
    write_photographs(source, 384, size=(320, 320))
    told = run_late_gpus(source, out, path)
    assert told["returncode"] == 0, told["errors"]
    assert not told["spilled"], told["last"]
    # 384 prepared tensors of 432 KiB are 162 MiB; a bounded pipeline holds a few blocks of 16 at a time.
    assert told["most_bytes"] < 100 * 2**20
    assert len(rows_of(out)) == 384
