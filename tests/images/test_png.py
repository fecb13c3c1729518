"""What chunks of metadata hold costs a PNG no pixel: large texts, wrong checksums, contents that
are none.
"""

import struct
import time
import zlib

import numpy as np
import pytest

from ray_app.errors import Status
from ray_app.images import ImageLimits, decode_image, png
from tests.images import layouts
from tests.images.outcomes import LIMITS, pixels, refusal
from tests.make import images

MIB = 2**20
PLAIN = images.png()
HEADER_END = 33
LARGE = b"a cat " * (2 * MIB // 6)
PACKED = zlib.compress(LARGE)
PROFILE, SIZE = images.srgb_profile(), (3 * MIB).to_bytes(4, "big")
METADATA = {
    "tEXt": b"k\0" + LARGE,
    "zTXt": b"k\0\0" + PACKED,
    "iTXt": b"k\0\1\0\0\0" + PACKED,
    "iCCP": b"k\0\0" + zlib.compress(PROFILE[:128].replace(b"\0\0\2L", SIZE) + bytes(3 * MIB)),
    "eXIf": images.exif(6)[6:] + bytes(2 * MIB),
    "pHYs": struct.pack(">IIB", 2835, 2835, 1),
    "prVt": bytes(2 * MIB),
}


def with_chunk(chunk: bytes, *, is_after: bool = False, data: bytes = PLAIN) -> bytes:
    at = len(data) - 12 if is_after else HEADER_END
    return data[:at] + chunk + data[at:]


def spoiled(chunk: bytes) -> bytes:
    """A chunk with a wrong checksum."""
    return chunk[:-1] + bytes([chunk[-1] ^ 1])


SPOILED = spoiled(images.chunk(b"tEXt", b"k\0v"))


def flags_of(data: bytes, limits: ImageLimits = LIMITS) -> tuple[str, ...]:
    image = decode_image(data, limits)
    np.testing.assert_array_equal(np.asarray(image.pixels), pixels(PLAIN))
    return tuple(flag for flag in image.facts.flags if flag not in ("broken_icc", "oriented"))


@pytest.mark.parametrize("is_after", [False, True])
@pytest.mark.parametrize("kind", METADATA)
def test_png_metadata_over_1_mib_costs_no_pixel(kind, is_after):
    """A wrong checksum is a flag."""
    chunk = images.chunk(kind.encode(), METADATA[kind])
    assert flags_of(with_chunk(chunk, is_after=is_after)) == ()
    assert flags_of(with_chunk(spoiled(chunk), is_after=is_after)) == ("irregular_png",)


@pytest.mark.parametrize("kind", ["tEXt", "zTXt", "iTXt", "iCCP", "eXIf"])
def test_png_metadata_over_the_limit_is_a_flag(kind):
    data = with_chunk(images.chunk(kind.encode(), METADATA[kind]))
    assert flags_of(data, ImageLimits(max_text_bytes=MIB)) == ("metadata_unread",)


def test_png_metadata_is_limited_as_a_whole():
    half, limits = images.chunk(b"tEXt", b"k\0" + bytes(600_000)), ImageLimits(max_text_bytes=MIB)
    assert flags_of(with_chunk(half), limits) == ()
    assert flags_of(with_chunk(half + half), limits) == ("metadata_unread",)


def test_png_of_ten_thousand_bombs_is_decoded_at_once():
    bomb = images.chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(4 * MIB)))
    data = with_chunk(bomb * 5000)
    started = time.process_time()
    assert flags_of(data) == ("metadata_unread",)
    assert time.process_time() - started < 1


BROKEN_BOMB = zlib.compress(bytes(4 * MIB))[:-4] + b"\xff" * 4


@pytest.mark.parametrize(
    ("kind", "head"), [(b"zTXt", b"k\0\0"), (b"iTXt", b"k\0\1\0\0\0"), (b"iCCP", b"k\0\0")]
)
def test_png_of_broken_bombs_is_decoded_at_once(kind, head):
    data = with_chunk(images.chunk(kind, head + BROKEN_BOMB) * 500)
    started = time.process_time()
    assert flags_of(data) == (("irregular_png",) if kind == b"iCCP" else ("metadata_unread",))
    assert time.process_time() - started < 0.3


def test_png_first_of_several_profiles_counts():
    profile = zlib.compress(images.srgb_profile())
    good, broken = (images.chunk(b"iCCP", b"k\0\0" + data) for data in (profile, BROKEN_BOMB))
    assert decode_image(with_chunk(good + broken), LIMITS).facts.flags == ()
    flags = decode_image(with_chunk(broken + good), LIMITS).facts.flags
    assert flags == ("broken_icc", "irregular_png")


def test_inflate_returns_what_is_packed_up_to_the_limit():
    text = bytes(range(256)) * 5000 + b"end" + bytes(3 * MIB)
    packed, size = zlib.compress(text), len(text)
    for limit in (0, 1, MIB, MIB + 1, size - 1, size, size + 1):
        assert png.inflate(packed, limit) == (text[:limit], min(limit, size))
    assert png.inflate(packed + b"bytes after the stream", MIB * 9) == (text, size)
    cut, cut_bytes = png.inflate(packed[:-9], size)
    assert cut == text[:cut_bytes]


