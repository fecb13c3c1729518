import numpy as np
import pytest
import torch

from ray_app.datasets.simulation.camera import CAMERAS
from ray_app.datasets.simulation.decoders import AUTOENCODERS, DECODERS, Autoencoder, TrainedDecoder, train_autoencoder
from ray_app.datasets.simulation.scenes import render


@pytest.fixture(scope="module")
def picture():
    rng = np.random.default_rng(5)
    return CAMERAS["reflex"].shoot(render("leaves", rng, 192, 256), rng)


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_repaints_the_same_content_in_the_same_place(name, picture):
    painted = DECODERS[name](picture, np.random.default_rng(6))
    assert painted.shape == picture.shape
    assert painted.dtype == np.uint8
    assert np.array_equal(painted, DECODERS[name](picture, np.random.default_rng(6)))
    assert abs(float(painted.mean()) - float(picture.mean())) < 6
    # A picture that were shifted by a pixel or two would correlate worse with the original than with its own neighbour.
    coarse = [block.reshape(12, 8, 16, 8, 3).mean(axis=(1, 3)).ravel() for block in (picture.astype(float), painted.astype(float))]
    assert np.corrcoef(coarse)[0, 1] > 0.93


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_an_autoencoder_keeps_shape(name, picture):
    torch.manual_seed(0)
    decode = TrainedDecoder(Autoencoder(AUTOENCODERS[name]).eval())
    assert decode(picture, np.random.default_rng(1)).shape == picture.shape


def test_training_an_autoencoder_lowers_its_error_and_repeats(picture):
    plan = AUTOENCODERS["ae-bilinear2"]
    few, many, again = (train_autoencoder(plan, [picture], seed=1, steps=steps) for steps in (1, 8, 8))
    errors = [float(np.abs(net(picture, np.random.default_rng(1)).astype(int) - picture).mean()) for net in (few, many)]
    assert errors[1] < errors[0]
    for name, value in many.net.state_dict().items():
        assert torch.equal(value, again.net.state_dict()[name])
