"""MaskCLIP with formula-filled weights, and the inputs and targets of its golden cases
(golden/maskclip.md §2).
"""

import functools

import pytest
import torch
from PIL import Image
from torch.nn import functional

from ray_app.detectors import load_card
from ray_app.detectors.checkpoints import load_strictly
from ray_app.detectors.families.maskclip import MaskClip
from tests.detectors.golden_maskclip import ARGUMENTS
from tests.make.networks.fill import fill, pattern_image

TOLERANCE = 2e-5


@functools.cache
def filled_weights(size):
    return fill(MaskClip(**ARGUMENTS[size]).state_dict())


def filled(size):
    network = MaskClip(**ARGUMENTS[size]).eval().requires_grad_(False)
    load_strictly(network, filled_weights(size), size)
    return network


def normalised(pixels):
    preprocessing = load_card("maskclip").preprocessing
    mean, std = torch.tensor([preprocessing.mean, preprocessing.std])[..., None, None]
    return ((torch.from_numpy(pixels).permute(2, 0, 1) / 255 - mean) / std)[None]


def case_image(side, case):
    if case == "A":
        return pattern_image(side, side)
    preprocessing = load_card("maskclip").preprocessing
    resize = preprocessing.resize.model_copy(update={"size": side})
    sized = preprocessing.model_copy(update={"resize": resize})
    return sized.prepare(Image.fromarray(pattern_image(360, 480)))


def ellipse(height, width):
    y, x = torch.arange(height)[:, None], torch.arange(width)
    radius_x, radius_y = width // 5, height // 6
    across, down = (x - 3 * width // 8) ** 2, (y - 5 * height // 8) ** 2
    inside = across * radius_y**2 + down * radius_x**2 <= radius_x**2 * radius_y**2
    return inside.float()[None]


def outline(mask, width=7):
    def dilated(region):
        reach = width // 2
        across = functional.max_pool2d(region, (1, width), 1, (0, reach))
        return torch.maximum(across, functional.max_pool2d(region, (width, 1), 1, (reach, 0)))

    return dilated(mask) * dilated(1 - mask)


def targets(side, case):
    shape = (side, side) if case == "A" else (360, 480)
    mask = ellipse(*shape)
    edge = outline(mask)
    if case == "B":
        both = torch.stack([mask, edge])
        mask, edge = functional.interpolate(both, size=(side, side), mode="nearest")
    return torch.ones(1, dtype=torch.long), mask, edge


def assert_pixels(mask, pixels):
    found = [mask[row, column].item() for row, column, _ in pixels]
    assert found == pytest.approx([value for *_, value in pixels], abs=TOLERANCE)
