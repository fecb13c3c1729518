import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_app.images import inspect_bytes, sniff_format
from ray_app.images.sniff import describe_unsupported
from tests.images import factory


@pytest.mark.parametrize("name", factory.SOUND)
def test_each_format_is_known_by_its_bytes(name):
    format_name, make = factory.SOUND[name]
    assert sniff_format(make()) == format_name


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"%PDF-1.4", "PDF"),
        (b"PK\x03\x04rest", "ZIP"),
        (b"\xfd7zXZ\0\0", "xz"),
        (b"\x28\xb5\x2f\xfd\x04", "zstd"),
        (b"BZh91AY", "bzip2"),
        (b"\xef\xbb\xbf  <svg width='1'>", "SVG"),
        (b"<!DOCTYPE html><html>", "HTML"),
        (b"{'a': 1}", "text"),
        ("é".encode() * 1000, "text"),
        (b"\0\0\0\x18ftypisom", "video"),
        (b"RIFF\0\0\0\0WAVEfmt ", "RIFF"),
        (b"BM is how this text begins", "text"),
        (bytes(257) + b"ustar", "tar"),
        (b"\0\1\2\3", "00 01 02 03"),
    ],
)
def test_what_is_no_image_is_described(data, words):
    assert sniff_format(data) is None
    assert words in describe_unsupported(data)


@pytest.mark.parametrize("start", [b"II*\0\x10\0\0\0CR\x02\0", b"\0\0\0\x18ftypcrx ", b"IIRO\x08", b"IIU\0", b"FUJIFILMCCD-RAW 0201"])
def test_raw_files_of_cameras_are_known_as_such(start):
    assert sniff_format(start) == "RAW"
    assert sniff_format(factory.camera_raw()) == "RAW"


@pytest.mark.parametrize("start", [b"P5 12", b"P1\n# made by hand\n3 4", b"P6\t3"])
def test_pnm_is_more_than_two_letters(start):
    assert sniff_format(start) == "PNM"
    assert sniff_format(start[:2] + b"x" + start[3:]) is None
    assert sniff_format(b"P7" + start[2:]) is None


def test_a_shared_brand_is_decided_by_the_codec_brand():
    assert sniff_format(b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf") == "AVIF"
    assert sniff_format(b"\0\0\0\x1cftypmif1\0\0\0\0mif1heicmiaf") == "HEIC"
    assert sniff_format(b"\0\0\0\x1cftypheic\0\0\0\0mif1avifmiaf") == "HEIC"


@given(st.binary(max_size=64))
def test_any_bytes_are_inspected(data):
    facts = inspect_bytes(data)
    assert len(facts.sha256) == 64
    assert facts.format is not None or describe_unsupported(data)
