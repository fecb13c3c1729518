"""Build the `trufor` family, which finds altered pixels by colours and by traces of the camera.

Noiseprint++ computes a fingerprint of the image: traces of the camera and its processing, which
altered areas do not share. Two SegFormer encoders, of the colours and of the fingerprint, correct
each other. The outputs are a mask of altered pixels, the mask's confidence, and a score. Start at
`TruFor`. The key names are the authors'.

Sources: Guillaro et al., CVPR 2023 (arXiv 2212.10957). The encoder: Liu et al. 2022, CMX (arXiv
2203.04838), based on Xie et al. 2021, SegFormer (arXiv 2105.15203). Noiseprint++'s network: Zhang
et al. 2017, DnCNN (arXiv 1608.03981).
"""

from collections.abc import Sequence
from itertools import chain
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional

from ray_app.detectors.detector import Prediction
from ray_app.detectors.families.mae import fused_maps
from ray_app.detectors.preprocessing import IMAGENET_MEAN, IMAGENET_STD

EPS = 1e-6  # For the blocks' norms. Other norms have torch's 1e-5.


class PatchEmbed(nn.Module):
    """Embed overlapping patches: (N, channels, H, W) → a smaller map of tokens (N, h, w, width).

    Args:
        channels: Input channels.
        width: Width of the tokens.
        patch: Side of a patch, in pixels.
        stride: Distance between patches, in pixels.
    """

    def __init__(self, channels: int, width: int, patch: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, stride=stride, padding=patch // 2)
        self.norm = nn.LayerNorm(width)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Embed the patches: (N, channels, H, W) → tokens (N, ⌈H/stride⌉, ⌈W/stride⌉, width)."""
        tokens: torch.Tensor = self.norm(self.proj(features).permute(0, 2, 3, 1))
        return tokens


class ShrunkAttention(nn.Module):
    """Self-attention whose keys and values come from a smaller version of the token map.

    Tokens (N, h, w, width) → the same shape.

    Args:
        width: Width of the tokens.
        heads: Attention heads.
        ratio: Factor by which each side of the token map is shrunk for keys and values.
    """

    def __init__(self, width: int, heads: int, ratio: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.kv, self.proj = (
            nn.Linear(width, width),
            nn.Linear(width, 2 * width),
            nn.Linear(width, width),
        )
        self.sr: nn.Module | None = None
        if ratio > 1:
            self.sr, self.norm = nn.Conv2d(width, width, ratio, stride=ratio), nn.LayerNorm(width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Apply the attention to tokens (N, h, w, width). The shape stays."""
        context = (
            tokens
            if self.sr is None
            else self.norm(self.sr(tokens.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        )
        key, value = torch.unflatten(
            self.kv(context.flatten(1, 2)), -1, (2, self.heads, -1)
        ).permute(2, 0, 3, 1, 4)
        query = torch.unflatten(self.q(tokens.flatten(1, 2)), -1, (self.heads, -1)).transpose(1, 2)
        attended = functional.scaled_dot_product_attention(query, key, value)
        mixed: torch.Tensor = self.proj(attended.transpose(1, 2).flatten(2))
        return mixed.view_as(tokens)


class MixMlp(nn.Module):
    """MLP of four times the width with a 3 × 3 convolution: (N, h, w, width) → the same shape."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dwconv = nn.ModuleDict(
            {"dwconv": nn.Conv2d(4 * width, 4 * width, 3, padding=1, groups=4 * width)}
        )

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Apply the MLP to tokens (N, h, w, width). The shape stays."""
        mixed = self.dwconv["dwconv"](self.fc1(tokens).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        output: torch.Tensor = self.fc2(functional.gelu(mixed))
        return output


class MixBlock(nn.Module):
    """Pre-norm transformer block with `ShrunkAttention`: (N, h, w, width) → the same shape.

    Args:
        width: Width of the tokens.
        heads: Attention heads.
        ratio: Factor by which the attention shrinks each side of the token map for keys and values.
    """

    def __init__(self, width: int, heads: int, ratio: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width, eps=EPS), ShrunkAttention(width, heads, ratio)
        self.norm2, self.mlp = nn.LayerNorm(width, eps=EPS), MixMlp(width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Apply attention and MLP, each with a residual, to tokens (N, h, w, width)."""
        tokens = tokens + self.attn(self.norm1(tokens))
        attended: torch.Tensor = tokens + self.mlp(self.norm2(tokens))
        return attended


class MixStage:
    """The modules of one encoder stage: `embed`, `blocks`, and `norm`.

    The class is not an `nn.Module`, because keys of checkpoints begin with `patch_embed1` or
    `block1`, without a prefix for the stage. The encoder registers the three modules under these
    names. The static method `run` applies them.

    Args:
        channels: Input channels.
        width: Width of the tokens.
        heads: Attention heads per block.
        depth: Number of blocks.
        ratio: Factor by which the attention shrinks each side of the token map for keys and values.
        first: Whether this is the first stage, which has larger patches.
    """

    def __init__(
        self, channels: int, width: int, *, heads: int, depth: int, ratio: int, first: bool
    ) -> None:
        self.embed = PatchEmbed(channels, width, 7 if first else 3, 4 if first else 2)
        self.blocks = nn.ModuleList(MixBlock(width, heads, ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=EPS)

    @staticmethod
    def run(features: torch.Tensor, embed: nn.Module, blocks: Any, norm: nn.Module) -> torch.Tensor:
        """Apply the parts of a stage to features.

        Args:
            features: Features (N, channels, H, W).
            embed: The `PatchEmbed`.
            blocks: The blocks.
            norm: The norm.

        Returns:
            Features (N, width, h, w).
        """
        tokens = embed(features)
        for block in blocks:
            tokens = block(tokens)
        normed: torch.Tensor = norm(tokens)
        return normed.permute(0, 3, 1, 2)


# 3 × 3 convolutions, so a pixel's fingerprint depends on 17 pixels to every side.
NOISE_LAYERS = 17
# Rows of the image per pass of the fingerprint. 64 channels of a whole photo would take gigabytes.
BAND = 512
# Factor of the channel weights and of the spatial weights with which a branch corrects the other.
HALF = 0.5


def noise_layers() -> nn.Sequential:
    """Build Noiseprint++, which computes a fingerprint: traces of the camera in an image.

    Colours (N, 3, H, W), 0 to 255/256 → the fingerprint (N, 1, H, W).
    """
    first, last = nn.Conv2d(3, 64, 3, padding=1), nn.Conv2d(64, 1, 3, padding=1)
    middle = [
        (nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True))
        for _ in range(NOISE_LAYERS - 2)
    ]
    return nn.Sequential(first, nn.ReLU(inplace=True), *chain.from_iterable(middle), last)


class Rectification(nn.Module):
    """Correct two maps (N, C, H, W) with each other: features of colours and of the fingerprint.

    A weighted copy of each map is added to the other map. The weights depend on both maps: one per
    channel, and one per position.

    Args:
        width: Channels C of each map.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        by_channel = [
            nn.Linear(4 * width, 4 * width),
            nn.ReLU(),
            nn.Linear(4 * width, 2 * width),
            nn.Sigmoid(),
        ]
        by_position = [
            nn.Conv2d(2 * width, width, 1),
            nn.ReLU(),
            nn.Conv2d(width, 2, 1),
            nn.Sigmoid(),
        ]
        self.channel_weights = nn.ModuleDict({"mlp": nn.Sequential(*by_channel)})
        self.spatial_weights = nn.ModuleDict({"mlp": nn.Sequential(*by_position)})

    def forward(
        self, colours: torch.Tensor, noise: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the corrected map of the colours and the corrected map of the fingerprint."""
        both = torch.cat([colours, noise], 1)
        to_noise, to_colours = self.channel_weights["mlp"](
            torch.cat([both.mean((2, 3)), both.amax((2, 3))], 1)
        )[..., None, None].chunk(2, 1)
        spatial_noise, spatial_colours = self.spatial_weights["mlp"](both).chunk(2, 1)
        return colours + HALF * (to_colours + spatial_colours) * noise, noise + HALF * (
            to_noise + spatial_noise
        ) * colours


class CrossAttention(nn.Module):
    """Let each of two token sequences (N, T, C) attend to the other sequence.

    The attention is linear in T: the product of keys and values is computed first, and has only (C
    / heads)² numbers per head.

    Args:
        width: Width C of the tokens.
        heads: Attention heads.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.kv1 = nn.Linear(width, 2 * width, bias=False)
        self.kv2 = nn.Linear(width, 2 * width, bias=False)

    def forward(
        self, first: torch.Tensor, second: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the output (N, T, C) of the attention for each of the two sequences."""
        contexts = [
            self._context(layer(tokens))
            for layer, tokens in ((self.kv1, first), (self.kv2, second))
        ]
        return self._read(first, contexts[1]), self._read(second, contexts[0])

    def _context(self, packed: torch.Tensor) -> torch.Tensor:
        key, value = torch.unflatten(packed, -1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        scores: torch.Tensor = key.transpose(-2, -1) @ value * key.shape[-1] ** -0.5
        return scores.softmax(-2)

    def _read(self, tokens: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        queries = torch.unflatten(tokens, -1, (self.heads, -1)).transpose(1, 2)
        return (queries @ context).transpose(1, 2).flatten(2)


class CrossPath(nn.Module):
    """Exchange information between two token sequences (N, T, C).

    Each sequence is projected to two halves. The second half attends to the second half of the
    other sequence. The first half and the result are then projected and added to the sequence.

    Args:
        width: Width C of the tokens.
        heads: Attention heads.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.channel_proj1, self.channel_proj2 = (
            nn.Linear(width, 2 * width),
            nn.Linear(width, 2 * width),
        )
        self.cross_attn = CrossAttention(width, heads)
        self.end_proj1, self.end_proj2 = nn.Linear(2 * width, width), nn.Linear(2 * width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(
        self, first: torch.Tensor, second: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return both token sequences (N, T, C), each with information of the other added."""
        own1, shared1 = self.channel_proj1(first).relu().chunk(2, -1)
        own2, shared2 = self.channel_proj2(second).relu().chunk(2, -1)
        read1, read2 = self.cross_attn(shared1, shared2)
        first = self.norm1(first + self.end_proj1(torch.cat([own1, read1], -1)))
        return first, self.norm2(second + self.end_proj2(torch.cat([own2, read2], -1)))


class Fusion(nn.Module):
    """Fuse two maps (N, C, H, W), of the colours and of the fingerprint, into one.

    The maps exchange information with `CrossPath` before they are joined.

    Args:
        width: Channels C of each map.
        heads: Attention heads.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.cross = CrossPath(width, heads)
        steps = [
            nn.Conv2d(2 * width, width, 1),
            nn.Conv2d(width, width, 3, padding=1, groups=width),
            nn.ReLU(),
            nn.Conv2d(width, width, 1),
        ]
        self.channel_emb = nn.ModuleDict({
            "residual": nn.Conv2d(2 * width, width, 1, bias=False),
            "channel_embed": nn.Sequential(*steps, nn.BatchNorm2d(width)),
            "norm": nn.BatchNorm2d(width),
        })  # fmt: skip

    def forward(self, colours: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Return the map (N, C, H, W) that fuses both inputs."""
        crossed = self.cross(
            *(features.flatten(2).transpose(1, 2) for features in (colours, noise))
        )
        both = torch.unflatten(torch.cat(crossed, -1).transpose(1, 2), 2, colours.shape[2:])
        embed = self.channel_emb
        fused: torch.Tensor = embed["norm"](embed["residual"](both) + embed["channel_embed"](both))
        return fused


class DualEncoder(nn.Module):
    """Encode colours and fingerprint, (N, 3, H, W) each, to four fused maps.

    The sides of the maps are 1/4, 1/8, 1/16, and 1/32 of those of the image.

    Args:
        widths: Width per stage.
        heads: Attention heads per stage.
        depths: Blocks per stage.
        ratios: Factor per stage by which the attention shrinks each side of the token map for keys
            and values.
    """

    def __init__(
        self,
        widths: Sequence[int],
        heads: Sequence[int],
        depths: Sequence[int],
        ratios: Sequence[int],
    ) -> None:
        super().__init__()
        stages = list(zip([3, *widths], widths, heads, depths, ratios, strict=False))
        # The authors number the parts of the stages. `extra_` is the branch of the fingerprint.
        for branch in ("", "extra_"):
            for number, (channels, width, head, depth, ratio) in enumerate(stages, start=1):
                stage = MixStage(
                    channels, width, heads=head, depth=depth, ratio=ratio, first=number == 1
                )
                for name, part in (
                    ("patch_embed", stage.embed),
                    ("block", stage.blocks),
                    ("norm", stage.norm),
                ):
                    self.add_module(f"{branch}{name}{number}", part)
        self.FRMs = nn.ModuleList(Rectification(width) for width in widths)
        self.FFMs = nn.ModuleList(
            Fusion(width, head) for width, head in zip(widths, heads, strict=True)
        )

    def forward(self, colours: torch.Tensor, noise: torch.Tensor) -> list[torch.Tensor]:
        """Return the four fused maps (N, width, h, w), the largest first."""
        maps = []
        for number, (rectify, fuse) in enumerate(zip(self.FRMs, self.FFMs, strict=True), start=1):
            colours, noise = rectify(
                self._stage("", number, colours), self._stage("extra_", number, noise)
            )
            maps.append(fuse(colours, noise))
        return maps

    def _stage(self, branch: str, number: int, features: torch.Tensor) -> torch.Tensor:
        parts = [
            self.get_submodule(f"{branch}{name}{number}")
            for name in ("patch_embed", "block", "norm")
        ]
        return MixStage.run(features, *parts)


class MlpDecoder(nn.Module):
    """Decode four maps of an encoder to logits (N, classes, h, w), in the size of the largest map.

    Args:
        widths: Channels of the maps.
        width: Channels of the decoder.
        classes: Logits per position.
        eps: Epsilon of the batch norm.
    """

    def __init__(self, widths: Sequence[int], width: int, classes: int, eps: float) -> None:
        super().__init__()
        for number, channels in enumerate(widths, start=1):
            self.add_module(
                f"linear_c{number}", nn.ModuleDict({"proj": nn.Linear(channels, width)})
            )
        self.linear_fuse = nn.Sequential(
            nn.Conv2d(4 * width, width, 1), nn.BatchNorm2d(width, eps=eps), nn.ReLU()
        )
        self.linear_pred = nn.Conv2d(width, classes, 1)

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
        """Return the logits (N, classes, h, w). `maps` has the largest map first."""
        convolution, norm, relu = self.linear_fuse
        fused = fused_maps(
            map(self._project, (4, 3, 2, 1), reversed(maps)),
            cast(nn.Conv2d, convolution),
            maps[0].shape[2:],
        )
        decoded: torch.Tensor = self.linear_pred(relu(norm(fused)))
        return decoded

    def _project(self, number: int, features: torch.Tensor) -> torch.Tensor:
        projected = self.get_submodule(f"linear_c{number}.proj")(
            features.flatten(2).transpose(1, 2)
        )
        return torch.unflatten(projected.transpose(1, 2), 2, features.shape[2:])


class TruFor(nn.Module):
    """TruFor: colours (N, 3, H, W), 0 to 255/256, any size → log-odds (N, 1), masks (N, H, W).

    Positive log-odds mean that the image was altered. The masks have the probability that a pixel
    was altered. The defaults are the published sizes, with 68,697,421 parameters.

    Args:
        widths: Width per stage of the encoder.
        heads: Attention heads per stage.
        depths: Blocks per stage.
        ratios: Factor per stage by which the attention shrinks each side of the token map for keys
            and values.
        decoder_width: Channels of the decoders.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self, *, widths: Sequence[int] = (64, 128, 320, 512), heads: Sequence[int] = (1, 2, 5, 8), depths: Sequence[int] = (3, 4, 6, 3),
        ratios: Sequence[int] = (8, 4, 2, 1), decoder_width: int = 512,
    ) -> None:  # fmt: skip
        super().__init__()
        self.dncnn = noise_layers()
        self.backbone = DualEncoder(widths, heads, depths, ratios)
        # The authors' function that initialises the first decoder also sets its epsilon. The second
        # decoder has torch's.
        self.decode_head = MlpDecoder(widths, decoder_width, classes=2, eps=1e-3)
        self.decode_head_conf = MlpDecoder(widths, decoder_width, classes=1, eps=1e-5)
        self.detection = nn.Sequential(
            nn.Linear(8, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 1)
        )
        for name, values in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)

    def forward(self, pixels: torch.Tensor) -> Prediction:
        """Return log-odds (N, 1) and masks (N, H, W) for colours (N, 3, H, W), 0 to 255/256."""
        altered, confidence = self.maps(pixels)
        statistics = torch.cat(
            [_statistics(confidence), _statistics(altered, functional.logsigmoid(confidence))], 1
        )
        return Prediction(self.detection(statistics), altered.sigmoid())

    def maps(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return two maps (N, H, W): log-odds that a pixel was altered, and their confidence.

        The confidence is the log-odds that the first map is right about the pixel. `pixels` are
        colours (N, 3, H, W), 0 to 255/256.
        """
        noise = self.noiseprint(pixels).expand(-1, 3, -1, -1)
        maps = self.backbone((pixels - self.mean) / self.std, noise)
        outputs = [
            functional.interpolate(
                decode(maps), size=pixels.shape[2:], mode="bilinear", align_corners=False
            )
            for decode in (self.decode_head, self.decode_head_conf)
        ]
        return outputs[0][:, 1] - outputs[0][:, 0], outputs[1][:, 0]

    def noiseprint(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the fingerprint (N, 1, H, W) of colours (N, 3, H, W): traces of the camera.

        It is computed in overlapping bands of rows, because a whole photo would need gigabytes.
        """
        height, bands = pixels.shape[2], []
        for top in range(0, height, BAND):
            first = max(top - NOISE_LAYERS, 0)
            band = self.dncnn(pixels[:, :, first : top + BAND + NOISE_LAYERS])
            bands.append(band[:, :, top - first : top - first + BAND])
        return torch.cat(bands, 2)


def _statistics(values: torch.Tensor, log_weights: torch.Tensor | None = None) -> torch.Tensor:
    """Compute weighted statistics over the positions of (N, H, W): (N, 4).

    They are a soft minimum, a soft maximum, the mean, and the mean square.
    """
    values = values.flatten(1).float()
    log_weights = (
        torch.zeros_like(values) if log_weights is None else log_weights.flatten(1).float()
    )
    log_weights = log_weights.log_softmax(-1)
    weights = log_weights.exp()
    soft_min, soft_max = -(log_weights - values).logsumexp(-1), (log_weights + values).logsumexp(-1)
    return torch.stack(
        [soft_min, soft_max, (weights * values).sum(-1), (weights * values.square()).sum(-1)], 1
    )
