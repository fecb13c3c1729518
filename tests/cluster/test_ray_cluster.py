"""Functions as Ray tasks: results in order, exceptions whole. What a Ray of our own runs, and says."""

import json
import os
import random
import shutil
import subprocess
import sys
import time

import pytest

from ray_app.archives import BlockPlan, Portions, list_members, map_serial, open_source
from ray_app.cluster.config import ClusterConfig
from ray_app.cluster.ray_cluster import LOCAL_OBJECT_STORE_BYTES, local_store_bytes, map_on_ray
from ray_app.errors import ConfigError, TouchstoneError
from ray_app.storage import Store
from ray_app.storage.node_budget import node_memory
from tests.archives.given import files_below
from tests.make.ray_head import BIN, ray_head, without_ray_start
from tests.make.runs import ROOT

pytestmark = pytest.mark.ray


def test_tasks_return_results_in_order_from_other_processes(ray_cluster):
    def square(number):
        time.sleep(random.Random(number).random() / 50)
        return number**2, os.getpid()

    results = list(map_on_ray(square, iter(range(40))))
    assert [result for result, _ in results] == [number**2 for number in range(40)]
    assert os.getpid() not in {pid for _, pid in results}
    assert list(map_on_ray(square, [])) == []
    assert list(map_on_ray(os.nice, [0])) == [os.nice(0)], "Ray's own default is niceness 15"


