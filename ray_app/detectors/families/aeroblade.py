"""Build the `aeroblade` family, which scores how well an autoencoder reconstructs an image.

An image from a generator is reconstructed better by the autoencoder of this generator than a real
image. LPIPS, a perceptual distance, compares the image and its reconstruction. Nothing is trained.

The card's `backbone` is the autoencoder: that of Stable Diffusion (`KlAutoencoder`), with
diffusers' key names. The card's own file has the linear layers of LPIPS. torchvision's VGG-16 file
must be next to it, because the distance uses the first four convolutions of VGG-16.

Sources: Ricker et al., CVPR 2024 (arXiv 2401.17879). LPIPS: Zhang et al., CVPR 2018 (arXiv
1801.03924). Autoencoder: Rombach et al., CVPR 2022 (arXiv 2112.10752).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from ray_app.detectors.card import DetectorCard, Weights
from ray_app.detectors.checkpoints import read_state_dict
from ray_app.detectors.detector import BACKBONE
from ray_app.errors import DetectorError

GROUPS, NORM_EPS = 32, 1e-6

# Names of attention layers until diffusers 0.18, which published files still have.
_RENAMED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


class KlAutoencoder(nn.Module):
    """Autoencoder: pixels (N, 3, H, W) from −1 to 1 → pixels reconstructed from the latent's mean.

    H and W must be multiples of 8. The defaults have 83,653,863 parameters.

    Args:
        widths: Channels per stage. Multiples of `groups`.
        latent: Channels of the latent.
        layers: Residual layers per stage of the encoder.
        groups: Groups of the group norms.
    """

    def __init__(
        self,
        *,
        widths: Sequence[int] = (128, 256, 512, 512),
        latent: int = 4,
        layers: int = 2,
        groups: int = GROUPS,
    ) -> None:
        super().__init__()
        self.encoder = _Encoder(widths, 2 * latent, layers, groups)
        self.decoder = _Decoder(widths, latent, layers + 1, groups)
        self.quant_conv = nn.Conv2d(2 * latent, 2 * latent, 1)
        self.post_quant_conv = nn.Conv2d(latent, latent, 1)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Reconstruct a batch of pixels (N, 3, H, W) from −1 to 1. The shape stays."""
        mean, _ = self.quant_conv(self.encoder(pixels)).chunk(2, 1)
        decoded: torch.Tensor = self.decoder(self.post_quant_conv(mean))
        return decoded


class _Encoder(nn.Module):
    def __init__(self, widths: Sequence[int], out: int, layers: int, groups: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            _Stage(
                in_channels,
                width,
                layers,
                groups,
                "downsamplers" if index < len(widths) - 1 else None,
            )
            for index, (in_channels, width) in enumerate(
                zip((widths[0], *widths), widths, strict=False)
            )
        )
        self.mid_block = _Middle(widths[-1], groups)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], NORM_EPS)
        self.conv_out = nn.Conv2d(widths[-1], out, 3, padding=1)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        features = self.conv_in(pixels)
        for stage in self.down_blocks:
            features = stage(features)
        encoded: torch.Tensor = self.conv_out(
            functional.silu(self.conv_norm_out(self.mid_block(features)))
        )
        return encoded


class _Decoder(nn.Module):
    def __init__(self, widths: Sequence[int], latent: int, layers: int, groups: int) -> None:
        super().__init__()
        rising = list(reversed(widths))
        self.conv_in = nn.Conv2d(latent, rising[0], 3, padding=1)
        self.mid_block = _Middle(rising[0], groups)
        self.up_blocks = nn.ModuleList(
            _Stage(
                in_channels,
                width,
                layers,
                groups,
                "upsamplers" if index < len(widths) - 1 else None,
            )
            for index, (in_channels, width) in enumerate(
                zip((rising[0], *rising), rising, strict=False)
            )
        )
        self.conv_norm_out = nn.GroupNorm(groups, rising[-1], NORM_EPS)
        self.conv_out = nn.Conv2d(rising[-1], 3, 3, padding=1)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        features = self.mid_block(self.conv_in(latents))
        for stage in self.up_blocks:
            features = stage(features)
        decoded: torch.Tensor = self.conv_out(functional.silu(self.conv_norm_out(features)))
        return decoded


