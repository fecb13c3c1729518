"""SAFE and FreqNet against the authors' own code: filled weights, made images, every value a number in `golden_forensics.py`.

DRCT and AIDE: `families/`.
"""

import functools

import pytest
import torch

from benchmarks.seeded import seeded_card
from ray_app.detectors import load_card, load_detector
from ray_app.detectors.card import Architecture
from ray_app.detectors.detector import build_network, log_odds
from ray_app.detectors.families import frequency, wavelet
from ray_app.errors import DetectorError
from tests.detectors import golden_forensics as golden
from tests.detectors.fill import Undrawn, fill, source
from tests.detectors.golden import check
from tests.detectors.test_convnets import prepared


@functools.cache
def filled(name):
    with Undrawn():
        network = build_network(load_card(name))
    words, gain = golden.GAIN.get(name, ("-", 1.0))
    state = fill(network.state_dict()).items()
    network.load_state_dict({key: tensor * gain if key.startswith(tuple(words.split())) else tensor for key, tensor in state})
    return network.to(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", golden.FILLED)
def test_the_network_has_the_published_tensors(name):
    tensors, elements, total, absolute, parameters = golden.FILLED[name]
    state, size = filled(name).state_dict(), load_card(name).size
    assert (len(state), sum(tensor.numel() for tensor in state.values())) == (tensors, elements)
    assert (size.tensors, size.parameters) == (tensors, parameters)
    assert sum(tensor.double().sum().item() for tensor in state.values()) == pytest.approx(total, abs=1e-3)
    assert sum(tensor.double().abs().sum().item() for tensor in state.values()) == pytest.approx(absolute, abs=1e-2)


@pytest.mark.parametrize("name", golden.PREPARED)
def test_prepared_tensors_are_the_authors(name):
    for image, tensor in golden.PREPARED[name].items():
        check(prepared(name, image)[0], tensor)


def slow_but_for_two(name, image):
    return pytest.param(name, image, id=f"{name}-{image}", marks=[pytest.mark.slow] * (image not in ("97x61", "97x131")))


@pytest.mark.parametrize(("name", "image"), [slow_but_for_two(name, image) for name, images in golden.LOG_ODDS.items() for image in images])
@torch.inference_mode()
def test_log_odds_are_the_authors(name, image):
    card, network = load_card(name), filled(name.partition(":")[0])
    fake = 0 if card.output.sign is not None else card.output.index_among(card.output.labels)
    score = log_odds(card, fake, network(prepared(name, image)), 1).item()
    assert score == pytest.approx(golden.LOG_ODDS[name][image], abs=1e-4)


def test_the_diagonal_detail_is_the_authors():
    for image, tensor in golden.DETAIL.items():
        pixels = torch.from_numpy(load_card("npr:native").preprocessing.prepare(source(image))).permute(2, 0, 1)[None] / 255
        detail = wavelet.diagonal_detail(pixels)
        assert detail.shape[-2:] == tuple((side + 5) // 2 for side in pixels.shape[-2:])
        whole = torch.nn.functional.interpolate(detail, pixels.shape[-2:], mode="bilinear", antialias=True)
        check(whole[0], tensor)


def test_the_high_frequencies_are_the_authors():
    weight, bias = (filled("freqnet").get_parameter(name).detach() for name in ("weight1", "bias1"))
    for image, tensor in golden.HIGH.items():
        check(frequency.high_pass(prepared("freqnet:native", image), (-2, -1))[0], tensor)
    for image, tensor in golden.ACROSS.items():
        features = torch.nn.functional.conv2d(prepared("freqnet:native", image), weight, bias)
        check(frequency.high_pass(features, (1,))[0], tensor, tolerance=1e-4)


@pytest.mark.parametrize("size", [(8, 8), (7, 10), (5, 3)])
def test_the_convolution_of_the_spectrum_needs_no_transform(size):
    real, imaginary = (torch.nn.Conv2d(4, 4, 1, bias=False).requires_grad_(False) for _ in range(2))
    features = torch.randn(2, 4, *size)
    spectrum = torch.fft.fft2(features)
    expected = torch.fft.ifft2(torch.complex(real(spectrum.real), imaginary(spectrum.imag))).real.relu()
    torch.testing.assert_close(frequency.spectrum_convolved(features, real, imaginary), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("name", "smallest"), [("safe", (1, 1)), ("freqnet", (2, 2))])
@torch.inference_mode()
def test_any_size_has_a_score(name, smallest):
    for size in (smallest, (3, 9), (61, 34)):
        assert filled(name)(torch.randn(2, 3, *size)).isfinite().all(), size


@pytest.mark.parametrize("name", golden.FILLED)
def test_a_file_in_the_published_format_scores(name, tmp_path):
    detector = load_detector(seeded_card(name, tmp_path))
    scores = detector.score(torch.stack([torch.from_numpy(detector.prepare(source(image))) for image in ("300x400", "97x131")]))
    assert torch.as_tensor(scores).isfinite().all()
    assert scores[0] != scores[1]


@pytest.mark.parametrize("name", golden.FILLED)
def test_an_argument_that_the_family_does_not_know_is_named(name):
    card = load_card(name).model_copy(update={"architecture": Architecture(arguments={"depth": 3})})
    with pytest.raises(DetectorError, match="depth"):
        build_network(card)
