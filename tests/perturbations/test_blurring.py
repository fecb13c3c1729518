"""The blur against torchvision's, with which OpenFake's second recipe was made."""

import numpy as np
import pytest
from torchvision.transforms.v2.functional import gaussian_blur

from ray_app.perturbations.blurring import blurred, gaussian_taps
from tests.images.factory import photo


@pytest.mark.parametrize(("size", "sigma"), [(3, 0.3), (5, 0.1), (5, 0.5), (7, 1.4)])
def test_it_is_torchvision_s_gaussian(size, sigma):
    image = photo(40, 30)
    ours = np.asarray(blurred(image, gaussian_taps(size, sigma))).astype(int)
    theirs = np.asarray(gaussian_blur(image, [size, size], [sigma, sigma])).astype(int)
    assert np.abs(ours - theirs).max() <= 1
    assert (ours != theirs).mean() < 0.01


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (2, 2)])
def test_an_image_smaller_than_the_kernel(size):
    image = photo(*size)
    assert blurred(image, gaussian_taps(7, 1.4)).size == size


def test_taps_sum_to_one():
    assert gaussian_taps(5, 0.5).sum() == pytest.approx(1)
    assert gaussian_taps(5, 0.5).argmax() == 2
