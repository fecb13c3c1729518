"""Callables that give masks."""

import io
import json
import math
import struct

import numpy as np
import pytest
from PIL import Image

from ray_app import load_detector
from ray_app.child_messages import ANSWER
from ray_app.detectors.callables import child, process
from ray_app.errors import DetectorError
from tests.detectors.callables.strange import added, card_path, of_width

# The width of an image says what becomes of it.
MODULE = """
import os, signal
import numpy as np

def both(images):
    given = []
    for image in images:
        height, width = image.shape[:2]
        if width == 101: os.kill(os.getpid(), signal.SIGKILL)
        mask = np.linspace(0, 1, height * width).reshape(height, width)
        given.append({
            102: (mask.T, 1.0), 103: (mask * 255, 1.0), 104: (mask * np.nan, 1.0), 105: (mask[None], 1.0),
            106: (np.zeros((1025, 1025)), 1.0), 107: 1.0, 108: (mask, float("nan")), 109: mask * 0.75,
        }.get(width, (mask, width / 100)))
    return given

def alone(images): return [np.full((64, 64), 0.75, np.float16) for image in images]
def turned(images): return [np.zeros((image.shape[1], image.shape[0])) for image in images]
def bright(images): return [(np.full(image.shape[:2], 200, np.uint8), 0.5) for image in images]
"""


def test_each_failure_costs_its_own_mask(own_place):
    card = added(own_place, "both")
    assert card.masks
    with process.CallableProcess(card, None) as opened:
        good, *bad, unscored, alone, last = opened.score(
            of_width(50, 101, 102, 103, 104, 105, 106, 108, 109, 60)
        )
        assert bad == [
            "its process died of SIGKILL",
            "its mask is 102 × 20, its image 20 × 102 (height × width)",
            "its mask has values from 0 to 255",
            "its mask has values from nan to nan",
            "its mask is 1 × 20 × 105, its image 20 × 105 (height × width)",
            "its mask is 1025 × 1025, its image 20 × 106 (height × width)",
        ]
        assert unscored == "its score is nan"
        assert np.array_equal(good.mask, np.rint(np.linspace(0, 255, 1000)).reshape(20, 50))
        assert (good.score, last.score, last.mask.shape) == (0.5, 0.6, (20, 60))
        assert alone.score == pytest.approx(math.log(3)), (
            "the largest value of a mask alone is a probability, whatever scores are"
        )


def test_a_row_has_its_mask_or_why_there_is_none(own_place):
    detector = load_detector(card_path(own_place, added(own_place, "both").name))
    for width in (50, 60, 103, 107):
        Image.new("RGB", (width, 20), (9, 9, 9)).save(own_place / f"{width}.png")
    found = list(detector.score([own_place / f"{width}.png" for width in (50, 103, 107, 60)]))
    assert [one.status for one in found] == ["ok", "detector_failed", "detector_failed", "ok"]
    shapes = [[mask.shape for mask in one.masks.values()] for one in found]
    assert shapes == [[(20, 50)], [], [], [(20, 60)]]
    assert "its mask has values from 0 to 255" in found[1].detail
    assert "the callable must return a mask for all images or for none" in found[2].detail


@pytest.mark.parametrize(
    ("function", "said"),
    [("turned", "its mask is 1024 × 1024"), ("bright", "its mask has values from 200 to 200")],
)
def test_what_is_no_mask_is_said_when_it_is_added(own_place, function, said):
    with pytest.raises(DetectorError) as told:
        added(own_place, function)
    assert "return masks" in told.value.hint
    assert said in told.value.message or function == "turned"


def test_a_mask_alone_is_scored_by_its_largest_value(own_place):
    card = added(own_place, "alone")
    assert card.golden[0].logit == pytest.approx(math.log(3))
    assert "largest value in its mask" in card.notes[-1]


def answer(said, numbers):
    text = json.dumps(said).encode()
    return ANSWER.pack(len(text), len(numbers)) + text + numbers


def read_answer(data):
    return process._read_answer(io.BytesIO(data), [(5, 4)])


def test_no_more_is_read_of_masks_than_they_may_have():
    for shape in ((4, 6), (5, 5), (2**32 - 1, 2**32 - 1), (0, 7)):
        with pytest.raises(ValueError, match=r"invalid answer|reshape"):
            read_answer(answer({}, struct.pack("<dII", 1.0, *shape) + bytes(20)))
    with pytest.raises(ValueError, match="invalid answer"):
        read_answer(ANSWER.pack(2, 16 + child.MAX_SQUARE_PX**2 + 1))
    _, (found,) = read_answer(answer({}, struct.pack("<dII", 1.0, 4, 5) + bytes(20)))
    assert (found.score, found.mask.shape) == (1.0, (4, 5))
