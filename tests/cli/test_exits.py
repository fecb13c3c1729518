"""Many runs of `touchstone score` on Parquet end with exit code 0, although threads of Arrow outlive
the command (https://github.com/apache/arrow/issues/34314).
"""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_app.serving.engine import golden_image
from tests.make.ray_head import ray_head
from tests.make.runs import ROOT

RUNS = 200


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(3600)
def test_200_runs_on_parquet_end_with_exit_code_0(tmp_path):
    image = {"bytes": golden_image(), "path": "a.png"}
    pq.write_table(pa.table({"image": [image] * 4}), tmp_path / "archive.parquet")
    command = [sys.executable, "-m", "ray_app.cli", "score", str(tmp_path / "archive.parquet")]
    command += ["--ensemble", "tiny", "--set", "cluster.cpus=1"]
    with ExitStack() as stack:
        head = stack.enter_context(ray_head(cpus=4))
        environment = head.environment | {"RAY_ADDRESS": head.gcs, "PYTHONPATH": str(ROOT)}

        def score(number):
            run = subprocess.run(
                [*command, "--out", str(tmp_path / f"run-{number}")],
                env=environment,
                capture_output=True,
                text=True,
                timeout=120,
            )
            return run.returncode, "" if run.returncode == 0 else run.stderr

        ends = stack.enter_context(ThreadPoolExecutor(2)).map(score, range(RUNS))
        assert [end for end in ends if end != (0, "")] == []
