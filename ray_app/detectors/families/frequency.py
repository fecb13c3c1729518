"""The `frequency` family: FreqNet, a short ResNet between whose layers only the high frequencies of its features are kept.

Under the authors' key names. Source: Tan et al., AAAI 2024 (arXiv 2403.07240).
"""

import torch
import torch.nn.functional as functional
from torch import nn

from ray_app.detectors.families.resnet import HALF, bottleneck_stages

_SPACE, _CHANNELS = (-2, -1), (1,)


def high_pass(features: torch.Tensor, dims: tuple[int, ...]) -> torch.Tensor:
    """Without the lowest half of the band along each of `dims` at once, and without what is then negative; any shape, the same in float32.

    Cut are the frequencies from −n // 4 to n // 4 − 1 cycles, of which only the first has no partner of the other sign. The authors drop
    the imaginary part that it leaves; cutting both halfway is the same, and a real transform does.
    """
    # In full precision whatever surrounds it: there is no Fourier transform of bf16.
    with torch.autocast(features.device.type, enabled=False):
        spectrum = torch.fft.rfftn(features.float(), dim=dims)
        low: list[torch.Tensor] = []
        for sign in (1, -1):
            box = torch.ones((1,) * features.ndim, device=features.device)
            for dim in dims:
                side = features.shape[dim]
                cycles = sign * torch.fft.fftfreq(side, 1 / side, device=features.device).round()
                if dim == dims[-1]:
                    cycles = cycles[: spectrum.shape[dim]]
                shape = [1] * features.ndim
                shape[dim] = -1
                box = box * ((cycles >= -(side // 4)) & (cycles < side // 4)).view(shape)
            low.append(box)
        kept = torch.fft.irfftn(spectrum * (1 - (low[0] + low[1]) / 2), s=[features.shape[dim] for dim in dims], dim=dims)
        return functional.relu_(kept)


def spectrum_convolved(features: torch.Tensor, real: nn.Module, imaginary: nn.Module) -> torch.Tensor:
    """One 1 × 1 convolution of the real parts of the features' spectrum, one of the imaginary parts, back to the image: the same shape.

    The real parts are the spectrum of what is even in the features around the origin, the imaginary ones of what is odd, so that nothing
    has to be transformed. What is then negative is cut.
    """
    turned = features.flip(_SPACE).roll((1, 1), _SPACE)
    mixed: torch.Tensor = real((features + turned) / 2) + imaginary((features - turned) / 2)
    return functional.relu_(mixed)


class FreqNet(nn.Module):
    """High frequencies of the image, then of features, between 1 × 1 convolutions and ResNet-50's layer1 and layer2; mean; one logit.

    Input: (N, 3, H, W), ImageNet-normalised, H and W at least 2. Output: (N, 1), log-odds of fake. `weight1` and `bias1` are the first of
    four 1 × 1 convolutions, of which the second and the fourth halve the map; `realconv1` and `imagconv1` work on the spectrum behind it.
    """

    def __init__(self) -> None:
        super().__init__()
        for number, (given, wide) in enumerate(((3, 64), (64, 64), (256, 256), (256, 256)), start=1):
            conv = nn.Conv2d(given, wide, 1)
            setattr(self, f"weight{number}", conv.weight)
            setattr(self, f"bias{number}", conv.bias)
            self.add_module(f"realconv{number}", nn.Conv2d(wide, wide, 1, bias=False))
            self.add_module(f"imagconv{number}", nn.Conv2d(wide, wide, 1, bias=False))
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        for name, stage in bottleneck_stages(*HALF):
            self.add_module(name, stage)
        self.fc1 = nn.Linear(512, 1)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Score a batch; see the class for shapes."""
        features = self.maxpool(self._mixed(self._mixed(pixels, 1), 2))
        features = self._mixed(self._mixed(self.get_submodule("layer1")(features), 3), 4)
        features = self.get_submodule("layer2")(features)
        logits: torch.Tensor = self.fc1(features.mean(dim=(-2, -1)))
        return logits

    def _mixed(self, features: torch.Tensor, number: int) -> torch.Tensor:
        weight, bias = self.get_parameter(f"weight{number}"), self.get_parameter(f"bias{number}")
        features = functional.relu_(functional.conv2d(high_pass(features, _SPACE), weight, bias, stride=2 - number % 2))
        if number < 3:
            features = high_pass(features, _CHANNELS)
        return spectrum_convolved(features, self.get_submodule(f"realconv{number}"), self.get_submodule(f"imagconv{number}"))
