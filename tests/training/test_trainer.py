"""The store of torch.distributed listens where the processes meet, and nowhere else."""

import importlib
import os
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from ray_app.training.trainer import meet_at_one_address
from tests import stranger
from tests.ray_head import free_ports


@pytest.mark.timeout(180)
def test_two_ranks_meet_on_loopback_alone(monkeypatch):
    """Each rank is a thread here: a store and gloo neither know nor care, and nobody imports torch and Ray twice more."""
    port = free_ports(1)[0]
    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}.items():
        monkeypatch.setenv(name, value)
    rendezvous = importlib.import_module("torch.distributed.rendezvous")  # as an attribute of its package the name is a function
    monkeypatch.setattr(rendezvous, "_create_c10d_store", rendezvous._create_c10d_store)  # put back afterwards
    meet_at_one_address()
    before = stranger.listeners(os.getpid())

    def join(rank):
        store, rank, world = next(iter(rendezvous.rendezvous("env://", rank=rank, world_size=2)))
        group = dist.ProcessGroupGloo(store, rank, world, timedelta(seconds=60))
        total = torch.tensor([rank + 1])
        group.allreduce([total]).wait()
        return int(total), store, group

    with ThreadPoolExecutor(2) as threads:
        joined = list(threads.map(join, (0, 1)))
    assert [total for total, *_ in joined] == [3, 3]
    found = stranger.listeners(os.getpid()) - before
    assert port in {one.port for one in found}
    assert {one.address for one in found} == {"127.0.0.1"}
