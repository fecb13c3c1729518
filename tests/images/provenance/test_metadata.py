"""XMP is read as the XML that it is: properties of the file itself, no entities, no substrings."""

import pytest

from ray_app.images.provenance.metadata import MOST_ELEMENTS, read_xmp
from tests.images.provenance.files import IPTC, jpeg_with, said, segment, with_xmp, xmp

AI = "trainedAlgorithmicMedia"
AS_ATTRIBUTES = xmp(f'xmp:CreatorTool="Firefly &amp; Co" e:DigitalSourceType="{IPTC}{AI}"')
AS_ELEMENTS = xmp("", f"<xmp:CreatorTool>Firefly &amp; Co</xmp:CreatorTool><e:DigitalSourceType>{IPTC}{AI}</e:DigitalSourceType>")
AS_RESOURCES = xmp('xmp:CreatorTool="Firefly &amp; Co"', f'<e:DigitalSourceType rdf:resource="{IPTC}{AI}"/>')
OTHER_PREFIX = AS_ELEMENTS.replace(b"e:Digital", b"Iptc4xmpExt:Digital").replace(b"xmlns:e=", b"xmlns:Iptc4xmpExt=")


@pytest.mark.parametrize("packet", [AS_ATTRIBUTES, AS_ELEMENTS, AS_RESOURCES, OTHER_PREFIX])
@pytest.mark.parametrize("form", ["JPEG", "WEBP", "PNG", "GIF", "TIFF", "AVIF"])
def test_source_type_and_tool_in_every_format_and_spelling(packet, form):
    told = said(with_xmp(packet, form))
    assert (told.software, told.digital_source_type, told.ai_declared) == ("Firefly & Co", (AI,), True)


def test_extended_xmp_is_put_together():
    head, digest = b"http://ns.adobe.com/xmp/extension/\0", b"0" * 32
    pieces = [(0, AS_ELEMENTS[:100]), (100, AS_ELEMENTS[100:])]
    parts = [segment(0xE1, head + digest + len(AS_ELEMENTS).to_bytes(4, "big") + at.to_bytes(4, "big") + piece) for at, piece in pieces]
    assert said(jpeg_with(*parts)).digital_source_type == (AI,)
    assert said(jpeg_with(parts[1])) is None


MODELS = ("trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia", "compositeSynthetic")
CODES = dict.fromkeys(MODELS, True) | {"algorithmicMedia": False, "digitalCapture": False}


@pytest.mark.parametrize(("code", "declared"), CODES.items())
def test_which_codes_declare_a_model(code, declared):
    told = said(with_xmp(xmp(f'e:DigitalSourceType="{IPTC}{code}"'), "JPEG"))
    assert (told.digital_source_type, told.ai_declared) == ((code,), declared)


@pytest.mark.parametrize(
    "packet",
    [
        b"<a>" + f'DigitalSourceType="{IPTC}{AI}"'.encode() + b"</a>",  # only the letters
        xmp(f'xmp:DigitalSourceType="{IPTC}{AI}"'),  # another vocabulary's property
        xmp("", f'<xmp:Pantry><rdf:Description e:DigitalSourceType="{IPTC}{AI}"/></xmp:Pantry>'),  # of another file
        xmp(f'e:DigitalSourceType="https://example.org/{AI}"'),
        b'<!DOCTYPE a [<!ENTITY t "x">]>' + AS_ATTRIBUTES,
        xmp("", "<e:a/>" * MOST_ELEMENTS + f"<e:DigitalSourceType>{IPTC}{AI}</e:DigitalSourceType>"),
        b"\0",
    ],
)
def test_what_is_not_the_property_is_not_read(packet):
    assert read_xmp([packet]).source_types == []


def test_a_manifest_elsewhere_is_told_and_not_fetched():
    told = said(with_xmp(xmp('dcterms:provenance="https://127.0.0.1:1/manifest.c2pa"'), "JPEG"))
    assert told.c2pa.model_dump(exclude_defaults=True) == {"state": "unreadable", "ai_generated": False, "remote": True,
                                                            "problems": ("manifest.inaccessible",)}  # fmt: skip
    assert said(with_xmp(xmp('dcterms:provenance="self#jumbf=c2pa"'), "JPEG")) is None
