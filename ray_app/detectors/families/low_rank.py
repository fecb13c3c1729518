"""Low-rank parts of weights that a file keeps apart (`merged`), and the `vit-tuned` family: a
vision transformer of timm's trained by such additions (LoRA, arXiv 2106.09685), as in Dual Data
Alignment (Chen et al., NeurIPS 2025, arXiv 2505.14359).
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ray_app.detectors.card import DetectorCard
from ray_app.errors import DetectorError

# After a layer's name: its weight without the part, the part's left and right factors, and the
# values between them, if there are any.
_FORMS = (
    ("weight_main", "U_residual", "V_residual", "S_residual"),  # Effort
    # the package peft
    ("base_layer.weight", "lora_B.default.weight", "lora_A.default.weight", None),
    ("original_layer.weight", "lora.lora_B", "lora.lora_A", None),  # Dual Data Alignment
)
_OFFSET = 0.1  # patches, which DINOv2's code adds to a side that it resamples to


def merged(state: Mapping[str, torch.Tensor], alpha: float) -> dict[str, torch.Tensor]:
    """The file's layers as one weight each, which authors may add up anew for every batch; in
    double precision.

    Factors with values between them are multiplied by these, others by alpha / rank; at 0 the
    latter are left. Raises DetectorError.
    """
    added = dict(state)
    for form in (form for form in _FORMS if form[3] or alpha):
        for layer in [
            key.removesuffix(f".{form[0]}") for key in state if key.endswith(f".{form[0]}")
        ]:
            parts = [f"{layer}.{name}" for name in form if name]
            if not all(part in state for part in parts):
                continue  # the loader names what is left over
            main, left, right, *values = (added.pop(part).double() for part in parts)
            scale = (
                values[0]
                if values
                else torch.full(
                    right.shape[:1], alpha / len(right), dtype=right.dtype, device=right.device
                )
            )
            if (
                left.shape[1:] != scale.shape
                or scale.shape != right.shape[:1]
                or (len(left), right.shape[-1]) != main.shape
            ):
                shapes = ", ".join(str(tuple(part.shape)) for part in (left, scale, right))
                raise DetectorError(f"{layer}: {shapes} make no {tuple(main.shape)}")
            added[f"{layer}.weight"] = (main + (left * scale) @ right).float()
            if (bias := f"{layer}.{form[0].replace('weight', 'bias')}") in added:
                added[f"{layer}.bias"] = added.pop(bias)
    return added


def build(card: DetectorCard) -> nn.Module:
    """The network of a card: `architecture.name` is timm's; `arguments` but `alpha` go to
    `timm.create_model`. Raises DetectorError.
    """
    import timm  # of no use to the others who read low-rank parts

    arguments = dict(card.architecture.arguments)
    alpha = arguments.pop("alpha")
    network: nn.Module = timm.create_model(
        card.architecture.name, pretrained=False, num_classes=card.output.logits, **arguments
    )
    network.alpha = alpha
    return network


def published_keys(state: Mapping[str, torch.Tensor], network: Any) -> dict[str, torch.Tensor]:
    """A file's tensors under timm's names, with the positions of the network's own grid: bicubic
    without antialias, as DINOv2 has it.
    """
    renamed = {
        key.replace("base_model.model.", "").replace("base_model.fc.", "head."): tensor
        for key, tensor in merged(state, network.alpha).items()
        if not key.endswith(".mask_token")  # of DINOv2's own training
    }
    positions, side = renamed.get("pos_embed"), network.patch_embed.grid_size[0]
    if (
        positions is not None
        and (known := round((positions.shape[1] - 1) ** 0.5)) != side
        and positions.shape[1] == known**2 + 1
    ):
        grid = positions[:, 1:].float().reshape(1, known, known, -1).permute(0, 3, 1, 2)
        resampled = functional.interpolate(
            grid, mode="bicubic", scale_factor=(side + _OFFSET) / known
        )
        renamed["pos_embed"] = torch.cat(
            [positions[:, :1], resampled.flatten(2).transpose(1, 2)], dim=1
        )
    return renamed
