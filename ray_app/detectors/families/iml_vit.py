"""Build the `iml-vit` family, which finds altered pixels: a ViT encoder and a mask decoder.

The encoder is that of a masked autoencoder (`mae.MaeVit`). A feature pyramid of its tokens gives a
mask. The input has 1024 × 1024 pixels. Start at `ImlVit`. The key names are the authors'. Source:
Ma et al. 2023 (arXiv 2307.14863).
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from ray_app.detectors.card import DetectorCard
from ray_app.detectors.detector import Prediction
from ray_app.detectors.families import mae
from ray_app.detectors.families.maskclip import ChannelNorm


class NormedConv(nn.Conv2d):
    """Convolution without bias, then a layer norm over channels.

    The norm is a submodule of the convolution, so that the keys of its weights begin with `norm`,
    as in the published checkpoint.

    Args:
        channels: Input channels.
        width: Output channels.
        kernel: Side of the kernel.
    """

    def __init__(self, channels: int, width: int, kernel: int) -> None:
        super().__init__(channels, width, kernel, padding=kernel // 2, bias=False)
        self.norm = ChannelNorm(width)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Convolve and normalise: (N, channels, H, W) → (N, width, H, W)."""
        normed: torch.Tensor = self.norm(super().forward(features))
        return normed


class FeaturePyramid(nn.Module):
    """Compute maps of five sizes from a token map (N, tokens_width, G, G).

    Every map has `width` channels. The sides are 4G, 2G, G, G/2, and G/4.

    Args:
        tokens_width: Channels of the token map.
        width: Channels of each map.
    """

    def __init__(self, tokens_width: int, width: int) -> None:
        super().__init__()
        half, quarter = tokens_width // 2, tokens_width // 4
        twice = nn.ConvTranspose2d(tokens_width, half, 2, stride=2)
        four_times = [
            nn.ConvTranspose2d(tokens_width, half, 2, stride=2),
            ChannelNorm(half),
            nn.GELU(),
        ]
        self.simfp_2 = _scale(
            [*four_times, nn.ConvTranspose2d(half, quarter, 2, stride=2)], quarter, width
        )
        self.simfp_3 = _scale([twice], half, width)
        self.simfp_4 = _scale([], tokens_width, width)
        self.simfp_5 = _scale([nn.MaxPool2d(2)], tokens_width, width)

    def forward(self, tokens: torch.Tensor) -> list[torch.Tensor]:
        """Return the five maps, the largest first.

        The fifth map is every second row and column of the fourth.
        """
        maps = [stage(tokens) for stage in self.children()]
        return [*maps, maps[-1][..., ::2, ::2]]


def _scale(scaled: list[nn.Module], channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(*scaled, NormedConv(channels, width, 1), NormedConv(width, width, 3))


class PredictHead(nn.Module):
    """Fuse the five maps of a feature pyramid to one map of logits (N, 1, 4G, 4G).

    The maps have `pyramid_width` channels and different sizes. The output has the size of the
    largest map.

    Args:
        pyramid_width: Channels of each map.
        width: Channels of the fused map.
    """

    def __init__(self, pyramid_width: int, width: int) -> None:
        super().__init__()
        self.linear_fuse = nn.Conv2d(5 * pyramid_width, width, 1)
        self.norm = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout()
        self.linear_predict = nn.Conv2d(width, 1, 1)

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
        """Return the log-odds (N, 1, 4G, 4G) that a position was altered.

        `maps` are the five maps, the largest first.
        """
        features = self.dropout(
            self.norm(mae.fused_maps(maps, self.linear_fuse, maps[0].shape[2:]))
        )
        return mae.predicted_in_fp32(self.linear_predict, features)


class ImlVit(nn.Module):
    """IML-ViT: pixels (N, 3, S, S), normalised, black padding → log-odds (N, 1), masks (N, S, S).

    The paper defines only a mask. The score is the largest logit of the mask, which is usual for
    networks without an image-level output. Padding does not count: rows at the bottom and columns
    at the right that are completely `black` are left out. The defaults have 91,777,729 parameters
    with S = 1024.

    Args:
        image_size: Side S of the input in pixels.
        width: Width of the encoder's tokens.
        heads: Heads per block.
        pyramid_width: Channels of the pyramid's maps.
        head_width: Channels of the head.
        black: Normalised value of black, per channel.
    """

    black: torch.Tensor

    def __init__(
        self, *, image_size: int = 1024, width: int = 768, heads: int = 12, pyramid_width: int = 256, head_width: int = 256,
        black: Sequence[float] = (0.0, 0.0, 0.0),
    ) -> None:  # fmt: skip
        super().__init__()
        self.encoder_net = mae.MaeVit(image_size=image_size, width=width, heads=heads)
        self.featurePyramid_net = FeaturePyramid(width, pyramid_width)
        self.predict_head = PredictHead(pyramid_width, head_width)
        self.register_buffer("black", torch.tensor(black)[:, None, None], persistent=False)

    def forward(self, pixels: torch.Tensor) -> Prediction:
        """Return log-odds (N, 1) and masks (N, S, S) for pixels (N, 3, S, S), normalised."""
        logits = self.mask_logits(pixels)
        in_image = self._image(pixels)
        return Prediction(
            logits.masked_fill(~in_image, -torch.inf).amax((1, 2))[:, None], logits.sigmoid()
        )

    def mask_logits(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the log-odds that a pixel was altered: (N, S, S)."""
        tokens = self.encoder_net.embed(pixels)
        for block in self.encoder_net.blocks:
            tokens = block(tokens)
        low = self.predict_head(self.featurePyramid_net(tokens.permute(0, 3, 1, 2)))
        return functional.interpolate(
            low, size=pixels.shape[2:], mode="bilinear", align_corners=False
        )[:, 0]

    def _image(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the area of the image without padding: bool (N, S, S).

        It is the rectangle from the upper left corner to the last row and column with a pixel that
        is not black. If all pixels are black, it is everything.
        """
        # About a quarter of the smallest grey level, since normalised black is exact only up to the
        # last bits.
        bright = ((pixels - self.black).abs() > 0.004).any(1)
        # All rows and columns up to the last bright one.
        rows, columns = (bright.any(axis).flip(1).cumsum(1).flip(1) > 0 for axis in (2, 1))
        return rows[:, :, None] & columns[:, None, :] | ~bright.any((1, 2))[:, None, None]


def build(card: DetectorCard) -> nn.Module:
    """Build the network of a card, without weights.

    The card's `architecture.arguments` are those of `ImlVit` except `black`, which follows from the
    card's mean and standard deviation.
    """
    constants = zip(card.preprocessing.mean, card.preprocessing.std, strict=True)
    return ImlVit(
        **card.architecture.arguments, black=tuple(-mean / std for mean, std in constants)
    )
