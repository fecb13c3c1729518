"""Workers that are forks of one process, on a Ray that is started for it; and agents that begin when they are needed."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.scoring.conftest import family_of, kill_family, wait_until

pytestmark = [pytest.mark.ray, pytest.mark.slow]

HOLDING = """
import os, signal, sys
import ray
from ray_app.cluster.config import ClusterConfig
from ray_app.cluster.ray_cluster import cluster

class Worker:
    def seen(self):
        import random
        import numpy
        draws = random.random(), numpy.random.random(), os.urandom(8).hex()
        parent = open(f"/proc/{os.getppid()}/cmdline").read().split(chr(0))
        return draws, "decimal" in sys.modules, os.environ["OMP_NUM_THREADS"], "--mould" in parent, os.getppid()

with cluster(ClusterConfig(cpus=2), warm=("numpy", "decimal", "ray")):
    worker = ray.remote(num_cpus=0.5)(Worker)
    first, second = ray.get([one.seen.remote() for one in (worker.remote(), worker.remote())])
    assert first[1:] == second[1:] == (True, "1", True, first[-1]), (first, second)
    assert not set(first[0]) & set(second[0])
    apart = worker.options(runtime_env={"env_vars": {"OF_ITS_OWN": "1"}}).remote()  # its agent begins
    assert ray.get(apart.seen.remote())[3] is False  # the mould has other variables, and says no
    os.kill(first[-1], signal.SIGKILL)  # the mould
    assert ray.get(worker.remote().seen.remote())[3] is False  # of Ray's own making
    print("ready", flush=True)
    sys.stdin.read()
"""


def test_workers_are_forks_that_differ_and_nothing_outlives_a_driver_that_is_killed(tmp_path):
    command = [sys.executable, "-c", HOLDING]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert process.stdout.readline() == "ready\n"
        family = [pid for pid in family_of(process.pid) if pid != process.pid]
        process.kill()
        process.wait()
        wait_until(lambda: not [pid for pid in family if Path(f"/proc/{pid}").exists()], 150)  # an agent that was asked for: a minute
    finally:
        kill_family(process)
