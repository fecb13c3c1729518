"""Areas and sharpness of real images: measured, kept, and read from the authors' form."""

import numpy as np
import pytest
from PIL import Image, ImageFilter
from scipy.ndimage import laplace

from ray_app.augmentation import RealStatistics, load_statistics, save_statistics, sharpness
from ray_app.errors import ConfigError
from tests.images.factory import photo


def test_sharpness_is_the_variance_of_the_laplacian():
    image = photo(96, 64)
    assert sharpness(image) == pytest.approx(laplace(np.asarray(image.convert("L")).astype(float), mode="mirror").var())


def test_a_blurred_picture_is_less_sharp_and_a_flat_one_not_at_all():
    image = photo(96, 64)
    assert sharpness(image.filter(ImageFilter.GaussianBlur(1))) < sharpness(image) / 3
    assert sharpness(Image.new("RGB", (20, 30), (200, 10, 0))) == 0


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 2)])
def test_the_smallest_images_have_one(size):
    assert np.isfinite(sharpness(photo(*size)))


def test_the_authors_form_is_read(tmp_path):
    place = tmp_path / "real_train_stats.npz"
    np.savez(place, blur_vals=np.array([78.0, 645.0]), res_vals=np.array([[671, 740], [480, 640], [1, 1]]))
    read = load_statistics(place)
    assert read.areas_px.tolist() == [671 * 740, 480 * 640, 1]
    assert read.sharpness.tolist() == [78.0, 645.0]


def test_what_is_kept_is_read_back(tmp_path):
    measured = RealStatistics(np.array([5, 7]), np.array([1.5, 0.0, 3.0]))
    save_statistics(tmp_path / "mine.npz", measured)
    read = load_statistics(tmp_path / "mine.npz")
    assert (read.areas_px.tolist(), read.sharpness.tolist()) == ([5, 7], [1.5, 0.0, 3.0])


@pytest.mark.parametrize(
    "arrays",
    [
        {},
        {"blur_vals": np.ones(2)},
        {"blur_vals": np.ones(2), "res_vals": np.ones(4, int)},
        {"blur_vals": np.array([{}]), "res_vals": np.ones(4)},
    ],
)
def test_another_file_is_refused_by_name(tmp_path, arrays):
    place = tmp_path / "other.npz"
    np.savez(place, **arrays)
    with pytest.raises(ConfigError, match=r"other\.npz"):
        load_statistics(place)
    with pytest.raises(ConfigError, match=r"none\.npz"):
        load_statistics(tmp_path / "none.npz")


@pytest.mark.parametrize(("areas", "blur"), [([], [1.0]), ([0], [1.0]), ([4], []), ([4], [-1.0]), ([4], [float("nan")]), ([[4]], [1.0])])
def test_impossible_statistics_are_refused(areas, blur):
    with pytest.raises(ConfigError, match="statistics of real images"):
        RealStatistics(np.array(areas, np.int64), np.array(blur))


@pytest.mark.parametrize("data", [b"", b"no archive", b"PK\x03\x04 cut short"])
def test_a_damaged_file_is_refused_by_name(tmp_path, data):
    place = tmp_path / "damaged.npz"
    place.write_bytes(data)
    with pytest.raises(ConfigError, match=r"damaged\.npz"):
        load_statistics(place)


def test_a_single_array_is_refused_by_name(tmp_path):
    np.save(tmp_path / "one.npy", np.ones(3))
    with pytest.raises(ConfigError, match=r"one\.npy"):
        load_statistics(tmp_path / "one.npy")
