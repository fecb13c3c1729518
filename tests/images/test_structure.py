import struct
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_app.images import structure
from ray_app.images.tiff import MOST_PAGES, Tiff, TiffError, exif_orientation
from tests.images import factory


@pytest.mark.parametrize("name", ["png", "gif", "webp", "webp_lossless", "webp_extended"])
def test_sizes_at_fixed_places_are_read_without_a_decoder(name):
    format_name, make = factory.SOUND[name]
    assert structure.header_size(make(), format_name) == (96, 64)
    assert structure.header_size(make()[:8], format_name) is None


@pytest.mark.parametrize("name", [name for name, (kind, _) in factory.SOUND.items() if kind not in ("GIF", "TIFF", "JXL", "PNM")])
def test_a_sound_file_ends_where_it_says(name):
    format_name, make = factory.SOUND[name]
    data = make()
    assert structure.declared_end(data, format_name) == len(data)
    assert not structure.ends_early(data, format_name)
    assert structure.ends_early(data[: len(data) // 2], format_name)


def test_gif_frames_are_counted_without_decoding():
    assert structure.count_gif_frames(factory.frames("GIF", 7)) == 7
    assert structure.count_gif_frames(factory.frames("GIF", 7)[:-2000]) in (6, 7)
    assert structure.count_gif_frames(b"GIF89a") == 1


def test_a_gif_of_millions_of_tiny_blocks_is_counted_within_a_bound():
    head = b"GIF89a\1\0\1\0\0\0\0" + b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02"
    started = time.perf_counter()
    assert structure.count_gif_frames(head + b"\1\0" * 8_000_000) == 1
    assert structure.count_gif_frames(head + b"\1\7" * 8_000_000) == 1
    assert time.perf_counter() - started < 1


def test_tiff_pages_are_counted_within_a_bound():
    assert structure.count_tiff_pages(factory.frames("TIFF", 5)) == 5
    # 4 000 directories without an entry, each leading to the next.
    chain = b"".join(struct.pack("<HI", 0, 8 + 6 * (n + 1)) for n in range(4000))
    assert structure.count_tiff_pages(b"II*\0\x08\0\0\0" + chain) == MOST_PAGES
    in_a_circle = b"II*\0\x08\0\0\0" + struct.pack("<HI", 0, 8)
    assert structure.count_tiff_pages(in_a_circle) == 1


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", range(9))
def test_exif_orientation(order, orientation):
    block = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IHHHIHxx", 8, 1, 274, 3, 1, orientation)
    assert exif_orientation(b"Exif\0\0" + block) == max(orientation, 1)
    assert exif_orientation(block + bytes(4)) == max(orientation, 1)


@pytest.mark.parametrize(
    "block",
    [b"", b"garbage!", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff", b"II*\0\x08\0\0\0\1\0" + struct.pack("<HHII", 274, 3, 1, 9)],
)
def test_malformed_exif_is_malformed(block):
    with pytest.raises(TiffError):
        exif_orientation(block)


@given(st.binary(max_size=200), st.sampled_from([b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"]))
def test_any_tags_are_read_or_malformed(data, start):
    try:
        tiff = Tiff(start + data)
        tiff.count_pages()
        tiff.data_end()
    except TiffError:
        pass


@given(st.binary(max_size=200), st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIC"]))
def test_structure_is_total(data, format_name):
    structure.header_size(data, format_name)
    structure.ends_early(data, format_name)
    structure.has_trailing_bytes(data, format_name)
    assert structure.count_gif_frames(data) >= 1
