"""Merge low-rank factors into weights (`merged`), and build the `vit-tuned` family.

The family is a vision transformer of timm. Its training only changed low-rank additions to the
weights (LoRA, arXiv 2106.09685), as in Dual Data Alignment (Chen et al., NeurIPS 2025, arXiv
2505.14359). A weight file stores the original weights and the factors of the additions.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ray_app.detectors.card import DetectorCard
from ray_app.errors import DetectorError

# Key suffixes after a layer's name: the weight without the low-rank part, the left and right
# factors of that part, and the values between the factors, if there are any.
_FORMS = (
    ("weight_main", "U_residual", "V_residual", "S_residual"),  # Effort.
    # The package peft.
    ("base_layer.weight", "lora_B.default.weight", "lora_A.default.weight", None),
    ("original_layer.weight", "lora.lora_B", "lora.lora_A", None),  # Dual Data Alignment.
)
_OFFSET = 0.1  # Patches that DINOv2's code adds to the target side when it resamples.


def merged(state: Mapping[str, torch.Tensor], alpha: float) -> dict[str, torch.Tensor]:
    """Merge the low-rank factors of a file into its weights, in double precision.

    The product of two low-rank factors is added to the weight of their layer. It is scaled by
    singular values if the file stores them, as files of Effort do. Otherwise it is scaled by alpha
    / rank.

    Args:
        state: The tensors of the file.
        alpha: The alpha of LoRA. With 0, factors without singular values stay unmerged.

    Returns:
        One weight per layer, and all other tensors of the file.

    Raises:
        DetectorError: If the shapes of factors and weight do not fit.
    """
    result = dict(state)
    for form in (form for form in _FORMS if form[3] or alpha):
        for layer in [
            key.removesuffix(f".{form[0]}") for key in state if key.endswith(f".{form[0]}")
        ]:
            parts = [f"{layer}.{name}" for name in form if name]
            if not all(part in state for part in parts):
                continue  # The loader reports the remaining keys.
            weight, left, right, *values = (result.pop(part).double() for part in parts)
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
                or (len(left), right.shape[-1]) != weight.shape
            ):
                shapes = ", ".join(str(tuple(part.shape)) for part in (left, scale, right))
                raise DetectorError(
                    f"{layer}: low-rank factors of shapes {shapes} do not fit a weight {tuple(weight.shape)}",
                    hint="use factors that were trained for this network",
                )
            result[f"{layer}.weight"] = (weight + (left * scale) @ right).float()
            if (bias := f"{layer}.{form[0].replace('weight', 'bias')}") in result:
                result[f"{layer}.bias"] = result.pop(bias)
    return result


def build(card: DetectorCard) -> nn.Module:
    """Build the network of a card.

    `architecture.name` is a name of timm. `architecture.arguments` has the arguments of
    `timm.create_model`. It also has the key `alpha`, the alpha of LoRA (see `merged`).
    """
    import timm  # Other users of this module do not need it.

    arguments = dict(card.architecture.arguments)
    alpha = arguments.pop("alpha")
    network: nn.Module = timm.create_model(
        card.architecture.name, pretrained=False, num_classes=card.output.logits, **arguments
    )
    network.alpha = alpha
    return network


def published_keys(state: Mapping[str, torch.Tensor], network: Any) -> dict[str, torch.Tensor]:
    """Merge the low-rank factors of a file into its weights, and rename its tensors for timm.

    If the file is for another image size, its position embeddings are resampled to the network's
    grid. The resampling is bicubic without antialias, as in DINOv2.
    """
    renamed = {
        key.replace("base_model.model.", "").replace("base_model.fc.", "head."): tensor
        for key, tensor in merged(state, network.alpha).items()
        if not key.endswith(".mask_token")  # Only for DINOv2's own training.
    }
    positions, side = renamed.get("pos_embed"), network.patch_embed.grid_size[0]
    if (
        positions is not None
        and (file_side := round((positions.shape[1] - 1) ** 0.5)) != side
        and positions.shape[1] == file_side**2 + 1
    ):
        grid = positions[:, 1:].float().reshape(1, file_side, file_side, -1).permute(0, 3, 1, 2)
        resampled = functional.interpolate(
            grid, mode="bicubic", scale_factor=(side + _OFFSET) / file_side
        )
        renamed["pos_embed"] = torch.cat(
            [positions[:, :1], resampled.flatten(2).transpose(1, 2)], dim=1
        )
    return renamed
