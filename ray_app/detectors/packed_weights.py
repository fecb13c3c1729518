"""Store matrices of a weight file in 6 bits, with a scale for each group of 64 values.

`pack` writes such tensors, and `unpack` reads them. A file of the format `safetensors-6bit` has two
tensors for a packed matrix (rows, columns): `NAME.packed`, uint8 (rows, columns × 3 / 4), and
`NAME.scales`, float16 (rows, columns / 64). A value is its scale times an integer of −31 to 31. Four
integers, each plus 32, are in three bytes, the first in the lowest bits. All other tensors are
stored as they are.

The rounding error of a value is at most half of its scale. The rows of a matrix of a transformer
are close to normally distributed, so the error is about 2 % of a typical value.
"""

from collections.abc import Mapping

import torch

GROUP = 64  # Values with one scale.
_LIMIT = 31
_PACKED, _SCALES = ".packed", ".scales"


def pack(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Pack every matrix of a state dict whose number of columns is a multiple of 64.

    Other tensors become float16. Raises ValueError if a value is not finite.
    """
    packed = {}
    for name, tensor in state.items():
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{name} has values that are not finite")
        if tensor.ndim != 2 or tensor.shape[1] % GROUP:
            packed[name] = tensor.half()
            continue
        groups = tensor.float().reshape(len(tensor), -1, GROUP)
        # Every scale is rounded before it is used, and none is 0.
        scales = (groups.abs().amax(dim=2) / _LIMIT).half().clamp_min(2**-24)
        integers = (groups / scales.float()[:, :, None]).round().clamp(-_LIMIT, _LIMIT) + 32
        packed[name + _PACKED] = _join_bits(integers.to(torch.uint8).reshape(len(tensor), -1))
        packed[name + _SCALES] = scales
    return packed


def unpack(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the matrices of packed tensors as float32, with all other tensors of a file.

    A packed tensor without scales that fit keeps its name, so that the loader reports it.
    """
    plain = dict(state)
    for name in [key.removesuffix(_PACKED) for key in state if key.endswith(_PACKED)]:
        packed, scales = state[name + _PACKED], state.get(name + _SCALES)
        rows, columns = len(packed), packed.shape[-1] * 4 // 3
        if scales is None or packed.ndim != 2 or scales.shape != (rows, columns / GROUP):
            continue
        del plain[name + _PACKED], plain[name + _SCALES]
        integers = _split_bits(packed).reshape(rows, -1, GROUP).float() - 32
        plain[name] = (integers * scales.float()[:, :, None]).reshape(rows, columns)
    return plain


def _join_bits(integers: torch.Tensor) -> torch.Tensor:
    """Join integers below 64, (rows, 4 n) uint8, to bytes (rows, 3 n)."""
    first, second, third, fourth = integers.reshape(len(integers), -1, 4).unbind(dim=2)
    joined = [first | second << 6, second >> 2 | third << 4, third >> 4 | fourth << 2]
    return torch.stack(joined, dim=2).reshape(len(integers), -1)


def _split_bits(joined: torch.Tensor) -> torch.Tensor:
    """Split bytes (rows, 3 n) to integers below 64, (rows, 4 n) uint8."""
    low, middle, high = joined.reshape(len(joined), -1, 3).unbind(dim=2)
    integers = [low & 63, (low >> 6 | middle << 2) & 63, (middle >> 4 | high << 4) & 63, high >> 2]
    return torch.stack(integers, dim=2).reshape(len(joined), -1)
