"""The blur against torchvision's, with which OpenFake's second recipe was made, against scipy's and against OpenCV's documented kernels."""

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter
from torchvision.transforms.v2.functional import gaussian_blur

from ray_app.perturbations.blurring import blurred, gaussian_taps, opencv_taps, scipy_blurred
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


def test_opencv_s_kernel_is_the_documented_one():
    assert opencv_taps(3).tolist() == [0.25, 0.5, 0.25]
    assert opencv_taps(7).tolist() == [0.03125, 0.109375, 0.21875, 0.28125, 0.21875, 0.109375, 0.03125]
    # getGaussianKernel: sigma = 0.3 * ((ksize - 1) * 0.5 - 1) + 0.8
    for size, sigma in ((11, 2.0), (15, 2.6), (19, 3.2), (23, 3.8)):
        np.testing.assert_allclose(opencv_taps(size), gaussian_taps(size, sigma), rtol=1e-12)


@pytest.mark.parametrize("size", [3, 7, 11, 23])
def test_a_point_spreads_as_the_kernel_says(size):
    pixels = np.zeros((63, 63, 3), np.uint8)
    pixels[31, 31] = 255
    spread = np.asarray(blurred(Image.fromarray(pixels), opencv_taps(size)))[:, :, 1].astype(float)
    expected = 255 * np.outer(opencv_taps(size), opencv_taps(size))
    half = size // 2
    assert np.abs(spread[31 - half : 32 + half, 31 - half : 32 + half] - expected).max() <= 0.5 + 1e-4
    assert spread.sum() == spread[31 - half : 32 + half, 31 - half : 32 + half].sum()


@pytest.mark.parametrize("sigma", [1, 2, 4])
def test_scipy_s_blur_is_that_of_the_published_code(sigma):
    image = photo(40, 30)
    # CNNDetection's and UnivFD's: each channel filtered onto itself.
    theirs = np.array(image)
    for channel in range(3):
        gaussian_filter(theirs[:, :, channel], output=theirs[:, :, channel], sigma=sigma)
    assert scipy_blurred(image, sigma).tobytes() == theirs.tobytes()
