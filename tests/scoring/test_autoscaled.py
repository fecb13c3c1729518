"""A cluster that has no node but its head until a run asks for some, on Ray's fake autoscaler:
whole nodes, on this machine.
"""

import pytest
from ray._raylet import GcsClient

from benchmarks.photographs import write_photographs
from tests.make.ray_head import ray_head
from tests.make.runs import rows_of, start
from tests.make.waiting import wait_until

NODE = {"resources": {"CPU": 1, "object_store_memory": 80 * 2**20}, "max_workers": 4}


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_run_scales_a_cluster_to_four_nodes_and_back(tmp_path):
    write_photographs(tmp_path / "photos", 48, size=(320, 320))
    with ray_head(0, node_types={"cpu": NODE}) as head:
        gcs, seen = GcsClient(address=head.gcs), []

        def nodes():
            """The living nodes beside the head."""
            found = gcs.get_all_node_info().values()
            return sum(node.state == 0 and not node.is_head_node for node in found)

        assert nodes() == 0
        settings = ("block_members=4", "cluster.cpus=4", f"cluster.address={head.gcs}")
        process = start(str(tmp_path / "photos"), str(tmp_path / "run"), *settings)
        while process.poll() is None:
            seen.append(nodes())
            wait_until(lambda: process.poll() is not None or nodes() != seen[-1])
        assert process.returncode == 0, process.stderr.read()[-3000:]
        # more where one that the autoscaler has ended is not known to be dead yet
        assert max(seen) >= 4, seen
        assert len(rows_of(tmp_path / "run")) == 48
        wait_until(lambda: nodes() == 0, 60)
