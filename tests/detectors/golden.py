"""Golden values of the detectors: measured with the authors' own, unedited code and transforms on
formula-filled weights (`fill`) and images.

Image `HxW` is `pattern_image(H, W)`. Log-odds of fake: fp32, CPU, batch 1. Measured with Pillow 12.3,
torch 2.15, torchvision 0.29.2, timm 1.0.31, transformers 5.23, open_clip 3.3. A network named
`… narrow` has the small widths that its test states.

golden_values/tensors.csv: mean, population standard deviation, and the values at `places`. A name is
a way to prepare an image, or `CARD residual`, …: what the network computes first.
golden_values/scores.csv: `CARD@RESAMPLER` is a card with another resampler.
golden_values/masks.csv: of a mask the mean, the minimum, the pixels above 0.5, and `mask_places`.

AIDE: shilinyan99/AIDE at 6725b71, `TestDataset` and `AIDE_Model`. AEROBLADE: test_aeroblade.
B-Free: grip-unina/B-Free at c6a9f89, `get_network` and `get_list_norm("resnet")`.
C2P-CLIP: chuangchuangtan/C2P-CLIP-DeepfakeDetection at 27b5232, `C2P_CLIP` behind the transform of
data.py, transformers 4.53.2. DDA: roy-ch/Dual-Data-Alignment at 21f1e39, `DINOv2ModelWithLoRA` on
facebookresearch/dinov2 at b8931f7. DRCT: beibuwandeluori/DRCT at 01aa7d0, `create_val_transforms(224,
is_crop=True)` with albumentations 1.3.1, `get_models` with an embedding of 1,024.
Effort: YZY-stack/Effort-AIGI-Detection at 96f5dea, `EffortDetector` behind `preprocess_face`.
FatFormer: Michel-liu/FatFormer at febc24c, `CLIPModel` behind `Dataset_Creator`, pytorch_wavelets
1.3.0. FreqNet: chuangchuangtan's 2c6bd02, as henrifola/FreqNet-DeepfakeDetection has it,
`binary_dataset` (no_crop). GAPL: UltraCapture/GAPL at ea32aeb, `GAPLModel`, peft 0.21.2.
IML-ViT: SunnyHaze/IML-ViT at 07dd2be, `iml_vit_model` (narrow: its parts, put together as its
constructor does) on the image padded to the upper left and normalised as albumentations does, masks
cut as Demo.ipynb cuts them. RINE: mever-team/rine at 9b7fd58, `src.models.Model` behind
`get_transforms()[1]`. SAFE: Ouxiang-Li/SAFE at 722620a, `Get_Transforms` (crop 256, eval),
pytorch_wavelets 1.3.0. TruFor: grip-unina/TruFor at ae54475, `myEncoderDecoder(cfg)` of trufor.yaml
on pixels / 256, then softmax as trufor_test.py takes it.
"""

import csv
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from benchmarks.seeded import PUBLISHED_PREFIX
from ray_app.detectors import load_card
from ray_app.detectors.detector import BACKBONE, Detector, Normalise, build_network, rename_keys
from tests.make.networks.fill import Undrawn, fill, source, with_part


class Tensor(NamedTuple):
    """A tensor's shape, mean, population standard deviation, and the values at `places`."""

    shape: tuple
    mean: float
    std: float
    values: tuple


class Mask(NamedTuple):
    """The (height, width) of an image, its score, and of its mask the mean, the minimum, the pixels
    above 0.5, and the values at `mask_places`.
    """

    size: tuple
    score: float
    mean: float
    least: float
    above: int
    values: tuple


def _rows(table):
    path = Path(__file__).parent / "golden_values" / f"{table}.csv"
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))[1:]


TENSORS: dict[str, dict[str, Tensor]] = defaultdict(dict)
for name, image, shape, *numbers in _rows("tensors"):
    mean, std, *values = map(float, numbers)
    TENSORS[name][image] = Tensor(tuple(map(int, shape.split("x"))), mean, std, tuple(values))
# By network and image; and by network the name of its prepared tensors.
SCORES: dict[str, dict[str, float]] = defaultdict(dict)
PREPARED = {
    "clip-d-10k-plus:thumb1024": "clip-d-10k-plus:thumb1024",
    "unifd:squash256-crop224": "unifd:squash256-crop224",
    "drct-clip-vit-l14": "crop224-down",
}
for network, prepared_as, image, log_odds in _rows("scores"):
    SCORES[network][image] = float(log_odds)
    if prepared_as:
        PREPARED[network] = prepared_as
