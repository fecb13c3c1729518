"""The edge generator against the reference's own counts: golden/maskclip.md §2 and §5.3."""

import numpy as np
import pytest

from ray_app.augmentation import edge_map
from tests.detectors.small_maskclip import ellipse


def boxed(rows, columns, shape=(12, 16)):
    mask = np.zeros(shape, bool)
    mask[rows, columns] = True
    return mask


def drawn(height, width):
    return ellipse(height, width)[0].numpy() > 0


RECT = boxed(slice(3, 8), slice(4, 11))
CORNER = boxed(slice(0, 5), slice(0, 6))


@pytest.mark.parametrize(
    ("mask", "width", "pixels", "checksum", "inside"),
    [
        (RECT, 3, 44, 836, 20),
        (RECT, 5, 80, 1520, 32),
        (RECT, 7, 107, 2033, 35),
        (CORNER, 3, 21, 230, 10),
        (CORNER, 5, 40, 438, 18),
        (CORNER, 7, 57, 633, 24),
        (drawn(512, 512), 7, 3180, 2238720, 1572),
        (drawn(256, 256), 7, 1596, 561792, 780),
        (drawn(360, 480), 7, 2724, 1593540, 1344),
    ],
)
def test_it_is_the_reference_s(mask, width, pixels, checksum, inside):
    edge = edge_map(mask, width)
    rows, columns = np.nonzero(edge)
    assert (len(rows), int((rows + 2 * columns).sum()), int((edge & mask).sum())) == (pixels, checksum, inside)


@pytest.mark.parametrize(("width", "pixels"), [(1, 0), (3, 5), (7, 13)])
def test_a_single_pixel_is_a_cross(width, pixels):
    assert edge_map(boxed(6, 8), width).sum() == pixels


@pytest.mark.parametrize("shape", [(12, 16), (7, 16), (1, 1), (3, 2)])
def test_nothing_has_no_edge_and_everything_has_none_along_the_border(shape):
    assert not edge_map(np.zeros(shape, bool)).any()
    assert not edge_map(np.ones(shape, bool)).any()


def test_the_mask_is_left_as_it_was():
    before = RECT.copy()
    edge_map(RECT)
    assert np.array_equal(RECT, before)


@pytest.mark.parametrize("width", [0, -3, 4])
def test_an_even_width_is_refused(width):
    with pytest.raises(ValueError, match="odd"):
        edge_map(RECT, width)
