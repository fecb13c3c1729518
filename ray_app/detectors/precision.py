"""bf16 where it is safe (`lower_to_bf16`, `autocast`): matrix products in bf16; norms, head and
every other parameter in fp32.

`Tap` records the embedding that a network's head is given.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from ray_app.detectors.cpu import cpu_precision
from ray_app.errors import DetectorError

Precision = Literal["auto", "bf16", "fp32"]
ResolvedPrecision = Literal["bf16", "fp32"]

# How far scores may lie apart that the same weights give in another way (batch, kernels, device),
# times max(1, |score|).
TOLERANCE: Mapping[ResolvedPrecision, float] = {"fp32": 1e-4, "bf16": 0.02}

_PRODUCTS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d)


def resolve_precision(
    precision: Precision, device: str, preferred: Literal["auto", "fp32"] = "auto"
) -> ResolvedPrecision:
    """What `auto` means on a device of this process: bf16 where it multiplies that, unless the card
    prefers fp32. CPUs: see `cpu`.
    """
    if precision != "auto":
        return precision
    return "bf16" if preferred == "auto" and has_bf16(device) else "fp32"


def has_bf16(device: str) -> bool:
    """Whether `auto` may be bf16 on the device: it multiplies such matrices faster than fp32 ones,
    and does not merely emulate them.
    """
    if torch.device(device).type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return cpu_precision() == "bf16"


def beyond_tolerance(
    given: npt.NDArray[np.float32], expected: npt.NDArray[np.float32], precision: ResolvedPrecision
) -> bool:
    """Whether some score (n,) lies farther from what is expected than the precision explains; what
    is no number must be none in both.
    """
    both = np.isfinite(given) & np.isfinite(expected)
    apart = np.abs(np.where(both, given - expected, 0.0))
    allowed = TOLERANCE[precision] * np.maximum(1, np.abs(np.where(both, expected, 0.0)))
    return bool(np.any(apart > allowed) or np.any(np.isfinite(given) != np.isfinite(expected)))


def forbid_tf32() -> None:
    """Let fp32 mean fp32 on a GPU: cuDNN rounds the inputs of convolutions to 10 bits by default.
    Holds for the process.
    """
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def lower_to_bf16(network: nn.Module, device: str) -> nn.Module:
    """Store the weights of matrix products in bf16 once, in place; norms and the head, the last
    linear layer, keep fp32.

    Run it inside `autocast`: that casts the inputs of each product and leaves scales and the
    residual stream in fp32. Autocast alone would cast every weight anew in every call.
    """
    products = [
        (name, layer) for name, layer in network.named_modules() if isinstance(layer, _PRODUCTS)
    ]
    for _, layer in products[:-1]:
        # its own: IML-ViT's convolutions have a norm inside
        for parameter in layer.parameters(recurse=False):
            parameter.data = parameter.data.to(torch.bfloat16)
    for name, layer in products[-1:]:
        if isinstance(layer, nn.Linear):
            network.set_submodule(name, Float32Linear(layer))
    for module in network.modules():
        # A module whose products are no layers of their own, such as packed projections, lists
        # their parameters.
        for name in getattr(module, "products", ()):
            module.register_parameter(
                name,
                nn.Parameter(module.get_parameter(name).to(torch.bfloat16), requires_grad=False),
            )
        if isinstance(module, nn.LayerNorm):
            module.register_forward_pre_hook(_input_in_fp32)
        if torch.device(device).type == "cpu" and hasattr(module, "fused_attn"):
            # timm's switch: plain products, which oneDNN runs in bf16 at twice the speed of torch's
            # fused CPU kernel.
            module.fused_attn = False  # type: ignore[assignment]
    return network


def _input_in_fp32(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    # A CPU's LayerNorm answers bf16 with bf16; SwinV2 adds that to its residual stream and would
    # carry 8 bits through 24 blocks.
    return (inputs[0].float(), *inputs[1:])


@contextmanager
def autocast(device: str, precision: ResolvedPrecision) -> Iterator[None]:
    """Where a lowered network runs; does nothing in fp32."""
    with torch.autocast(
        torch.device(device).type,
        dtype=torch.bfloat16,
        enabled=precision == "bf16",
        cache_enabled=False,
    ):
        yield


class Float32Linear(nn.Linear):
    """A linear layer that stays fp32 whatever precision surrounds it; shares the parameters of the
    layer that it replaces.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(
            layer.in_features, layer.out_features, layer.bias is not None, device="meta"
        )
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Compute in fp32."""
        with torch.autocast(features.device.type, enabled=False):
            return functional.linear(features.float(), self.weight, self.bias)


class Tap:
    """Notes what goes through a network's head, for whoever asks right after the network has run.
    `name`: the detector's.
    """

    def __init__(self, name: str, network: nn.Module) -> None:
        self._name = name
        self._given: torch.Tensor | None = None
        self._made: Any = None
        _, head = head_of(name, network)
        head.register_forward_hook(self._note)

    def taken(self, logits: torch.Tensor) -> torch.Tensor:
        """(N, d) float32, of which the head made these logits. Raises DetectorError where it did
        not, or where it takes no such thing.
        """
        given, made = self._given, self._made
        self._given = self._made = None
        if given is None or made is not logits or given.ndim != 2:
            raise no_embedding(self._name)
        return given.float()

    def _note(self, head: nn.Module, given: tuple[torch.Tensor, ...], made: torch.Tensor) -> None:
        self._given, self._made = given[0], made


def head_of(name: str, network: nn.Module) -> tuple[str, nn.Linear]:
    """The last linear layer, as `lower_to_bf16` takes it for the head too, and its name. Raises
    DetectorError where there is none.
    """
    layers = [
        (path, layer) for path, layer in network.named_modules() if isinstance(layer, nn.Linear)
    ]
    if not layers:
        raise no_embedding(name)
    return layers[-1]


def no_embedding(name: str) -> DetectorError:
    """Why nothing can be kept of a detector of this name."""
    return DetectorError(
        f"{name}: its logits are not what one linear layer makes of one vector per image, so there is no embedding to keep",
        hint="leave it out of --features; linear heads on a backbone and common classifiers have one",
    )
