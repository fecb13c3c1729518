"""One network in several processes: DDP, which keeps a copy in each, or FSDP2, which keeps a part in each.

Knows torch.distributed. Knows nothing about recipes, and starts no process group: who runs the processes does.

Gradients are averaged over the processes. Batch normalisation is each process's own: it sees its part of the batch alone, and the running
means and variances that are saved are rank 0's (DDP hands them to all before every step). So a network with such norms learns a little
differently in another number of processes; one without learns the same.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

Strategy = Literal["ddp", "fsdp2"]

_STACKS = (nn.ModuleList, nn.Sequential)


def world_size() -> int:
    """How many processes train together; 1 where no process group was begun."""
    return dist.get_world_size() if dist.is_initialized() else 1


def distribute(network: nn.Module, strategy: Strategy, device: str) -> nn.Module:
    """What to call in place of `network`, which is on `device` already; the network itself where one process trains alone."""
    if world_size() == 1:
        return network
    place = torch.device(device)
    if strategy == "ddp":
        return DistributedDataParallel(network, device_ids=[place] if place.type == "cuda" else None, gradient_as_bucket_view=True)
    mesh = init_device_mesh(place.type, (world_size(),))
    # A single number cannot be cut; one that does not learn, as CLIP's scale, may be whole everywhere.
    single = {parameter for parameter in network.parameters() if parameter.ndim == 0 and not parameter.requires_grad}
    for block in [*blocks(network), network]:
        fully_shard(block, mesh=mesh, ignored_params=single)
    return network


def blocks(network: nn.Module) -> list[nn.Module]:
    """What is gathered and freed piece by piece: the members of every stack of like modules, such as a transformer's; inner ones first."""
    modules = list(network.modules())
    members = {block for stack in modules if isinstance(stack, _STACKS) for block in _alike(list(stack))}
    return [module for module in reversed(modules) if module in members]


def _alike(stack: list[nn.Module]) -> list[nn.Module]:
    kinds = Counter(type(module) for module in stack)
    return [module for module in stack if kinds[type(module)] > 1 and not isinstance(module, _STACKS) and list(module.children())]


@contextmanager
def own_gradients(network: nn.Module, alone: bool) -> Iterator[None]:
    """While `alone`, gradients add up in this process; otherwise the way back averages all that has added up over the processes."""
    if isinstance(network, DistributedDataParallel) and alone:
        with network.no_sync():
            yield
        return
    if isinstance(network, FSDPModule):
        network.set_requires_gradient_sync(not alone)
    yield


def averaged(values: torch.Tensor) -> torch.Tensor:
    """The mean over all processes of a tensor that each has."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values / world_size()


def whole(tensor: Any) -> torch.Tensor:
    """A tensor that may be spread over processes, in one piece."""
    gathered: torch.Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return gathered