MASKS: dict[str, list[Mask]] = defaultdict(list)
for network, *numbers in _rows("masks"):
    height, width, score, mean, least, above, *values = map(float, numbers)
    size = (int(height), int(width))
    MASKS[network].append(Mask(size, score, mean, least, int(above), tuple(values)))

# FreqNet's filled 1 × 1 convolutions are 3 times as large: at their usual size nothing of the image
# would reach its logit.
GAIN = {"freqnet": (("weight", "realconv", "imagconv"), 3.0)}


def places(shape):
    channels, height, width = shape
    return (
        (0, 0, 0),
        (1 % channels, height // 2, width // 2),
        (2 % channels, height - 1, width - 1),
        (0, height // 3, 2 * width // 3),
        (2 % channels, 2 * height // 3, width // 4),
    )


def mask_places(size):
    """Six places of an image: four corners and two inside."""
    height, width = size
    inside = (height // 3, width // 2), (height // 2, width // 3)
    return (0, 0), *inside, (height - 1, 0), (0, width - 1), (height - 1, width - 1)


def check(tensor, golden, tolerance=1e-5):
    found, wide = [tensor[place].item() for place in places(golden.shape)], tensor.double()
    assert tuple(tensor.shape) == golden.shape
    assert wide.mean().item() == pytest.approx(golden.mean, abs=tolerance)
    assert wide.std(correction=0).item() == pytest.approx(golden.std, abs=tolerance)
    assert found == pytest.approx(list(golden.values), abs=tolerance)


def check_mask(score, mask, golden, tolerance=1e-5):
    found = [mask[place].item() for place in mask_places(golden.size)]
    assert tuple(mask.shape) == golden.size
    assert score == pytest.approx(golden.score, abs=tolerance)
    assert found == pytest.approx(golden.values, abs=tolerance)
    assert mask.mean().item() == pytest.approx(golden.mean, abs=tolerance)
    assert mask.min().item() == pytest.approx(golden.least, abs=tolerance)
    assert abs(int((mask > 0.5).sum()) - golden.above) <= 5


def near(expected, relative=1e-4):
    return pytest.approx(expected, abs=relative * max(1, abs(expected)))


def check_scores(detector, network):
    """Compare a detector's scores with the golden ones of `network`."""
    for image, expected in SCORES[network].items():
        assert score_image(detector, image) == near(expected), image


def score_image(detector, image):
    return detector.score(detector.prepare(source(image))[None])[0]


def golden_card(name):
    """Load `CARD` or `CARD@RESAMPLER`."""
    name, _, resampler = name.partition("@")
    card = load_card(name)
    if not resampler:
        return card
    return with_part(card, "preprocessing", resampler=resampler)


def prepared(name, image):
    """Prepare and normalise a made image as a card does, as a batch of one."""
    preprocessing = golden_card(name).preprocessing
    return Normalise(preprocessing)(torch.from_numpy(preprocessing.prepare(source(image))[None]))


def filled_state(name):
    """Fill the published tensors of a card's network, by the published names."""
    with torch.device("meta"):
        network = build_network(load_card(name))
    prefix, (gained, gain) = PUBLISHED_PREFIX.get(name, ""), GAIN.get(name, ((), 1.0))
    state = fill({_published(prefix, key): tensor for key, tensor in network.state_dict().items()})
    return {
        key: tensor * gain if key.startswith(gained) else tensor for key, tensor in state.items()
    }


def _published(prefix, key):
    tower = key.removeprefix(f"{BACKBONE}.")
    return prefix + key if tower == key else f"visual.{tower}"


def filled_network(name, head=None):
    """Build a published network with filled weights, or with these tensors of its own file."""
    card, state = load_card(name), filled_state(name)
    with Undrawn():
        network = build_network(card).requires_grad_(False)
    prefix, keys = PUBLISHED_PREFIX.get(name, ""), network.state_dict().keys()
    own = {key: state[_published(prefix, key)] for key in keys}
    network.load_state_dict(own | (rename_keys(card, head, network) if head else {}), assign=True)
    return network.to(memory_format=torch.channels_last)


def filled_detector(card, network, precision="fp32", slots=1):
    """Return the card's detector with this network."""
    fake = 0 if card.output.sign else card.output.index_among(card.output.labels)
    return Detector(card, network, fake=fake, device="cpu", precision=precision, resize="exact",
                    slots=slots, weights_sha256="0" * 64)  # fmt: skip
