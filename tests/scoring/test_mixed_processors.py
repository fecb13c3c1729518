"""A run on processors of both kinds: its scores are those of its own precision, and a node that has
to emulate that is named.
"""

import platform
import shutil
import subprocess
import sys

import pytest

from ray_app.detectors.cpu import CPU_PRECISION_VARIABLE
from tests.groups import ROOT
from tests.make.runs import rows_of, score_here

OTHER = {"bf16": "fp32", "fp32": "bf16"}
SLOW = f"{platform.node()} is slow: its processor has no bf16"


@pytest.fixture(scope="module")
def expected(sample_archive, tmp_path_factory):
    """Scores of every file in both precisions, made where the whole machine computes in it."""
    found = {}
    for precision in OTHER:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(CPU_PRECISION_VARIABLE, precision)
            out = tmp_path_factory.mktemp(precision) / "run"
            found[precision] = scores_of(score_here(out, sample_archive)[1])
    assert found["bf16"] != found["fp32"]
    return found


def scores_of(rows):
    return {path: row["scores"] for path, row in rows.items()}


@pytest.mark.parametrize("begun", OTHER)
def test_run_continued_elsewhere_keeps_its_precision(
    sample_archive, expected, tmp_path, monkeypatch, begun
):
    monkeypatch.setenv(CPU_PRECISION_VARIABLE, begun)
    score_here(tmp_path / "run", sample_archive)
    for folder in ("scores", "summaries"):
        shutil.rmtree(tmp_path / "run" / folder)
    (tmp_path / "run" / "summary.json").unlink()
    monkeypatch.setenv(CPU_PRECISION_VARIABLE, OTHER[begun])
    _, rows = score_here(tmp_path / "run", sample_archive)
    assert scores_of(rows) == expected[begun]


@pytest.mark.parametrize("driver", OTHER)
def test_other_nodes_score_in_the_drivers_precision(
    sample_archive, expected, tmp_path, monkeypatch, capsys, driver
):
    monkeypatch.setenv(CPU_PRECISION_VARIABLE, driver)
    monkeypatch.setattr("ray_app.scoring.stages.cpu_precision", lambda: OTHER[driver])
    _, rows = score_here(tmp_path / "run", sample_archive)
    assert scores_of(rows) == expected[driver]
    assert capsys.readouterr().err.count(SLOW) == (driver == "bf16")


_ON_A_RAY_OF_ITS_OWN = """
import os, sys
from pathlib import Path
from ray_app.cluster.config import ClusterConfig
from ray_app.cluster.ray_cluster import cluster
from ray_app.detectors.cpu import CPU_PRECISION_VARIABLE
from tests.make.runs import score_into

os.environ[CPU_PRECISION_VARIABLE] = "fp32"  # Workers inherit it.
with cluster(ClusterConfig(cpus=2)):
    os.environ[CPU_PRECISION_VARIABLE] = "bf16"
    score_into(Path(sys.argv[1]), Path(sys.argv[2]))
"""


@pytest.mark.slow
@pytest.mark.ray
def test_node_of_ray_without_bf16_is_named(sample_archive, expected, tmp_path):
    command = [sys.executable, "-c", _ON_A_RAY_OF_ITS_OWN, tmp_path / "run", sample_archive]
    scored = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert scores_of(rows_of(tmp_path / "run")) == expected["bf16"]
    assert scored.stderr.count(SLOW) == 1
