"""Build the `aide` family: noise filters on patches, and a CLIP ConvNeXt on the whole image.

The patches are those with the least and those with the most texture. Start at `Aide`. The names of
the tensors are those of the authors' file. Source: Yan et al., ICLR 2025 (arXiv 2406.19435).
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import timm
import torch
import torch.nn.functional as functional
from torch import nn

from ray_app.detectors.families.resnet import ResNetBody
from ray_app.detectors.preprocessing import IMAGENET_MEAN, IMAGENET_STD

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

# Side of a patch, distance between patches, and input side of the networks, in pixels.
PATCH, STEP, SIDE = 32, 16, 256
_BANDS = 6


def cosine_basis(side: int, device: torch.device) -> torch.Tensor:
    """Return the orthonormal DCT basis of `side` values: (side, side), one frequency per row."""
    index = torch.arange(side, dtype=torch.float64, device=device)
    basis = torch.cos((index + 0.5) * math.pi * index[:, None] / side) * math.sqrt(2 / side)
    basis[0] /= math.sqrt(2)
    return basis.float()


def patch_grades(pixels: torch.Tensor) -> torch.Tensor:
    """Grade how much texture each patch has: (N, C, H, W) → (N, rows × columns), row by row.

    Patches have 32 × 32 pixels and are `STEP` pixels apart. A higher grade means more texture. The
    DCT coefficients of a patch are divided into six bands, from low to high frequencies. The mean
    of ln(1 + |coefficient|) of each band is added to the grade. Each band has twice the weight of
    the band below it.
    """
    basis = cosine_basis(PATCH, pixels.device)
    total = torch.arange(PATCH, device=pixels.device)
    total = total + total[:, None]
    edges = [2 * PATCH / _BANDS * band for band in range(_BANDS + 1)]
    inside = [(total >= low) & (total <= high) for low, high in pairwise(edges)]
    weights = torch.stack([2**band * mask / mask.sum() for band, mask in enumerate(inside)]).sum(
        dim=0
    )
    rows = []
    for top in range(0, pixels.shape[-2] - PATCH + 1, STEP):
        # (N, C, columns, PATCH, PATCH)
        patches = pixels[..., top : top + PATCH, :].unfold(-1, PATCH, STEP).transpose(2, 3)
        rows.append(((basis @ patches @ basis.T).abs().log1p() * weights).sum(dim=(1, 3, 4)))
    return torch.cat(rows, dim=1)


def extreme_patches(pixels: torch.Tensor) -> torch.Tensor:
    """Return four patches per image, two with the least and two with the most texture.

    (N, C, H, W) → (N, 4, C, 32, 32). The order is: least, most, second least, second most.
    """
    columns = (pixels.shape[-1] - PATCH) // STEP + 1
    ranks = patch_grades(pixels).argsort(dim=1)
    last = ranks.shape[1] - 1
    selected = ranks[:, [0, last, min(1, last), max(last - 1, 0)]]
    within = torch.arange(PATCH, device=pixels.device)
    rows = selected.div(columns, rounding_mode="floor")[..., None] * STEP + within  # (N, 4, PATCH)
    across = selected.remainder(columns)[..., None] * STEP + within
    images = torch.arange(len(pixels), device=pixels.device)[:, None, None, None]
    return pixels.movedim(1, -1)[images, rows[..., :, None], across[..., None, :]].movedim(-1, 2)


class NoiseNet(ResNetBody):
    """ResNet-50 on the outputs of AIDE's 30 noise filters: (N, 30, H, W) → features (N, width).

    The width is 4 × the last of `channels`. Published files contain the layer `fc`, but the network
    does not use it.

    Args:
        layers: Blocks per stage.
        channels: Channels per stage.
    """

    def __init__(self, layers: Sequence[int], channels: Sequence[int]) -> None:
        super().__init__(layers, channels, given=30)
        self.fc = nn.Linear(4 * channels[-1], 1000)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Return the mean of the last feature map: (N, 30, H, W) → (N, width)."""
        return self.features(maps).mean(dim=(-2, -1))


class Aide(nn.Module):
    """AIDE's network: pixels (N, 3, H, W), 0 to 1 → logits (N, 2) of real and fake.

    The two patches with the least texture and the two with the most go through noise filters and
    two ResNet-50s. The image at 256 × 256 px goes through ConvNeXt-XXL. A head of two linear layers
    gets the features of both. The sides of an image must be at least 32 px. Smaller images get the
    score NaN.

    Args:
        layers: Blocks per stage of both ResNets.
        channels: Channels per stage of both ResNets.
        depths: Blocks per stage of the ConvNeXt.
        dims: Channels per stage of the ConvNeXt.
    """

    def __init__(
        self,
        *,
        layers: Sequence[int] = (3, 4, 6, 3),
        channels: Sequence[int] = (64, 128, 256, 512),
        depths: Sequence[int] = (3, 4, 30, 3),
        dims: Sequence[int] = (384, 768, 1536, 3072),
    ) -> None:
        super().__init__()
        # The 30 filters of the SRM (spatial rich model), which are in the file.
        self.hpf = nn.ModuleDict({"hpf": nn.Conv2d(3, 30, 5, padding=2, bias=False)})
        self.model_min, self.model_max = NoiseNet(layers, channels), NoiseNet(layers, channels)
        self.openclip_convnext_xxl = timm.create_model(
            "convnext_xxlarge",
            pretrained=False,
            num_classes=0,
            global_pool="",
            depths=tuple(depths),
            dims=tuple(dims),
        )
        self.convnext_proj = nn.Sequential(nn.Linear(dims[-1], 256))
        self.fc = nn.ModuleDict(
            {"fc1": nn.Linear(4 * channels[-1] + 256, 1024), "fc2": nn.Linear(1024, 2)}
        )

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Score a batch of images: pixels (N, 3, H, W), 0 to 1 → logits (N, 2) of real and fake."""
        if min(pixels.shape[-2:]) < PATCH:
            return pixels.new_full((len(pixels), 2), torch.nan)
        # Not in bf16, which would select other patches.
        with torch.autocast(pixels.device.type, enabled=False):
            patches = _resize_and_normalise(
                extreme_patches(pixels).flatten(0, 1), IMAGENET_MEAN, IMAGENET_STD
            )
            image = _resize_and_normalise(pixels, CLIP_MEAN, CLIP_STD)
        plain, busy, next_plain, next_busy = (
            self.hpf["hpf"](patches).unflatten(0, (-1, 4)).unbind(1)
        )
        noise = (
            self.model_min(plain)
            + self.model_max(busy)
            + self.model_min(next_plain)
            + self.model_max(next_busy)
        ) / 4
        meaning = self.convnext_proj(self.openclip_convnext_xxl(image).mean(dim=(-2, -1)))
        logits: torch.Tensor = self.fc["fc2"](
            functional.gelu(self.fc["fc1"](torch.cat([meaning, noise], dim=1)))
        )
        return logits


def _resize_and_normalise(
    pixels: torch.Tensor, mean: Sequence[float], std: Sequence[float]
) -> torch.Tensor:
    """Resize to 256 × 256 px and normalise: (N, 3, H, W) → (N, 3, 256, 256)."""
    sized = functional.interpolate(pixels, (SIDE, SIDE), mode="bilinear", antialias=True)
    return (sized - pixels.new_tensor(mean).view(3, 1, 1)) / pixels.new_tensor(std).view(3, 1, 1)
