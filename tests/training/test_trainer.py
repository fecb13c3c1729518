"""The store of torch.distributed listens where the processes meet, and nowhere else."""

import os
import subprocess
import sys

import pytest

from tests import stranger
from tests.ray_head import free_ports

JOINING = """
import torch, torch.distributed as dist
from ray_app.training.trainer import meet_at_one_address
meet_at_one_address()
dist.init_process_group("gloo", init_method="env://")
total = torch.tensor([dist.get_rank() + 1])
dist.all_reduce(total)
print(int(total), flush=True)
input()
dist.destroy_process_group()
"""


@pytest.mark.timeout(180)
def test_two_processes_meet_on_loopback_alone():
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_ports(1)[0]), "WORLD_SIZE": "2", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-c", JOINING]
    processes = [
        subprocess.Popen(command, env=os.environ | meeting | {"RANK": rank}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for rank in "01"
    ]
    try:
        assert [process.stdout.readline() for process in processes] == ["3\n", "3\n"]
        found = {one for process in processes for one in stranger.listeners(process.pid)}
        assert int(meeting["MASTER_PORT"]) in {one.port for one in found}
        assert {one.address for one in found} == {"127.0.0.1"}
        for process in processes:
            process.communicate("\n", timeout=60)
            assert process.returncode == 0
    finally:
        for process in processes:
            process.kill()
            process.wait()
