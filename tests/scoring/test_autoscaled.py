"""A cluster that has no node but its head until somebody asks for some, on Ray's fake autoscaler: whole nodes, on this machine.

What is asked for comes at once, is the sum of what all runs ask, and goes when they have ended, also those that were killed.
"""

import json
import subprocess
import sys
from contextlib import contextmanager

import pytest
from ray._private.ray_constants import AUTOSCALER_RESOURCE_REQUEST_CHANNEL
from ray._raylet import GcsClient

from ray_app.datasets.simulation.archive import write_photographs
from tests.ray_head import ray_head
from tests.scoring.conftest import ROOT, rows_of, start, wait_until

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.ci, pytest.mark.timeout(600)]

NODE = {"resources": {"CPU": 1, "object_store_memory": 80 * 2**20}, "max_workers": 4}
# Joins, asks for so many cores, says so, and leaves when its standard input ends.
ASKING = """
import sys
from ray_app.cluster.config import ClusterConfig
from ray_app.cluster.ray_cluster import cluster, resources
config = ClusterConfig(address=sys.argv[1], cpus=int(sys.argv[2]) or None)
with cluster(config):
    resources(config)
    print("asked", flush=True)
    sys.stdin.read()
"""


class Autoscaled:
    """Such a cluster, looked at without joining it."""

    def __init__(self, head):
        self.environment, self.address, self._gcs = head.environment, head.gcs, GcsClient(address=head.gcs)

    def nodes(self):
        """The living nodes beside the head."""
        return sum(node.state == 0 and not node.is_head_node for node in self._gcs.get_all_node_info().values())

    def requested(self):
        """The cores that Ray was last asked for; None where nobody has asked yet."""
        found = self._gcs.internal_kv_get(AUTOSCALER_RESOURCE_REQUEST_CHANNEL, None)
        return None if found is None else sum(bundle["CPU"] for bundle in json.loads(found))

    @contextmanager
    def run(self, cpus):
        """A driver that asks for so many cores until it is told to end, or killed."""
        command = [sys.executable, "-c", ASKING, self.address, str(cpus)]
        with subprocess.Popen(command, cwd=ROOT, env=self.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout.readline() == "asked\n"
                yield process
            finally:
                process.stdin.close()
                process.wait(60)


@pytest.fixture
def autoscaled():
    """One for each test: what Ray Data leaves on a cluster replaces the request every 20 s."""
    with ray_head(0, node_types={"cpu": NODE}) as head:
        yield Autoscaled(head)


def test_a_run_takes_the_cluster_from_zero_to_four_nodes_and_back_to_zero(autoscaled, tmp_path):
    write_photographs(tmp_path / "photos", 48, size=(320, 320))
    assert (autoscaled.nodes(), autoscaled.requested()) == (0, None)
    seen = []
    process = start(
        str(tmp_path / "photos"), str(tmp_path / "run"), "block_members=4", "cluster.cpus=4", f"cluster.address={autoscaled.address}"
    )
    while process.poll() is None:
        seen.append((autoscaled.nodes(), autoscaled.requested()))
        wait_until(lambda: process.poll() is not None or (autoscaled.nodes(), autoscaled.requested()) != seen[-1])
    assert process.returncode == 0, process.stderr.read()[-3000:]
    assert max(nodes for nodes, _ in seen) >= 4, seen  # more where one that the autoscaler has ended is not known to be dead yet
    assert 4 in {requested for _, requested in seen}, seen
    assert autoscaled.requested() == 0
    assert len(rows_of(tmp_path / "run")) == sum(path.is_file() for path in (tmp_path / "photos").rglob("*"))
    wait_until(lambda: autoscaled.nodes() == 0, 60)


def test_two_runs_ask_for_their_sum_and_a_killed_one_for_nothing_once_another_ends(autoscaled):
    with autoscaled.run(1):
        assert autoscaled.requested() == 1
        with autoscaled.run(2) as killed:
            assert autoscaled.requested() == 3
            killed.kill()
            killed.wait()
        wait_until(lambda: autoscaled.nodes() == 3, 60)
        assert autoscaled.requested() == 3, "nobody is there to take it back"
        with autoscaled.run(0):
            pass
        assert autoscaled.requested() == 1
    assert autoscaled.requested() == 0
    wait_until(lambda: autoscaled.nodes() == 0, 60)
