"""Image and mask by the same geometry, and the geometry torchvision's."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import RandomErasing, RandomResizedCrop
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as torchvision

from ray_app.augmentation import geometry
from ray_app.augmentation.geometry import Resampling
from ray_app.augmentation.sample import Sample
from tests.augmentation.given import marked, rng, seen_and_told
from tests.images.factory import photo


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (641, 97), (50, 50)])
def test_the_short_side_is_torchvision_s_resize(size):
    image = photo(*size)
    ours = geometry.with_short_side(Sample(image, None, 1), 64, Resampling.BILINEAR, rng(0)).image
    theirs = torchvision.resize(image, 64, InterpolationMode.BILINEAR)
    assert ours.tobytes() == theirs.tobytes()


def test_rotation_is_torchvision_s():
    sample = marked()
    ours = geometry.rotated(sample, 11.5, Resampling.BILINEAR)
    assert ours.image.tobytes() == torchvision.rotate(sample.image, 11.5, InterpolationMode.BILINEAR).tobytes()
    assert ours.mask.tobytes() == torchvision.rotate(sample.mask, 11.5, InterpolationMode.NEAREST).tobytes()


@pytest.mark.parametrize(
    "change",
    [
        geometry.mirrored,
        geometry.upended,
        lambda sample: geometry.turned(sample, 1),
        lambda sample: geometry.turned(sample, 2),
        lambda sample: geometry.turned(sample, 3),
        lambda sample: geometry.turned(sample, 0),
        lambda sample: geometry.cropped(sample, (13, 7, 101, 99)),
        lambda sample: geometry.resized(sample, (77, 131), Resampling.NEAREST),
        lambda sample: geometry.rotated(sample, -23, Resampling.NEAREST),
        lambda sample: geometry.random_crop(sample, 200, rng(1)),
        lambda sample: geometry.random_crop(sample, 60, rng(2)),
    ],
)
def test_without_filters_the_mask_is_exactly_where_the_image_is(change):
    seen, told = seen_and_told(change(marked()))
    assert np.array_equal(seen, told)
    assert told.any()


def test_a_quarter_turn_is_anticlockwise():
    image = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3))
    turned = geometry.turned(Sample(image, image, 1), 5)
    assert np.array_equal(np.asarray(turned.mask), np.rot90(np.asarray(image)))


def test_a_crop_comes_from_everywhere():
    columns = np.tile(np.arange(10, dtype=np.uint8), (12, 1))
    sample = Sample(Image.fromarray(np.stack([columns] * 3, -1)), Image.fromarray(columns), 1)
    stream = rng(3)
    starts = [np.asarray(geometry.random_crop(sample, 8, stream).mask)[0, 0] for _ in range(200)]
    assert set(starts) == {0, 1, 2}


def test_a_small_image_is_mirrored_out():
    image = Image.fromarray(np.array([[1, 2]], np.uint8))
    grown = np.asarray(geometry.random_crop(Sample(image, image, 1), 4, rng(0)).mask)
    assert grown.tolist() == [[1, 1, 2, 2]] * 4


def test_a_strip_is_cut_to_sixteen_times_its_width_anywhere_along_it():
    positions = np.arange(2000) // 8
    strip = Image.fromarray(np.tile(positions.astype(np.uint8), (2, 1)))
    stream = rng(4)
    starts = set()
    for _ in range(200):
        result = geometry.with_short_side(Sample(strip.convert("RGB"), strip, 1), 4, Resampling.NEAREST, stream)
        assert result.mask.size == (64, 4)
        starts.add(int(np.asarray(result.mask)[0, 0]))
    assert min(starts) < 10
    assert max(starts) > 235


@pytest.mark.parametrize("size", [(200, 120), (90, 90)])
def test_boxes_have_the_distribution_of_torchvision_s(size):
    """Mean and spread of area and of log aspect over 3000 draws of each, RandomResizedCrop's and RandomErasing's."""
    share, ratio = (0.5, 1.0), (0.5, 2.0)
    torch.manual_seed(0)
    blank = torch.zeros(3, size[1], size[0])
    theirs = np.array([RandomResizedCrop.get_params(blank, share, ratio)[2:] for _ in range(3000)], float)
    stream = rng(5)
    boxes = [geometry.random_part(Sample(Image.new("L", size), None, 1), share, ratio, stream).image.size for _ in range(3000)]
    ours = np.array(boxes, float)[:, ::-1]
    for figure in (lambda hw: hw.prod(axis=1) / (size[0] * size[1]), lambda hw: np.log(hw[:, 1] / hw[:, 0])):
        assert figure(ours).mean() == pytest.approx(figure(theirs).mean(), abs=0.03)
        assert figure(ours).std() == pytest.approx(figure(theirs).std(), abs=0.03)
    erased = np.array([RandomErasing.get_params(blank, (0.02, 0.06), (0.3, 3.3), [0.0])[2:4] for _ in range(3000)], float)
    drawn = [geometry.drawn_box(size, (0.02, 0.06), (1 / 3.3, 1 / 0.3), stream) for _ in range(3000)]
    covered = np.array([(lower - upper, right - left) for left, upper, right, lower in drawn], float)
    assert np.log(covered[:, 0] / covered[:, 1]).mean() == pytest.approx(np.log(erased[:, 0] / erased[:, 1]).mean(), abs=0.07)
    assert covered.prod(axis=1).mean() == pytest.approx(erased.prod(axis=1).mean(), rel=0.03)


def test_where_no_box_fits_the_largest_centred_one_is_taken():
    strip = Sample(Image.new("L", (3000, 20)), None, 1)
    assert geometry.drawn_box((3000, 20), (0.9, 1.0), (3 / 4, 4 / 3), rng(0)) is None
    assert geometry.random_part(strip, (0.9, 1.0), (3 / 4, 4 / 3), rng(0)).image.size == (27, 20)
