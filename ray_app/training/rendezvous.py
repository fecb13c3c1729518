"""Where the processes of a training meet: at one address. PyTorch would listen on all of them, and its store asks for no secret."""

import importlib
import socket
from datetime import timedelta

from ray.train.torch.config import TorchConfig, _TorchBackend
from ray.train.v2._internal.execution.worker_group.worker_group import WorkerGroup
from torch.distributed import TCPStore  # type: ignore[attr-defined]


class OneAddress(TorchConfig):
    """Ray Train's way to set up torch.distributed, but for the address of the store: that of the first worker's node alone."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """See `ray.train.backend.BackendConfig`."""
        return _Backend


class _Backend(_TorchBackend):
    def on_start(self, worker_group: WorkerGroup, backend_config: TorchConfig) -> None:  # type: ignore[override]  # as TorchBackend's own
        worker_group.execute(meet_at_one_address)
        super().on_start(worker_group, backend_config)


def meet_at_one_address() -> None:
    """From now on the store of this process's `env://` rendezvous listens on MASTER_ADDR alone. PyTorch has no setting for it."""
    rendezvous = importlib.import_module("torch.distributed.rendezvous")  # as an attribute of its package the name is a function
    rendezvous._create_c10d_store = _store  # type: ignore[attr-defined]


def _store(hostname: str, port: int, rank: int, world_size: int, timeout: timedelta, use_libuv: bool = True) -> TCPStore:
    if rank:
        return TCPStore(hostname, port, world_size, is_master=False, timeout=timeout)
    family = socket.AF_INET6 if ":" in hostname else socket.AF_INET
    listening = socket.create_server((hostname, port), family=family, backlog=1024).detach()
    return TCPStore(
        hostname, port, world_size, is_master=True, timeout=timeout, multi_tenant=True, master_listen_fd=listening, use_libuv=use_libuv
    )
