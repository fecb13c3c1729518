"""The same batches for any number of workers and loaders; none is decoded where networks learn."""

import json
import os
import subprocess
import sys

import pytest

from tests.training.trainings import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(400)]


def test_decoders_on_another_node_give_trainers_their_batches(labelled, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "tests.training.decoders_apart", str(labelled), str(tmp_path)]
    done = subprocess.run(
        words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=380, check=False
    )
    assert not done.returncode, done.stderr
    alone, one, first, second = (
        json.loads((tmp_path / f"{name}.json").read_text()) for name in ("alone", "one", "0", "1")
    )
    assert len(alone["steps"]) > 20
    assert one["steps"] == alone["steps"]
    assert [
        [*ours, *theirs] for ours, theirs in zip(first["steps"], second["steps"], strict=True)
    ] == alone["steps"]
    assert len({tuple(step[0]) for step in alone["steps"]}) > 1
    assert first["decoded"] == second["decoded"] == 0
    assert first["node"] != second["node"]
