"""Any bytes become a DecodedImage or an InputError, and nothing else."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ray_app.errors import InputError
from ray_app.images import DecodedImage, ImageLimits, ImageRefused, decode_image
from tests.make.flips import SWEEPS, flipped

SMALL = ImageLimits(max_pixels=1_000_000, max_bytes=100_000)
STARTS = [
    b"",
    b"\xff\xd8\xff",
    b"\x89PNG\r\n\x1a\n",
    b"RIFF\0\1\0\0WEBP",
    b"GIF89a",
    b"II*\0",
    b"MM\0+",
    b"\0\0\0\x14ftypavif",
    b"\0\0\0\x14ftypheic",
    b"II+\0\x08\0\0\0" + b"\xff" * 8,  # a pointer beyond any memory
]
UNHURRIED = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
}


def assert_total(data: bytes) -> None:
    outcome: DecodedImage | InputError
    try:
        outcome = decode_image(data, SMALL)
    except InputError as error:
        outcome = error
    if isinstance(outcome, DecodedImage):
        assert outcome.pixels.size == (outcome.facts.width, outcome.facts.height)
    else:
        assert isinstance(outcome, ImageRefused)
        assert 0 < len(outcome.detail) < 500


@pytest.mark.parametrize("examples", SWEEPS)
def test_any_bytes_are_an_image_or_a_refusal(examples):
    files = st.builds(bytes.__add__, st.sampled_from(STARTS), st.binary(max_size=2048))
    settings(max_examples=examples, **UNHURRIED)(given(files)(assert_total))()


@pytest.mark.parametrize("cases", [200, pytest.param(2000, marks=pytest.mark.slow)])
def test_damaged_files_are_an_image_or_a_refusal(cases):
    """`tests/runs/test_hostile_headers` takes others."""
    for case in range(cases):
        _, data = flipped(10_000_000 + case)
        assert_total(data[: len(data) // 2] if case % 4 == 0 else data)
