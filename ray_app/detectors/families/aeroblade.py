"""The `aeroblade` family: how well a generator's autoencoder reproduces an image, as LPIPS measures it; nothing is trained.

`backbone` is the autoencoder, a card's own file LPIPS' linear layers, and beside that lies torchvision's VGG-16, of which the first four
convolutions are taken. Sources: Ricker et al., CVPR 2024 (arXiv 2401.17879); LPIPS: Zhang et al., CVPR 2018 (arXiv 1801.03924).
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from ray_app.detectors.card import DetectorCard, Weights
from ray_app.detectors.detector import BACKBONE
from ray_app.detectors.families.kl_autoencoder import KlAutoencoder, modern_names
from ray_app.detectors.weights import read_state_dict
from ray_app.errors import DetectorError

VGG = "vgg16-397923af.pth"
CONVOLUTIONS = {0: (3, 64), 2: (64, 64), 5: (64, 128), 7: (128, 128)}  # of VGG-16's `features`, to the end of the second layer of LPIPS
POOL_BEFORE = 5
STAGES = (64, 128, 256, 512, 512)  # channels of LPIPS' five layers, all of which its file has
LAYER = 1  # the second one, which the authors found best
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # LPIPS' own constants for pixels of −1 to 1
EPS = 1e-10


class Aeroblade(nn.Module):
    """Pixels (N, 3, H, W) of −1 to 1 → minus the distance (N, 1) between an image and its reconstruction: near 0 is likely fake.

    Of sides that are no multiples of 8 the last rows or columns are dropped. VGG's weights are buffers: they come by `attach`.
    """

    shift: torch.Tensor
    scale: torch.Tensor

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        for number, channels in enumerate(STAGES):
            layer = nn.Conv2d(channels, 1, 1, bias=False)
            self.add_module(f"lin{number}", nn.ModuleDict({"model": nn.Sequential(nn.Dropout(), layer)}))
        for name, values in (("shift", SHIFT), ("scale", SCALE)):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)
        for place, (before, width) in CONVOLUTIONS.items():
            self.register_buffer(f"weight{place}", torch.zeros(width, before, 3, 3), persistent=False)
            self.register_buffer(f"bias{place}", torch.zeros(width), persistent=False)

    def attach(self, folder: Path) -> None:
        """Take VGG's convolutions from the file in that folder. Raises DetectorError."""
        path = folder / VGG
        if not path.is_file():
            raise DetectorError(f"{path}: AEROBLADE measures with VGG-16, which is not there", hint=f"put torchvision's {VGG} beside")
        described = Weights(uri=VGG, unverified="the card says what is known of it, in `beside`", format="torch", select="features.")
        self.take_vgg(read_state_dict(path, described), str(path))

    def take_vgg(self, state: Mapping[str, torch.Tensor], where: str) -> None:
        """The four convolutions of a state dict of torchvision's VGG-16. Raises DetectorError where one is missing or of another shape."""
        for place in CONVOLUTIONS:
            for leaf in ("weight", "bias"):
                key, own = f"features.{place}.{leaf}", self.get_buffer(f"{leaf}{place}")
                if key not in state or state[key].shape != own.shape:
                    raise DetectorError(f"{where}: {key} is not VGG-16's", hint=f"take torchvision's {VGG}")
                own.copy_(state[key])

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Score a batch; see the class for shapes."""
        height, width = (side // 8 * 8 for side in pixels.shape[2:])
        pixels = pixels[..., :height, :width]
        # As the authors' 8-bit files: clipped, and cut down to a whole grey level.
        rebuilt = ((self.backbone(pixels).float() / 2 + 0.5).clamp(0, 1) * 255).floor() / 255 * 2 - 1
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
            features = functional.conv2d(features, self.get_buffer(f"weight{place}"), self.get_buffer(f"bias{place}"), padding=1).relu()
        return features / (features.square().sum(1, keepdim=True).sqrt() + EPS)


def published_keys(state: Mapping[str, torch.Tensor], network: nn.Module) -> Mapping[str, torch.Tensor]:
    """Files of autoencoders have older names than the network."""
    return modern_names(state) if isinstance(network, KlAutoencoder) else state


def build(card: DetectorCard) -> nn.Module:
    """The network that a card of family `aeroblade` describes, without weights. Raises DetectorError."""
    if card.backbone is None:
        raise DetectorError(f"{card.name}: aeroblade needs an autoencoder", hint=f"name one as `{BACKBONE}`")
    if card.architecture.arguments:
        raise DetectorError(f"{card.name}: architecture.arguments: aeroblade takes none, not {', '.join(card.architecture.arguments)}")
    return Aeroblade(KlAutoencoder(**card.backbone.architecture.arguments))