def test_tasks_raise_errors_unchanged_and_bugs_with_traceback(ray_cluster):
    def fails(number):
        if number == 3:
            raise ConfigError("column 'x' holds both", hint="make its values of one type")
        return number

    results = map_on_ray(fails, range(100))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ConfigError, match="column 'x'") as caught:
        next(results)
    assert caught.value.hint == "make its values of one type"
    with pytest.raises(TouchstoneError, match=r"(?s)Traceback.*ZeroDivisionError"):
        list(map_on_ray(lambda number: 1 // number, [1, 0]))


def test_tasks_may_be_left_early_many_times(ray_cluster):
    taken = []
    # `ray.cancel` here aborted the driver within fifty rounds: a cancelled task that was just
    # ending.
    for _ in range(50):
        results = map_on_ray(str, (taken.append(number) or number for number in range(1000)))
        assert next(results) == "0"
        results.close()
    assert len(taken) < 500, "no more are taken than tasks may run"
    assert list(map_on_ray(str, range(20))) == [str(number) for number in range(20)]


def test_listing_by_tasks_writes_the_same_files(ray_cluster, tmp_path):
    sources = [tmp_path / name for name in "ab"]
    for folder in sources:
        folder.mkdir()
        for number in range(150):
            (folder / f"{number:03}.jpg").write_bytes(bytes(number))
    archive = open_source([str(folder) for folder in sources])
    portions = Portions(raw_rows=40, id_rows=40, run_rows=100, few=0)
    written, plan = [], BlockPlan(batch_slots=4, max_block_members=32)
    for each in (map_serial, map_on_ray):
        store = Store.open(str(tmp_path / each.__name__))
        list_members(store, archive, plan, each=each, portions=portions, clock=lambda: 0.0)
        written.append(files_below(store))
    assert written[0] == written[1]
    assert len(written[0]) > 10


def test_object_store_with_a_gpu_is_larger():
    assert local_store_bytes(ClusterConfig(gpus=0)) == LOCAL_OBJECT_STORE_BYTES
    assert local_store_bytes(ClusterConfig(object_store_bytes=2**28, gpus=1)) == 2**28
    shared_bytes = shutil.disk_usage("/dev/shm").free
    if min(shared_bytes, node_memory()) < 4 * 2**30:
        pytest.skip("this machine has less than 4 GiB of memory or of free shared memory")
    store_bytes = local_store_bytes(ClusterConfig(gpus=1))
    assert 2 * LOCAL_OBJECT_STORE_BYTES < store_bytes <= shared_bytes


def run_command(command, **options):
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


PAYING = """
import os, sys
from ray_app.cluster.config import ClusterConfig
from ray_app.cluster.ray_cluster import cluster, map_on_ray

with cluster(ClusterConfig()):
    print("a worker has", *map_on_ray(os.environ.get, ["AWS_REQUEST_PAYER"]), file=sys.__stdout__)
"""


@pytest.mark.slow
def test_workers_of_a_cluster_request_s3_as_their_driver(tmp_path):
    (tmp_path / "paying.py").write_text(PAYING)
    program = [sys.executable, str(tmp_path / "paying.py")]
    paying = {"AWS_REQUEST_PAYER": "requester", "PYTHONPATH": str(ROOT)}
    submit = [BIN / "ray", "job", "submit", "--runtime-env-json", json.dumps({"env_vars": paying})]
    with ray_head() as head:
        for command, more in (
            (program, {"RAY_ADDRESS": head.gcs} | paying),
            ([*submit, "--", *program], {}),
        ):
            environment = head.environment | more
            done = run_command(command, env=environment)
            assert "a worker has requester" in done.stdout, done.stdout + done.stderr


LOSING = """
import os, signal
from pathlib import Path
import ray
from ray_app.cluster.config import ClusterConfig
from ray_app.cluster.ray_cluster import cluster

class Mortal:
    def pid(self, grave):
        if not grave.exists():
            grave.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return os.getpid()

with cluster(ClusterConfig(cpus=1)):
    actor = ray.remote(max_restarts=1, max_task_retries=-1)(Mortal).remote()
    ray.get(actor.pid.remote(Path({grave!r})))
"""


@pytest.mark.slow
def test_death_of_a_worker_is_reported_on_stderr_only(tmp_path):
    done = run_command([sys.executable, "-c", LOSING.format(grave=str(tmp_path / "grave"))])
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert "died" in done.stderr


TIMED_OUT = """
import ray
from ray_app.cluster.config import ClusterConfig
from ray_app.cluster.ray_cluster import cluster
from ray_app.errors import ClusterError

start, attempts = ray.init, []

def time_out(*given, **named):
    attempts.append("timed out")
    raise Exception("The current node timed out during startup. This could happen because ...")

def time_out_once(*given, **named):
    return start(*given, **named) if attempts else time_out()

for ray.init in (time_out_once, time_out):
    attempts.clear()
    try:
        with cluster(ClusterConfig(cpus=1)):
            print("started after", len(attempts))
    except ClusterError as error:
        print("failed after", len(attempts), error.message)
"""


@pytest.mark.slow
def test_local_ray_that_timed_out_is_started_once_more():
    done = run_command([sys.executable, "-c", TIMED_OUT])
    failed = (
        "failed after 2 the local Ray did not start: The current node timed out during startup."
    )
    assert "started after 1" in done.stderr, done.stdout + done.stderr
    assert failed in done.stdout
    assert done.stderr.count("starting it again") == 2


PINNED = """
import os, sys
import ray
from ray_app.cluster.config import ClusterConfig
from ray_app.cluster.ray_cluster import cluster, map_on_ray

def seen(_):
    return sys.path[0], os.getcwd(), os.environ["TOUCHSTONE_CACHE"], os.environ.get("PYTHONPATH"), sys.flags.safe_path

here, os.environ["TOUCHSTONE_CACHE"], os.environ["PYTHONPATH"] = os.getcwd(), "cache", os.pathsep + "lib"
with cluster(ClusterConfig()):
    assert ray.cluster_resources()["CPU"] == 1, ray.cluster_resources()
    ((searched, folder, cache, path, is_safe),) = map_on_ray(seen, [None])
    assert searched == folder != here, (searched, folder)
    assert os.listdir(folder) == ["ray_app"]
    assert (cache, path, is_safe) == (os.path.join(here, "cache"), None, True)
    assert os.getcwd() == here
assert (os.environ["TOUCHSTONE_CACHE"], os.environ["PYTHONPATH"]) == ("cache", os.pathsep + "lib")
"""


@pytest.mark.slow
def test_local_ray_has_the_cores_of_its_process_and_a_folder(tmp_path):
    command = ["taskset", "-c", str(min(os.sched_getaffinity(0))), sys.executable, "-c", PINNED]
    done = run_command(command, cwd=tmp_path)
    assert (done.returncode, done.stdout, without_ray_start(done.stderr)) == (0, "", [])
