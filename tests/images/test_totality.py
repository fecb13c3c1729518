"""Any bytes become a DecodedImage or an InputError, and nothing else."""

import contextlib

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ray_app.errors import InputError
from ray_app.images import DecodedImage, ImageLimits, ImageRefused, decode_image
from tests.images import factory

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
]
FILES = [make() for _, make in [*factory.SOUND.values(), *factory.ODD.values()]]
MANY = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


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


@MANY
@given(st.sampled_from(STARTS), st.binary(max_size=2048))
def test_any_bytes(start, data):
    assert_total(start + data)


@MANY
@given(st.data())
def test_damaged_files(draw):
    data = bytearray(draw.draw(st.sampled_from(FILES)))
    for _ in range(draw.draw(st.integers(1, 6))):
        at = draw.draw(st.integers(0, max(len(data) - 1, 0)))
        match draw.draw(st.sampled_from(["change", "cut", "drop", "insert"])):
            case "change":
                data[at : at + 1] = draw.draw(st.binary(min_size=1, max_size=4))
            case "cut" if at > 16:
                del data[at:]
            case "drop":
                del data[at : at + draw.draw(st.integers(1, 64))]
            case "insert":
                data[at:at] = draw.draw(st.binary(max_size=16))
    assert_total(bytes(data))


def test_a_bigtiff_pointer_beyond_any_memory():
    with contextlib.suppress(InputError):
        decode_image(b"II+\0\x08\0\0\0" + b"\xff" * 8 + bytes(64), SMALL)
