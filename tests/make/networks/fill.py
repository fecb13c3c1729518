"""Deterministic weights and image, by formula only (no RNG). numpy + torch. v_i for flat row-major
index i of tensor `name`: u = (i + 1000003 * (crc32(name) % 1000)) mod 2^32, then u ^= u >> 16; u *=
0x7feb352d; u ^= u >> 15; u *= 0x846ca68b; u ^= u >> 16 (all mod 2^32); v = u / 2^31 - 1 in [-1, 1)
(kept as float32(u >> 8) / 2^23 - 1, exact). Rules, first match: integer -> 0; 0-d or leaf
"logit_scale" -> log(1/0.07); leaf running_mean -> .05 v; running_var -> 1 + .2 v^2; name contains
one of EMB -> .02 v; 1-d with leaf weight/gamma -> 1 + .1 v; other 1-d -> .02 v; else sqrt(3) v /
sqrt(numel / shape[0]).
"""

import math
import zlib

import numpy as np
import torch
from PIL import Image
from torch.overrides import TorchFunctionMode

EMB = ("pos_embed", "positional_embedding", "class_embedding", "token_embedding", "cls_token", "ctx", "rel_pos", "embeddings",
       "relative_position")  # fmt: skip


# numbers that are made at once: all steps of them stay in the cache, which makes this five times as
# fast
BLOCK = 2**15


def wave(name, shape):
    values = np.empty(math.prod(shape), np.float32)
    first, steps = 1000003 * (zlib.crc32(name.encode()) % 1000), np.arange(BLOCK, dtype=np.uint32)
    for start in range(0, len(values), BLOCK):
        u = steps[: len(values) - start] + np.uint32((first + start) % 2**32)
        for shift, mul in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):
            u ^= u >> np.uint32(shift)
            u *= np.uint32(mul)
        values[start : start + BLOCK] = u >> np.uint32(8)
    values *= np.float32(2**-23)
    values -= np.float32(1)
    return torch.from_numpy(values).reshape(shape)


def fill(state_dict):
    return {name: filled_tensor(name, t).to(t.dtype) for name, t in state_dict.items()}


def filled_tensor(name, t):
    leaf = name.rsplit(".", 1)[-1]
    if not t.dtype.is_floating_point:
        return torch.zeros(t.shape)
    if t.dim() == 0 or leaf == "logit_scale":
        return torch.full(t.shape, math.log(1 / 0.07))
    v = wave(name, tuple(t.shape))
    if leaf == "running_mean":
        return v.mul_(0.05)
    if leaf == "running_var":
        return 1 + 0.2 * v * v
    if any(e in name for e in EMB):
        return v.mul_(0.02)
    if t.dim() == 1:
        return v.mul_(0.1).add_(1) if leaf in ("weight", "gamma") else v.mul_(0.02)
    return v.mul_(math.sqrt(3) / math.sqrt(t.numel() / t.shape[0]))


def pattern_image(h, w):
    y, x = np.mgrid[0:h, 0:w].astype(np.int64)
    return np.stack(
        [
            (x * 7 + y * 13 + (x * y) // 31) % 256,
            (x * 3 + y * 5) % 256,
            (x * x // 17 + y * 11) % 256,
        ],
        -1,
    ).astype(np.uint8)


def source(name):
    """The made image `HxW`."""
    height, width = map(int, name.split("x"))
    return Image.fromarray(pattern_image(height, width))


def with_part(card, part, **changes):
    """Return the card with these fields of one of its sections changed."""
    return card.model_copy(update={part: getattr(card, part).model_copy(update=changes)})


def with_arguments(card, arguments):
    """Return the card with these arguments of its network."""
    return with_part(card, "architecture", arguments=arguments)


def with_tower(card, **arguments):
    """Return the card with these arguments of its backbone changed."""
    tower = card.backbone.architecture
    changed = tower.model_copy(update={"arguments": {**tower.arguments, **arguments}})
    return with_part(card, "backbone", architecture=changed)


def filled(network):
    """The network with weights by formula, frozen, as it scores."""
    network.load_state_dict(fill(network.state_dict()))
    return network.eval().requires_grad_(False)


class Undrawn(TorchFunctionMode):
    """Within it networks are built of zeros, without drawing the weights that are replaced right
    after.
    """

    DRAWS = frozenset(
        f"{name}_" for name in ("normal", "uniform", "erfinv", "trunc_normal", "kaiming_normal",
                                "kaiming_uniform", "xavier_uniform")
    )  # fmt: skip

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func.__name__ in self.DRAWS:
            tensor = args[0] if args else kwargs["tensor"]
            tensor.data.zero_()  # what draws until all values lie in a range is content with these
            return tensor
        return func(*args, **(kwargs or {}))
