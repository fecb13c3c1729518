"""Lower networks to bf16 if that is safe (`lower_to_bf16`), and record embeddings (`EmbeddingHook`).

Matrix products run in bf16, inside `autocast`. Norms, the head (the last linear layer), and all
other parameters stay in fp32. An embedding is the input of the head.
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

# Maximum difference of scores of the same weights with other batches, kernels, or devices, as a
# factor of max(1, |score|).
TOLERANCE: Mapping[ResolvedPrecision, float] = {"fp32": 1e-4, "bf16": 0.02}

_PRODUCTS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d)


def resolve_precision(
    precision: Precision, device: str, preferred: Literal["auto", "fp32"] = "auto"
) -> ResolvedPrecision:
    """Return the precision for a device: bf16 or fp32, even if the requested one is `auto`.

    `auto` is bf16 if the device multiplies bf16 fast (`has_bf16`) and the card allows it.

    Args:
        precision: The requested precision.
        device: The device, such as "cpu" or "cuda:0". For a CPU, `cpu_precision` decides.
        preferred: The precision on the detector's card. "fp32" makes `auto` fp32.
    """
    if precision != "auto":
        return precision
    return "bf16" if preferred == "auto" and has_bf16(device) else "fp32"


def has_bf16(device: str) -> bool:
    """Return whether the precision `auto` may mean bf16 on a device.

    The device must multiply bf16 matrices faster than fp32 matrices, without emulation. For a
    CPU, $TOUCHSTONE_CPU_PRECISION overrides this.
    """
    if torch.device(device).type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return cpu_precision() == "bf16"


def exceeds_tolerance(
    scores: npt.NDArray[np.float32], expected: npt.NDArray[np.float32], precision: ResolvedPrecision
) -> bool:
    """Return whether scores differ from the expected scores by more than the tolerance.

    `TOLERANCE` has the tolerance of each precision. If a score is finite in only one of the two
    arrays, the result is True.

    Args:
        scores: Scores (n,).
        expected: Expected scores (n,).
        precision: Precision of the scores, which determines the tolerance.
    """
    are_finite = np.isfinite(scores) & np.isfinite(expected)
    difference = np.abs(np.where(are_finite, scores - expected, 0.0))
    allowed = TOLERANCE[precision] * np.maximum(1, np.abs(np.where(are_finite, expected, 0.0)))
    return bool(
        np.any(difference > allowed) or np.any(np.isfinite(scores) != np.isfinite(expected))
    )


def forbid_tf32() -> None:
    """Disable TF32 on GPUs, for the whole process.

    cuDNN otherwise rounds the inputs of fp32 convolutions to 10 bits.
    """
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def lower_to_bf16(network: nn.Module, device: str) -> nn.Module:
    """Store the weights of matrix products in bf16, in place.

    Norms and the head, which is the last linear layer, stay in fp32. Run the network inside
    `autocast`, which casts the inputs of each product and keeps layer scales and the residual
    stream in fp32. Autocast without stored bf16 weights would cast every weight in every call.

    Args:
        network: The network.
        device: The device that the network will run on.

    Returns:
        The same network.
    """
    products = [
        (name, layer) for name, layer in network.named_modules() if isinstance(layer, _PRODUCTS)
    ]
    for _, layer in products[:-1]:
        # Not recursive, because IML-ViT's convolutions contain a norm.
        for parameter in layer.parameters(recurse=False):
            parameter.data = parameter.data.to(torch.bfloat16)
    for name, layer in products[-1:]:
        if isinstance(layer, nn.Linear):
            network.set_submodule(name, Float32Linear(layer))
    for module in network.modules():
        # A module with products that are not layers, such as packed projections, lists their
        # parameters in `products`.
        for name in getattr(module, "products", ()):
            module.register_parameter(
                name,
                nn.Parameter(module.get_parameter(name).to(torch.bfloat16), requires_grad=False),
            )
        if isinstance(module, nn.LayerNorm):
            module.register_forward_pre_hook(_input_in_fp32)
        if torch.device(device).type == "cpu" and hasattr(module, "fused_attn"):
            # timm's switch to plain products, which oneDNN runs in bf16 twice as fast as torch's
            # fused CPU kernel.
            module.fused_attn = False  # type: ignore[assignment]
    return network


def _input_in_fp32(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    # LayerNorm on a CPU returns bf16 for bf16 input. SwinV2 adds the output to its residual stream,
    # which would then have 8 bits of precision through 24 blocks.
    return (inputs[0].float(), *inputs[1:])


@contextmanager
def autocast(device: str, precision: ResolvedPrecision) -> Iterator[None]:
    """Provide the context in which a network must run after `lower_to_bf16`.

    For the precision fp32, the context does nothing.
    """
    with torch.autocast(
        torch.device(device).type,
        dtype=torch.bfloat16,
        enabled=precision == "bf16",
        cache_enabled=False,
    ):
        yield


class Float32Linear(nn.Linear):
    """Linear layer that computes in fp32 inside autocast. `lower_to_bf16` uses it as the head.

    It shares the parameters of the layer that it replaces.

    Args:
        layer: The layer that it replaces.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(
            layer.in_features, layer.out_features, layer.bias is not None, device="meta"
        )
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Apply the layer in fp32."""
        with torch.autocast(features.device.type, enabled=False):
            return functional.linear(features.float(), self.weight, self.bias)


class EmbeddingHook:
    """Record embeddings: the inputs of a network's head, which is its last linear layer.

    The constructor registers a forward hook. It raises DetectorError if the network has no linear
    layer. After each forward pass, call `take_embedding`.

    Args:
        name: Name of the detector, for errors.
        network: The network.
    """

    def __init__(self, name: str, network: nn.Module) -> None:
        self._name = name
        self._input: torch.Tensor | None = None
        self._output: Any = None
        _, head = find_head(name, network)
        head.register_forward_hook(self._record)

    def take_embedding(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the embeddings (N, d), float32, of the last forward pass.

        An embedding is the input of the head, the last linear layer. `logits` are the output of the
        forward pass. Raises DetectorError if they are not the output of the head, or if the input
        of the head is not a single vector per image.
        """
        features, output = self._input, self._output
        self._input = self._output = None
        if features is None or output is not logits or features.ndim != 2:
            raise make_embedding_error(self._name)
        return features.float()

    def _record(
        self, head: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor
    ) -> None:
        self._input, self._output = inputs[0], output


def find_head(name: str, network: nn.Module) -> tuple[str, nn.Linear]:
    """Return the name and layer of a network's head, which is its last linear layer.

    `name` is that of the detector, for errors. Raises DetectorError if there is no linear layer.
    """
    layers = [
        (path, layer) for path, layer in network.named_modules() if isinstance(layer, nn.Linear)
    ]
    if not layers:
        raise make_embedding_error(name)
    return layers[-1]


def make_embedding_error(name: str) -> DetectorError:
    """Return the error for a network whose logits are not those of a linear layer on one vector.

    Such a network has no embedding, which is the input of the last linear layer. `name` is that of
    the detector.
    """
    return DetectorError(
        f"{name}: no embedding to store, because its logits are not the output of a linear layer on one vector per image",
        hint="leave it out of --features; only linear heads on a backbone and common classifiers have embeddings",
    )
