"""AEROBLADE: distances as the authors' LPIPS measures them on diffusers' autoencoder; files in the
published formats.

Golden values: jonasricker/aeroblade at 50fc2b2, `_PatchedLPIPS(net="vgg", spatial=True)` with lpips
0.1.4 and its 8-bit reconstructions, on diffusers 0.42.1's AutoencoderKL (latent's mode), unedited;
VGG, autoencoder and here the linear layers are filled by formula.
"""

import pytest
import torch

from benchmarks.seeded import seeded_card, write_weights
from ray_app.detectors import load_card, load_detector
from ray_app.detectors.detector import build_network
from ray_app.detectors.families import aeroblade
from ray_app.errors import DetectorError
from tests.make.networks.fill import fill, pattern_image, with_part, with_tower

AUTOENCODER = {"widths": [8, 16, 16, 16], "layers": 1, "groups": 4}
DISTANCES = {(96, 64): 0.0366593, (64, 128): 0.0372411}


def small_card():
    return with_tower(load_card("aeroblade"), **AUTOENCODER)


def vgg():
    shapes = {}
    for place, (before, width) in aeroblade.CONVOLUTIONS.items():
        shapes[f"features.{place}.weight"] = (width, before, 3, 3)
        shapes[f"features.{place}.bias"] = (width,)
    return fill({name: torch.empty(shape) for name, shape in shapes.items()})


@pytest.fixture(scope="module")
def small():
    network = build_network(small_card())
    network.backbone.load_state_dict(fill(network.backbone.state_dict()))
    lins = {key: tensor for key, tensor in network.state_dict().items() if key.startswith("lin")}
    # LPIPS' own weights are positive; so are these.
    network.load_state_dict({key: tensor.abs() for key, tensor in fill(lins).items()}, strict=False)
    network.take_vgg(vgg(), "formula")
    return network


def pixels(height, width):
    return torch.from_numpy(pattern_image(height, width)).permute(2, 0, 1)[None].float() / 127.5 - 1


@torch.inference_mode()
def test_distances_are_the_authors(small):
    for size, distance in DISTANCES.items():
        assert small(pixels(*size)).item() == pytest.approx(-distance, abs=1e-5), size


@torch.inference_mode()
def test_pixels_beyond_a_multiple_of_8_are_dropped(small):
    assert small(pixels(71, 133)).item() == small(pixels(71, 133)[..., :64, :128]).item()


def test_the_autoencoder_has_the_published_names_old_and_new():
    with torch.device("meta"):
        network = aeroblade.KlAutoencoder()
    modern = network.state_dict()
    assert modern["encoder.mid_block.attentions.0.to_out.0.weight"].shape == (512, 512)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for key, tensor in modern.items():
        for new, before in old.items():
            key = key.replace(f"attentions.0.{new}.", f"attentions.0.{before}.")
        renamed[key] = tensor
    assert renamed.keys() != modern.keys()
    assert aeroblade.rename_attention(renamed).keys() == modern.keys()
    assert aeroblade.rename_attention(modern).keys() == modern.keys()


def test_files_in_the_published_formats_are_loaded_and_score(tmp_path):
    card = seeded_card(with_part(small_card(), "preprocessing", center_crop=64), tmp_path)
    with pytest.raises(DetectorError, match="VGG-16"):
        load_detector(card)
    write_weights(tmp_path / aeroblade.VGG, {"features.0.weight": torch.zeros(64, 3, 3, 3)})
    with pytest.raises(DetectorError, match=r"features\.0\.bias"):
        load_detector(card)
    write_weights(tmp_path / aeroblade.VGG, {**vgg(), "classifier.0.bias": torch.zeros(3)})
    detector = load_detector(card, precision="fp32", slots=1)
    scores = detector.score(torch.from_numpy(pattern_image(64, 64))[None])
    assert scores.shape == (1,)
    assert torch.isfinite(torch.from_numpy(scores)).all()