@pytest.mark.parametrize("size", [b"\x7f\0\0\0", b"\0\0\0\x03"])
def test_png_damaged_chunk_length_names_the_chunk(size):
    data = with_chunk(images.chunk(b"tEXt", b"k\0some text"))
    refused = refusal(data[:HEADER_END] + size + data[HEADER_END + 4 :])
    assert refused.status == Status.CORRUPT_IMAGE
    assert f"the chunk at byte {HEADER_END} is damaged" in refused.detail


def test_png_of_too_few_rows_is_truncated():
    header = images.chunk(b"IHDR", struct.pack(">IIBBBBB", 2000, 500, 8, 2, 0, 0, 0))
    rows = zlib.compress(bytes(6001) * 400) + b"bytes after the stream"
    body = images.chunk(b"IDAT", rows) + images.chunk(b"IEND", b"")
    refused = refusal(b"\x89PNG\r\n\x1a\n" + header + body)
    assert refused.status == Status.TRUNCATED_IMAGE
    assert refused.detail == "2400400 of 3000500 bytes of scanlines present"


@pytest.mark.parametrize("kind", [b"IHDR", b"PLTE", b"tRNS", b"IDAT"])
def test_png_wrong_checksum_of_pixels_is_refused(kind):
    data = images.palette_with_transparency()
    at = data.index(kind) - 4
    end = at + 12 + int.from_bytes(data[at : at + 4], "big")
    assert refusal(data[:at] + spoiled(data[at:end]) + data[end:]).status == Status.CORRUPT_IMAGE


@pytest.mark.parametrize("is_after", [False, True])
def test_png_orientation_is_read_wherever_it_is(is_after):
    exif = images.chunk(b"eXIf", images.exif(6)[6:])
    facts = decode_image(with_chunk(SPOILED + exif, is_after=is_after), LIMITS).facts
    assert (facts.orientation, facts.flags) == (6, ("irregular_png", "oriented"))


def test_png_profile_of_a_broken_file_is_still_a_fact():
    profile = images.chunk(b"iCCP", b"k\0\0" + zlib.compress(images.srgb_profile()))
    facts = decode_image(with_chunk(profile + SPOILED), LIMITS).facts
    assert (facts.icc, facts.flags) == (True, ("irregular_png",))


BROKEN_CONTENT = {
    "a text of another method": (b"zTXt", b"k\0\1" + PACKED),
    "a text that is not packed": (b"zTXt", b"k\0\0abc"),
    "a text that ends early": (b"iTXt", b"k\0\1"),
    "a text without a keyword": (b"tEXt", b""),
    "a gamma of one byte": (b"gAMA", b"\1"),
    "chromaticities of one byte": (b"cHRM", b"\1"),
    "an empty intent": (b"sRGB", b""),
    "a resolution of one byte": (b"pHYs", b"\1"),
    "an animation of one byte": (b"acTL", b"\1"),
    "a frame of one byte": (b"fcTL", b"\1"),
}


@pytest.mark.parametrize("name", BROKEN_CONTENT)
@pytest.mark.parametrize("is_after", [False, True])
def test_png_broken_content_of_metadata_costs_no_pixel(name, is_after):
    assert flags_of(with_chunk(images.chunk(*BROKEN_CONTENT[name]), is_after=is_after)) == ()


def test_png_cut_in_metadata_after_its_pixels_is_whole():
    data = with_chunk(images.chunk(b"tEXt", METADATA["tEXt"]), is_after=True)
    assert flags_of(data[:-MIB]) == ("irregular_png",)


def test_png_cut_in_the_checksum_of_its_pixels_is_truncated():
    assert refusal(PLAIN[:-14]).status == Status.TRUNCATED_IMAGE


def test_png_animation_with_its_own_first_image_counts_it():
    data = images.frames("PNG", 3)
    frame = data.index(b"fcTL") - 4
    # Its pixels are then no frame of the animation.
    image = decode_image(data[:frame] + data[frame + 38 :], LIMITS)
    assert (image.facts.frames, image.facts.flags) == (4, ("animated",))


@pytest.mark.parametrize("interlaced", [False, True])
def test_png_16_bit_transparent_colour_is_compared_in_16_bits(interlaced):
    """Two colours that differ in their low 8 bits: one of them is transparent."""
    shown = np.zeros((9, 2000, 3), np.int64) + 0x1234
    shown[:, ::2] += 1
    key = images.chunk(b"tRNS", struct.pack(">3H", *[0x1235] * 3))
    data = layouts.png(shown, 16, 2, interlaced=interlaced, extra=(key,))
    image = decode_image(data, ImageLimits(max_aspect=1000))
    found = np.asarray(image.pixels)
    assert (found[:, ::2] == 255).all()
    assert (found[:, 1::2] == 0x12).all()
    assert (image.facts.mode, image.facts.flags) == ("RGB", ("alpha", "sixteen_bit"))