class _Stage(nn.Module):
    """Residual layers, then a layer named `sampler` that halves or doubles the size."""

    def __init__(
        self, in_channels: int, width: int, layers: int, groups: int, sampler: str | None
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            _Residual(in_channels if index == 0 else width, width, groups)
            for index in range(layers)
        )
        self.sampler = sampler
        if sampler is not None:
            stride, padding = (2, 0) if sampler == "downsamplers" else (1, 1)
            self.add_module(
                sampler,
                nn.ModuleList(
                    [nn.ModuleDict({"conv": nn.Conv2d(width, width, 3, stride, padding)})]
                ),
            )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        for layer in self.resnets:
            features = layer(features)
        if self.sampler == "downsamplers":
            features = functional.pad(features, (0, 1, 0, 1))
        elif self.sampler is not None:
            features = functional.interpolate(features, scale_factor=2.0, mode="nearest")
        return (
            features
            if self.sampler is None
            else self.get_submodule(f"{self.sampler}.0.conv")(features)
        )


class _Middle(nn.Module):
    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([_Attention(width, groups)])
        self.resnets = nn.ModuleList(_Residual(width, width, groups) for _ in range(2))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        mixed: torch.Tensor = self.resnets[1](self.attentions[0](self.resnets[0](features)))
        return mixed


