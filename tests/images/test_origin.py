"""What files say of their origin: claims as short lines, and nothing from what is malformed."""

import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ray_app.images import ImageLimits, decode_image
from ray_app.images.origin import KEYS, MOST_CHARACTERS, origin_of
from tests.images import factory

REAL = Path(__file__).resolve().parents[3] / "shared" / "realworld"
C2PA_STORE = b"jumb\0\0\0\x1ejumdc2pa\0\x11\0\x10\x80\0\0\xaa\x008\x9bq\x03c2pa\0"
SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/"
GPS, ARTIST = 34853, 315


def origin(data: bytes) -> dict[str, str]:
    return origin_of(data, decode_image(data, ImageLimits()).beside)


def camera_exif() -> bytes:
    block = Image.Exif()
    block[271], block[272], block[305], block[ARTIST] = "Nikon", "Z 6", "Ver.1", "Jane Doe"
    block.get_ifd(34665).update({36867: "2024:05:06 07:08:09", 37510: b"ASCII\0\0\0my aunt Mary"})
    block.get_ifd(GPS).update({1: "N", 2: (52.0, 31.0, 12.0)})
    return block.tobytes()


def user_comment(code: bytes, text: bytes) -> bytes:
    block = Image.Exif()
    block.get_ifd(34665)[37510] = code + text
    return block.tobytes()


def xmp(inner: str) -> bytes:
    return f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description {inner}/></x:xmpmeta>'.encode()


def png_with(**texts: str) -> bytes:
    notes = PngInfo()
    for key, text in texts.items():
        notes.add_text(key, text)
    return factory.png(pnginfo=notes)


@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "WEBP", "AVIF", "HEIF", "TIFF"])
def test_camera_software_and_time_are_told_and_neither_names_nor_places(format_name):
    block = camera_exif()
    options = {"exif": block} if format_name != "TIFF" else {"exif": Image.Exif()}
    if format_name == "TIFF":
        options["exif"].load(block)
    said = origin(factory.encoded(factory.photo(), format_name, **options))
    assert said == {"make": "Nikon", "model": "Z 6", "software": "Ver.1", "taken": "2024:05:06 07:08:09"}


def test_what_generators_write_into_png_text():
    said = origin(png_with(parameters="a cat\nSteps: 20, Sampler: Euler", prompt='{"3": {}}', workflow="{}", Software="NovelAI",
                           Description="a dog", Comment='{"steps": 28}', Author="Jane Doe"))  # fmt: skip
    assert said == {
        "software": "NovelAI",
        "parameters": "a cat Steps: 20, Sampler: Euler",
        "prompt": '{"3": {}}',
        "workflow": "{}",
        "description": "a dog",
        "comment": '{"steps": 28}',
    }


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (b"UNICODE\0", "a cat\nSteps: 20, Sampler: Euler".encode("utf-16-be")),
        (b"UNICODE\0", "a cat\nSteps: 20, Sampler: Euler".encode("utf-16-le")),
        (b"ASCII\0\0\0", b"a cat\nSteps: 20, Sampler: Euler"),
    ],
)
def test_parameters_in_a_jpegs_user_comment(code, text):
    assert origin(factory.jpeg(exif=user_comment(code, text))) == {"parameters": "a cat Steps: 20, Sampler: Euler"}


@pytest.mark.parametrize("inner", [
    f'xmp:CreatorTool="Firefly &amp; Co" Iptc4xmpExt:DigitalSourceType="{SOURCE_TYPE}trainedAlgorithmicMedia"',
    f'><xmp:CreatorTool>Firefly &amp; Co</xmp:CreatorTool><a rdf:resource="{SOURCE_TYPE}trainedAlgorithmicMedia"/',
])  # fmt: skip
@pytest.mark.parametrize("format_name", ["JPEG", "WEBP", "PNG"])
def test_xmp_as_attributes_and_as_elements(inner, format_name):
    if format_name == "PNG":
        notes = PngInfo()
        notes.add_itxt("XML:com.adobe.xmp", xmp(inner).decode(), zip=True)
        data = factory.png(pnginfo=notes)
    else:
        data = factory.encoded(factory.photo(), format_name, xmp=xmp(inner))
    assert origin(data) == {"creator_tool": "Firefly & Co", "digital_source_type": "trainedAlgorithmicMedia"}


def test_a_manifest_is_told_and_not_believed():
    segment = b"JP\0\1\0\0\0\1\0\0\1\0" + C2PA_STORE
    data = factory.jpeg()
    jpeg = data[:2] + b"\xff\xeb" + struct.pack(">H", len(segment) + 2) + segment + data[2:]
    png = factory.raw_png(8, 8, 8, 0, bytes(72), factory.chunk(b"caBX", C2PA_STORE))
    for with_manifest in (jpeg, png):
        assert origin(with_manifest) == {"c2pa": "manifest present, not verified"}
    assert origin(data) == {}


def test_values_are_one_short_printable_line():
    said = origin(png_with(Comment="\x1b[31mred\u202e\r\n\x00  " + "a" * 5000, prompt="\x01\x02"))
    assert said == {"comment": "[31mred " + "a" * (MOST_CHARACTERS - 8)}


def test_a_camera_stands_over_what_text_claims_and_entries_are_few():
    everything = png_with(**{key: "x" for key in ("parameters", "prompt", "workflow", "Software", "Description", "Comment", "Title")})
    assert len(KEYS) == 12
    assert set(origin(everything)) <= set(KEYS)


def test_a_directory_that_points_out_of_the_block_costs_only_what_lies_there():
    block = camera_exif()
    cut = block[: block.index(b"2024:05")]
    assert origin(factory.jpeg(exif=cut))["make"] == "Nikon"


def test_odd_files_say_nothing_or_little_and_raise_nothing():
    for name, (_, make) in [*factory.SOUND.items(), *factory.ODD.items()]:
        said = origin(make())
        assert set(said) <= {"make"}, name


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([b"", b"Exif\0\0", b"MM\0*\0\0\0\x08", b"II*\0\x08\0\0\0", b"II+\0\x08\0\0\0"]), st.binary(max_size=300),
       st.binary(max_size=200))  # fmt: skip
def test_any_metadata_gives_short_lines_and_never_an_exception(start, tail, packet):
    beside = {"exif": start + tail, "xmp": b"CreatorTool='" + packet + b"'", "Comment": 7, "prompt": packet.decode("latin-1")}
    for key, value in origin_of(start + tail, beside).items():
        assert key in KEYS
        assert 0 < len(value) <= MOST_CHARACTERS
        assert value.isprintable()


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damaged_exif_never_raises(draw):
    block = bytearray(camera_exif())
    for _ in range(draw.draw(st.integers(1, 8))):
        block[draw.draw(st.integers(0, len(block) - 1))] = draw.draw(st.integers(0, 255))
    origin_of(bytes(block), {"exif": bytes(block)})


@pytest.mark.skipif(not REAL.is_dir(), reason="the real images are not on this machine")
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("camera/nikon-d5000.jpg", {"make": "NIKON CORPORATION", "model": "NIKON D5000", "software": "Adobe Bridge CS5",
                                    "taken": "2011:03:12 15:36:11", "creator_tool": "Adobe Bridge CS5"}),
        ("generated/00000274.png", {}),
        ("provenance/C.jpg", {"digital_source_type": "algorithmicMedia", "c2pa": "manifest present, not verified"}),
        ("provenance/CA.jpg", {"c2pa": "manifest present, not verified"}),
        ("provenance/mars.webp", {}),
    ],
)  # fmt: skip
def test_real_files(name, said):
    assert origin((REAL / name).read_bytes()) == said
