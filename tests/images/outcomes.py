"""What becomes of bytes within the endpoint's limits."""

import numpy as np

from ray_app.errors import Status
from ray_app.images import DecodedImage, ImageLimits, ImageRefused, decode_image

LIMITS = ImageLimits()


def outcome_of(data: bytes, limits: ImageLimits = LIMITS) -> DecodedImage | ImageRefused:
    try:
        return decode_image(data, limits)
    except ImageRefused as error:
        return error


def refusal(data: bytes, limits: ImageLimits = LIMITS) -> ImageRefused:
    outcome = outcome_of(data, limits)
    assert isinstance(outcome, ImageRefused)
    return outcome


def status_of(data: bytes) -> Status:
    outcome = outcome_of(data)
    return outcome.status if isinstance(outcome, ImageRefused) else Status.OK


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(decode_image(data, LIMITS).pixels)