class _Residual(nn.Module):
    def __init__(self, in_channels: int, width: int, groups: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = (
            nn.GroupNorm(groups, in_channels, NORM_EPS),
            nn.Conv2d(in_channels, width, 3, padding=1),
        )
        self.norm2, self.conv2 = (
            nn.GroupNorm(groups, width, NORM_EPS),
            nn.Conv2d(width, width, 3, padding=1),
        )
        self.conv_shortcut = nn.Conv2d(in_channels, width, 1) if in_channels != width else None

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        inner: torch.Tensor = self.conv2(
            functional.silu(self.norm2(self.conv1(functional.silu(self.norm1(features)))))
        )
        return inner + (features if self.conv_shortcut is None else self.conv_shortcut(features))


class _Attention(nn.Module):
    """Self-attention with one head over all positions."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, width, NORM_EPS)
        self.to_q, self.to_k, self.to_v = (
            nn.Linear(width, width),
            nn.Linear(width, width),
            nn.Linear(width, width),
        )
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        tokens = self.group_norm(features).flatten(2).transpose(1, 2)
        query, key, value = (layer(tokens)[:, None] for layer in (self.to_q, self.to_k, self.to_v))
        attended = self.to_out[0](functional.scaled_dot_product_attention(query, key, value)[:, 0])
        mixed: torch.Tensor = attended.transpose(1, 2).view_as(features)
        return features + mixed


def rename_attention(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename the attention layers of a file from diffusers' old names to its current names.

    diffusers had the old names until 0.18. For example, `query` becomes `to_q`. All other tensors
    keep their names.
    """
    renamed = {}
    for key, tensor in state.items():
        *path, layer, leaf = key.split(".") if key.count(".") > 1 else ("", key)
        attention = path[-2:-1] == ["attentions"] and layer in _RENAMED
        renamed[".".join([*path, _RENAMED[layer], leaf]) if attention else key] = tensor
    return renamed


VGG = "vgg16-397923af.pth"
# Channels of VGG-16's `features` up to the second layer of LPIPS, by index.
CONVOLUTIONS = {0: (3, 64), 2: (64, 64), 5: (64, 128), 7: (128, 128)}
POOL_BEFORE = 5
STAGES = (64, 128, 256, 512, 512)  # Channels of LPIPS' five layers, which its file contains.
LAYER = 1  # The second layer, which works best according to the authors.
# LPIPS' own constants for pixels from −1 to 1.
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
EPS = 1e-10


class Aeroblade(nn.Module):
    """AEROBLADE: pixels (N, 3, H, W) from −1 to 1 → minus the reconstruction error (N, 1).

    The error is the LPIPS distance of an image and its reconstruction. An output near 0 means
    likely fake. If a side is not a multiple of 8, its last rows or columns are dropped. The weights
    of VGG-16 come from a second file, so call `attach` before `forward`.
    """

    shift: torch.Tensor
    scale: torch.Tensor

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        for layer_index, channels in enumerate(STAGES):
            layer = nn.Conv2d(channels, 1, 1, bias=False)
            self.add_module(
                f"lin{layer_index}", nn.ModuleDict({"model": nn.Sequential(nn.Dropout(), layer)})
            )
        for name, values in (("shift", SHIFT), ("scale", SCALE)):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)
        for index, (in_channels, width) in CONVOLUTIONS.items():
            self.register_buffer(
                f"weight{index}", torch.zeros(width, in_channels, 3, 3), persistent=False
            )
            self.register_buffer(f"bias{index}", torch.zeros(width), persistent=False)

    def attach(self, folder: Path) -> None:
        """Load the convolutions of VGG-16 from torchvision's file in a folder.

        Raises DetectorError if the file is missing, unreadable, or that of another network.
        """
        path = folder / VGG
        if not path.is_file():
            raise DetectorError(
                f"{path}: AEROBLADE requires VGG-16, but the file is missing",
                hint=f"put torchvision's {VGG} next to the weights",
            )
        weights = Weights(
            uri=VGG,
            unverified="see `beside` in the card",
            format="torch",
            select="features.",
        )
        self.take_vgg(read_state_dict(path, weights), str(path))

    def take_vgg(self, state: Mapping[str, torch.Tensor], where: str) -> None:
        """Load the first four convolutions from a state dict of torchvision's VGG-16.

        `where` names the file, for the error message. Raises DetectorError if a tensor is missing
        or has another shape.
        """
        for index in CONVOLUTIONS:
            for leaf in ("weight", "bias"):
                key, buffer = f"features.{index}.{leaf}", self.get_buffer(f"{leaf}{index}")
                if key not in state or state[key].shape != buffer.shape:
                    raise DetectorError(
                        f"{where}: {key} is missing or has another shape than in VGG-16",
                        hint=f"use torchvision's {VGG}",
                    )
                buffer.copy_(state[key])

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Score a batch of images: pixels (N, 3, H, W) from −1 to 1 → minus the error (N, 1)."""
        height, width = (side // 8 * 8 for side in pixels.shape[2:])
        pixels = pixels[..., :height, :width]
        # The authors store 8-bit files, so values are clipped and rounded down to a grey level.
        rebuilt = (
            (self.backbone(pixels).float() / 2 + 0.5).clamp(0, 1) * 255
        ).floor() / 255 * 2 - 1
        return -self.distance(pixels, rebuilt)

    def distance(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """Return the LPIPS distance (N, 1) of two batches of pixels (N, 3, H, W), image by image.

        Only the second of the five layers of LPIPS is used, and its distances are averaged over all
        positions.
        """
        difference = (self._features(first) - self._features(second)).square()
        weighted: torch.Tensor = self.get_submodule(f"lin{LAYER}.model")(difference)
        return weighted.mean((2, 3))

    def _features(self, pixels: torch.Tensor) -> torch.Tensor:
        features = (pixels - self.shift) / self.scale
        for index in CONVOLUTIONS:
            if index == POOL_BEFORE:
                features = functional.max_pool2d(features, 2)
            features = functional.conv2d(
                features,
                self.get_buffer(f"weight{index}"),
                self.get_buffer(f"bias{index}"),
                padding=1,
            ).relu()
        return features / (features.square().sum(1, keepdim=True).sqrt() + EPS)


def published_keys(
    state: Mapping[str, torch.Tensor], network: nn.Module
) -> Mapping[str, torch.Tensor]:
    """Rename the tensors of an autoencoder's file to the names of the network.

    Only files of diffusers until 0.18 have other names than the network. If `network` is not the
    autoencoder, the tensors are returned unchanged.
    """
    return rename_attention(state) if isinstance(network, KlAutoencoder) else state


def build(card: DetectorCard) -> nn.Module:
    """Build the network of a card, without weights.

    Raises DetectorError if the card names no backbone, or has `architecture.arguments`.
    """
    if card.backbone is None:
        raise DetectorError(
            f"{card.name}: family aeroblade requires an autoencoder",
            hint=f"set `{BACKBONE}` to an autoencoder",
        )
    if card.architecture.arguments:
        raise DetectorError(
            f"{card.name}: architecture.arguments must be empty for family aeroblade, got {', '.join(card.architecture.arguments)}"
        )
    return Aeroblade(KlAutoencoder(**card.backbone.architecture.arguments))
