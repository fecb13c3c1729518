"""Convolutional networks: what each computes of an image first, against the authors' own code; tiles,
small images, bf16, and the residual of a run. Their scores: test_golden.
"""

import json

import pytest
import torch
from torch.nn import functional

from ray_app.detectors import load_card
from ray_app.detectors.card import apply_run_settings
from ray_app.detectors.detector import build_network
from ray_app.detectors.families import resnet
from ray_app.detectors.families.ferretnet import FerretNet, median_residual
from ray_app.detectors.families.ladeda import LaDeDa9, TinyLaDeDa
from ray_app.detectors.precision import autocast, lower_to_bf16
from ray_app.errors import DetectorError
from tests.detectors.golden import SCORES, TENSORS, check, filled_network, prepared
from tests.make.networks.fill import filled, source, with_arguments

KINDS = ("npr", "left_diag", "raw", "right_diag", "x_grad", "y_grad")
RESNET50 = {"layers": (3, 4, 6, 3), "channels": (8, 8, 8, 8)}


def drawn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("card", ["npr", "npr:native", "ferretnet-s"])
def test_residual_is_the_authors(card):
    for image, golden in TENSORS[f"{card} residual"].items():
        pixels = prepared(card, image)
        found = (
            median_residual(pixels)
            if card == "ferretnet-s"
            else resnet.upsampling_residual(pixels) * (2 / 3)
        )
        check(found[0], golden)


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_residual_and_tiny_ladeda_are_the_authors(kind):
    pixels = prepared("tiny-ladeda", "97x61")
    residual = TENSORS["squash256" if kind == "raw" else f"tiny-ladeda {kind}"]["97x61"]
    check(resnet.residual_of(pixels, kind)[0], residual)
    logit = SCORES[f"tiny-ladeda {kind}"]["97x61"]
    assert filled(TinyLaDeDa(kind))(pixels).item() == pytest.approx(logit, abs=1e-4)


def test_diagonal_detail_is_the_authors():
    for image, golden in TENSORS["safe detail"].items():
        pixels = load_card("npr:native").preprocessing.prepare(source(image))
        pixels = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
        detail, size = resnet.diagonal_detail(pixels), pixels.shape[-2:]
        assert detail.shape[-2:] == tuple((side + 5) // 2 for side in size)
        check(functional.interpolate(detail, size, mode="bilinear", antialias=True)[0], golden)


def test_high_frequencies_are_the_authors():
    for image, golden in TENSORS["freqnet high"].items():
        check(resnet.high_pass(prepared("freqnet:native", image), (-2, -1))[0], golden)
    network = filled_network("freqnet")
    features = functional.conv2d(
        prepared("freqnet:native", "97x61"), network.weight1, network.bias1
    )
    across = TENSORS["freqnet across"]["97x61"]
    check(resnet.high_pass(features, (1,))[0], across, tolerance=1e-4)


@pytest.mark.parametrize(
    ("name", "smallest"), [("safe", (1, 1)), ("freqnet", (2, 2)), ("ferretnet-s", (1, 1))]
)
@torch.inference_mode()
def test_any_size_has_a_score(name, smallest):
    network = filled_network(name)
    for size in (smallest, (3, 9), (61, 34)):
        assert network(drawn(2, 3, *size)).isfinite().all(), size


# Not multiples of 8, smaller than a tile, one pixel over what fits into one window (64 + 2 × 56),
# long and thin; tiles not of whole cells.
@pytest.mark.parametrize(
    ("size", "tile"),
    [((1, 1), 64), ((7, 300), 64), ((177, 121), 64), ((50, 20), 8), ((61, 97), 45)],
)
@torch.inference_mode()
def test_tiles_keep_the_logit_of_corvi(size, tile):
    whole, cut = (filled(resnet.Corvi(**RESNET50, tile=side)) for side in (4096, tile))
    pixels = drawn(1, 3, *size)
    torch.testing.assert_close(cut(pixels), whole(pixels), atol=1e-5, rtol=0)
    torch.testing.assert_close(cut.logit_map(pixels), whole.logit_map(pixels), atol=1e-5, rtol=0)
    mean = cut.logit_map(pixels).mean(dim=(2, 3))
    torch.testing.assert_close(mean, cut(pixels), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("size", "tile"), [((2, 2), 64), ((43, 51), 8), ((163, 161), 45)])
@torch.inference_mode()
def test_tiles_keep_the_logit_of_npr(size, tile):
    pixels = drawn(2, 3, *size)
    whole, cut = (filled(resnet.Npr(tile=side))(pixels) for side in (1536, tile))
    torch.testing.assert_close(cut, whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["corvi2023", "npr"])
def test_tile_of_less_than_a_cell_is_refused(name):
    for tile in (0, 7, 64.0, "64"):
        said = f"tile must be a whole number of pixels, at least 8, got {tile!r}"
        with pytest.raises(DetectorError, match=said):
            build_network(with_arguments(load_card(name), {"tile": tile}))


@torch.inference_mode()
def test_npr_drops_an_odd_line_and_scores_no_line():
    network, pixels = filled(resnet.Npr()), drawn(1, 3, 97, 61)
    assert torch.equal(network(pixels), network(pixels[..., :96, :60]))
    assert network(torch.zeros(2, 3, 1, 40)).isnan().all()


@pytest.mark.parametrize(
    ("card", "build", "bound"), [("npr", resnet.Npr, 0.01), ("ferretnet-s", FerretNet, 0.005)]
)
@torch.inference_mode()
def test_bf16_stays_within_its_bound(card, build, bound):
    pixels = prepared(card, "97x61")
    with autocast("cpu", "bf16"):
        assert median_residual(pixels).dtype == torch.float32
        logit = lower_to_bf16(filled(build()), "cpu")(pixels).float()
    torch.testing.assert_close(logit, filled(build())(pixels), atol=bound, rtol=0)


def test_run_keeps_the_residual_that_it_was_scored_with():
    """Up to 0.11 the card meant the right diagonal; such a run resumes with it, under the card's own
    name.
    """
    today = load_card("tiny-ladeda")
    noted = json.loads(json.dumps(today.scoring_facts))
    noted["architecture"]["arguments"] = {"residual": "right_diag"}
    continued = apply_run_settings(today, noted)
    assert (continued.name, build_network(continued).residual) == ("tiny-ladeda", "right_diag")
    assert continued.weights == today.weights
    files = {"": "left_diag", ":right-diag": "right_diag", ":forensynth": "npr"}
    found = {name: build_network(load_card(f"tiny-ladeda{name}")).residual for name in files}
    assert found == files, "each published file has its own"


@torch.inference_mode()
def test_ladeda_patch_is_9_pixels_wide_every_8_pixels():
    network = filled(LaDeDa9("raw", layers=(1, 1, 1, 1), width=8))
    pixels = drawn(1, 3, 41, 57)
    maps = network.logit_map(pixels)
    assert maps.shape == (1, 1, 5, 7)
    patch = network(pixels[..., 16:25, 24:33])[0]
    torch.testing.assert_close(patch, maps[0, :, 2, 3], atol=1e-5, rtol=0)
    torch.testing.assert_close(maps.mean(dim=(2, 3)), network(pixels), atol=1e-6, rtol=0)
