"""The autoencoder of Stable Diffusion (`KlAutoencoder`), under diffusers' key names; `modern_names` for files of older releases.

Source: Rombach et al., CVPR 2022 (arXiv 2112.10752).
"""

from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.nn import functional

GROUPS, EPS = 32, 1e-6

# What attention layers were called until diffusers 0.18; published files still have these names.
_RENAMED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


class KlAutoencoder(nn.Module):
    """Pixels (N, 3, H, W) of −1 to 1, sides multiples of 8 → the same picture through the latent's mean. By default 83,653,863 parameters.

    Needs one group of channels at least: widths are multiples of `groups`.
    """

    def __init__(self, *, widths: Sequence[int] = (128, 256, 512, 512), latent: int = 4, layers: int = 2, groups: int = GROUPS) -> None:
        super().__init__()
        self.encoder = _Encoder(widths, 2 * latent, layers, groups)
        self.decoder = _Decoder(widths, latent, layers + 1, groups)
        self.quant_conv = nn.Conv2d(2 * latent, 2 * latent, 1)
        self.post_quant_conv = nn.Conv2d(latent, latent, 1)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encode and decode."""
        mean, _ = self.quant_conv(self.encoder(pixels)).chunk(2, 1)
        decoded: torch.Tensor = self.decoder(self.post_quant_conv(mean))
        return decoded


class _Encoder(nn.Module):
    def __init__(self, widths: Sequence[int], out: int, layers: int, groups: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            _Stage(before, width, layers, groups, "downsamplers" if number < len(widths) - 1 else None)
            for number, (before, width) in enumerate(zip((widths[0], *widths), widths, strict=False))
        )
        self.mid_block = _Middle(widths[-1], groups)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], EPS)
        self.conv_out = nn.Conv2d(widths[-1], out, 3, padding=1)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        features = self.conv_in(pixels)
        for stage in self.down_blocks:
            features = stage(features)
        encoded: torch.Tensor = self.conv_out(functional.silu(self.conv_norm_out(self.mid_block(features))))
        return encoded


class _Decoder(nn.Module):
    def __init__(self, widths: Sequence[int], latent: int, layers: int, groups: int) -> None:
        super().__init__()
        rising = list(reversed(widths))
        self.conv_in = nn.Conv2d(latent, rising[0], 3, padding=1)
        self.mid_block = _Middle(rising[0], groups)
        self.up_blocks = nn.ModuleList(
            _Stage(before, width, layers, groups, "upsamplers" if number < len(widths) - 1 else None)
            for number, (before, width) in enumerate(zip((rising[0], *rising), rising, strict=False))
        )
        self.conv_norm_out = nn.GroupNorm(groups, rising[-1], EPS)
        self.conv_out = nn.Conv2d(rising[-1], 3, 3, padding=1)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        features = self.mid_block(self.conv_in(latents))
        for stage in self.up_blocks:
            features = stage(features)
        decoded: torch.Tensor = self.conv_out(functional.silu(self.conv_norm_out(features)))
        return decoded


class _Stage(nn.Module):
    """Some residual layers, then half or twice the size, by the name of what does it."""

    def __init__(self, before: int, width: int, layers: int, groups: int, sampler: str | None) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(_Residual(before if number == 0 else width, width, groups) for number in range(layers))
        self.sampler = sampler
        if sampler is not None:
            stride, padding = (2, 0) if sampler == "downsamplers" else (1, 1)
            self.add_module(sampler, nn.ModuleList([nn.ModuleDict({"conv": nn.Conv2d(width, width, 3, stride, padding)})]))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        for layer in self.resnets:
            features = layer(features)
        if self.sampler == "downsamplers":
            features = functional.pad(features, (0, 1, 0, 1))
        elif self.sampler is not None:
            features = functional.interpolate(features, scale_factor=2.0, mode="nearest")
        return features if self.sampler is None else self.get_submodule(f"{self.sampler}.0.conv")(features)


class _Middle(nn.Module):
    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([_Attention(width, groups)])
        self.resnets = nn.ModuleList(_Residual(width, width, groups) for _ in range(2))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        mixed: torch.Tensor = self.resnets[1](self.attentions[0](self.resnets[0](features)))
        return mixed


class _Residual(nn.Module):
    def __init__(self, before: int, width: int, groups: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(groups, before, EPS), nn.Conv2d(before, width, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(groups, width, EPS), nn.Conv2d(width, width, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(before, width, 1) if before != width else None

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        inner: torch.Tensor = self.conv2(functional.silu(self.norm2(self.conv1(functional.silu(self.norm1(features))))))
        return inner + (features if self.conv_shortcut is None else self.conv_shortcut(features))


class _Attention(nn.Module):
    """One head over all places."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, width, EPS)
        self.to_q, self.to_k, self.to_v = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, width)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        places = self.group_norm(features).flatten(2).transpose(1, 2)
        query, key, value = (layer(places)[:, None] for layer in (self.to_q, self.to_k, self.to_v))
        attended = self.to_out[0](functional.scaled_dot_product_attention(query, key, value)[:, 0])
        there: torch.Tensor = attended.transpose(1, 2).view_as(features)
        return features + there


def modern_names(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A file's tensors under the names that attention layers have by now."""
    renamed = {}
    for key, tensor in state.items():
        *path, layer, leaf = key.split(".") if key.count(".") > 1 else ("", key)
        attention = path[-2:-1] == ["attentions"] and layer in _RENAMED
        renamed[".".join([*path, _RENAMED[layer], leaf]) if attention else key] = tensor
    return renamed
