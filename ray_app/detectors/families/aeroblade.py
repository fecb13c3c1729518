"""The `aeroblade` family: how well a generator's autoencoder reproduces an image, as LPIPS measures
it; nothing is trained.

`backbone` is the autoencoder, a card's own file LPIPS' linear layers, and beside that lies
torchvision's VGG-16, of which the first four convolutions are taken. Sources: Ricker et al., CVPR
2024 (arXiv 2401.17879); LPIPS: Zhang et al., CVPR 2018 (arXiv 1801.03924); the autoencoder of
Stable Diffusion (`KlAutoencoder`), under diffusers' key names: Rombach et al., CVPR 2022 (arXiv
2112.10752).
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

# What attention layers were called until diffusers 0.18; published files still have these names.
_RENAMED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


class KlAutoencoder(nn.Module):
    """Pixels (N, 3, H, W) of −1 to 1, sides multiples of 8 → the same picture through the latent's
    mean. By default 83,653,863 parameters.

    Needs one group of channels at least: widths are multiples of `groups`.
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
        """Encode and decode."""
        mean, _ = self.quant_conv(self.encoder(pixels)).chunk(2, 1)
        decoded: torch.Tensor = self.decoder(self.post_quant_conv(mean))
        return decoded


class _Encoder(nn.Module):
    def __init__(self, widths: Sequence[int], out: int, layers: int, groups: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            _Stage(
                before, width, layers, groups, "downsamplers" if number < len(widths) - 1 else None
            )
            for number, (before, width) in enumerate(
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
                before, width, layers, groups, "upsamplers" if number < len(widths) - 1 else None
            )
            for number, (before, width) in enumerate(
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
    """Some residual layers, then half or twice the size, by the name of what does it."""

    def __init__(
        self, before: int, width: int, layers: int, groups: int, sampler: str | None
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            _Residual(before if number == 0 else width, width, groups) for number in range(layers)
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
    def __init__(self, before: int, width: int, groups: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = (
            nn.GroupNorm(groups, before, NORM_EPS),
            nn.Conv2d(before, width, 3, padding=1),
        )
        self.norm2, self.conv2 = (
            nn.GroupNorm(groups, width, NORM_EPS),
            nn.Conv2d(width, width, 3, padding=1),
        )
        self.conv_shortcut = nn.Conv2d(before, width, 1) if before != width else None

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        inner: torch.Tensor = self.conv2(
            functional.silu(self.norm2(self.conv1(functional.silu(self.norm1(features)))))
        )
        return inner + (features if self.conv_shortcut is None else self.conv_shortcut(features))


class _Attention(nn.Module):
    """One head over all places."""

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


VGG = "vgg16-397923af.pth"
# of VGG-16's `features`, to the end of the second layer of LPIPS
CONVOLUTIONS = {0: (3, 64), 2: (64, 64), 5: (64, 128), 7: (128, 128)}
POOL_BEFORE = 5
STAGES = (64, 128, 256, 512, 512)  # channels of LPIPS' five layers, all of which its file has
LAYER = 1  # the second one, which the authors found best
# LPIPS' own constants for pixels of −1 to 1
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
EPS = 1e-10


class Aeroblade(nn.Module):
    """Pixels (N, 3, H, W) of −1 to 1 → minus the distance (N, 1) between an image and its
    reconstruction: near 0 is likely fake.

    Of sides that are no multiples of 8 the last rows or columns are dropped. VGG's weights are
    buffers: they come by `attach`.
    """

    shift: torch.Tensor
    scale: torch.Tensor

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        for number, channels in enumerate(STAGES):
            layer = nn.Conv2d(channels, 1, 1, bias=False)
            self.add_module(
                f"lin{number}", nn.ModuleDict({"model": nn.Sequential(nn.Dropout(), layer)})
            )
        for name, values in (("shift", SHIFT), ("scale", SCALE)):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)
        for place, (before, width) in CONVOLUTIONS.items():
            self.register_buffer(
                f"weight{place}", torch.zeros(width, before, 3, 3), persistent=False
            )
            self.register_buffer(f"bias{place}", torch.zeros(width), persistent=False)

    def attach(self, folder: Path) -> None:
        """Take VGG's convolutions from the file in that folder. Raises DetectorError."""
        path = folder / VGG
        if not path.is_file():
            raise DetectorError(
                f"{path}: AEROBLADE measures with VGG-16, which is not there",
                hint=f"put torchvision's {VGG} beside",
            )
        described = Weights(
            uri=VGG,
            unverified="the card says what is known of it, in `beside`",
            format="torch",
            select="features.",
        )
        self.take_vgg(read_state_dict(path, described), str(path))

    def take_vgg(self, state: Mapping[str, torch.Tensor], where: str) -> None:
        """The four convolutions of a state dict of torchvision's VGG-16. Raises DetectorError where
        one is missing or of another shape.
        """
        for place in CONVOLUTIONS:
            for leaf in ("weight", "bias"):
                key, own = f"features.{place}.{leaf}", self.get_buffer(f"{leaf}{place}")
                if key not in state or state[key].shape != own.shape:
                    raise DetectorError(
                        f"{where}: {key} is not VGG-16's", hint=f"take torchvision's {VGG}"
                    )
                own.copy_(state[key])

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Score a batch; see the class for shapes."""
        height, width = (side // 8 * 8 for side in pixels.shape[2:])
        pixels = pixels[..., :height, :width]
        # As the authors' 8-bit files: clipped, and cut down to a whole grey level.
        rebuilt = (
            (self.backbone(pixels).float() / 2 + 0.5).clamp(0, 1) * 255
        ).floor() / 255 * 2 - 1
        return -self.distance(pixels, rebuilt)

    def distance(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """LPIPS' second layer of two batches, averaged over all places: (N, 1)."""
        apart = (self._features(one) - self._features(other)).square()
        weighted: torch.Tensor = self.get_submodule(f"lin{LAYER}.model")(apart)
        return weighted.mean((2, 3))

    def _features(self, pixels: torch.Tensor) -> torch.Tensor:
        features = (pixels - self.shift) / self.scale
        for place in CONVOLUTIONS:
            if place == POOL_BEFORE:
                features = functional.max_pool2d(features, 2)
            features = functional.conv2d(
                features,
                self.get_buffer(f"weight{place}"),
                self.get_buffer(f"bias{place}"),
                padding=1,
            ).relu()
        return features / (features.square().sum(1, keepdim=True).sqrt() + EPS)


def published_keys(
    state: Mapping[str, torch.Tensor], network: nn.Module
) -> Mapping[str, torch.Tensor]:
    """Files of autoencoders have older names than the network."""
    return modern_names(state) if isinstance(network, KlAutoencoder) else state


def build(card: DetectorCard) -> nn.Module:
    """The network that a card of family `aeroblade` describes, without weights. Raises
    DetectorError.
    """
    if card.backbone is None:
        raise DetectorError(
            f"{card.name}: aeroblade needs an autoencoder", hint=f"name one as `{BACKBONE}`"
        )
    if card.architecture.arguments:
        raise DetectorError(
            f"{card.name}: architecture.arguments: aeroblade takes none, not {', '.join(card.architecture.arguments)}"
        )
    return Aeroblade(KlAutoencoder(**card.backbone.architecture.arguments))
