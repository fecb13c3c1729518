"""`cuda` without a GPU: tensors that have a device and a shape and no values, so that what mixes
devices is seen on any machine.

torch computes nothing there: neither values nor kernels are tested, only that every tensor of an
operation lies on one device.
"""

import warnings
from collections.abc import Callable
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ray_app.detectors.card import DetectorCard
from ray_app.detectors.detector import Detector, build_network
from ray_app.detectors.preprocessing import ResizeMode
from tests.make.networks.fill import Undrawn


@contextmanager
def fake_cuda():
    """Inside, tensors are made without values, and on `cuda` too; and `autocast` works for it.
    Where torch has no GPU it switches that off, or refuses bf16, by what two functions say: here
    both say that there is a GPU with bf16. What autocast then does is torch's own.
    """
    with (
        pytest.MonkeyPatch.context() as patch,
        FakeTensorMode(allow_non_fake_inputs=True) as mode,
        warnings.catch_warnings(),
    ):
        patch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
        patch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation=True: True)
        patch.setattr(nn.Module, "_apply", _replaced)
        warnings.filterwarnings("error", message=".*[Dd]isabl")
        # asked for as a name, never read from
        warnings.filterwarnings("ignore", message="Accessing the data pointer of FakeTensor")
        yield mode


def _replaced(
    module: nn.Module, convert: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True
) -> nn.Module:
    """What `nn.Module.to` does, by new tensors in place of the old: torch exchanges the old ones'
    contents, which it cannot of these.
    """
    new: dict[int, torch.Tensor] = {}
    for part in module.modules() if recurse else [module]:
        for tensors in (part._parameters, part._buffers):
            for tensor in tensors.values():
                if tensor is not None and id(tensor) not in new:
                    with torch.no_grad():
                        made = convert(tensor)
                    new[id(tensor)] = (
                        nn.Parameter(made, tensor.requires_grad)
                        if isinstance(tensor, nn.Parameter)
                        else made
                    )
    for part in module.modules() if recurse else [module]:
        for tensors in (part._parameters, part._buffers):
            tensors.update(
                {name: new[id(tensor)] for name, tensor in tensors.items() if tensor is not None}
            )
    return module


def bare(card: DetectorCard) -> nn.Module:
    """The card's network without values, on no device: its tensors are made anew where it is
    needed.
    """
    with Undrawn(), torch.device("meta"):
        return build_network(card)


def on_fake_cpu(network: nn.Module) -> nn.Module:
    """Inside `fake_cuda`: parameters and buffers on the CPU, as a loaded network has them. What is
    neither stays where it was.
    """
    return network.to_empty(device="cpu")


def detector_on_cuda(
    card: DetectorCard,
    network: nn.Module,
    precision: str,
    slots: int = 2,
    resize: ResizeMode = "exact",
) -> Detector:
    """Inside `fake_cuda`: the detector as `load_detector` makes it once its weights are read."""
    fake = 0 if card.output.sign else card.output.index_among(card.output.labels)
    return Detector(
        card,
        on_fake_cpu(network),
        fake=fake,
        device="cuda",
        precision=precision,
        resize=resize,
        slots=slots,
        weights_sha256="0",
    )


def devices_of(network: nn.Module) -> set[str]:
    """Where a network's tensors lie."""
    return {tensor.device.type for tensor in (*network.parameters(), *network.buffers())}
