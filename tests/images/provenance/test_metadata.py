"""XMP is read as the XML that it is: properties of the file itself, no entities, no substrings."""

import time

import pytest

from ray_app.images.formats import sniff_format
from ray_app.images.provenance import ProvenancePolicy, ProvenanceReader, metadata
from ray_app.images.provenance.metadata import read_xmp
from ray_app.images.provenance.statement import parse_source_type
from tests.make.provenance.files import IPTC, jpeg_with, said, segment, with_xmp, xmp

AI = "trainedAlgorithmicMedia"
AS_ATTRIBUTES = xmp(f'xmp:CreatorTool="Firefly &amp; Co" e:DigitalSourceType="{IPTC}{AI}"')
STATED = f"<e:DigitalSourceType>{IPTC}{AI}</e:DigitalSourceType>"
AS_ELEMENTS = xmp("", f"<xmp:CreatorTool>Firefly &amp; Co</xmp:CreatorTool>{STATED}")
RESOURCE = f'<e:DigitalSourceType rdf:resource="{IPTC}{AI}"/>'
AS_RESOURCES = xmp('xmp:CreatorTool="Firefly &amp; Co"', RESOURCE)
OTHER_PREFIX = AS_ELEMENTS.replace(b"e:Digital", b"x:Digital").replace(b"xmlns:e=", b"xmlns:x=")


@pytest.mark.parametrize("packet", [AS_ATTRIBUTES, AS_ELEMENTS, AS_RESOURCES, OTHER_PREFIX])
@pytest.mark.parametrize("form", ["JPEG", "WEBP", "PNG", "GIF", "TIFF", "AVIF"])
def test_xmp_is_read_in_every_format_and_spelling(packet, form):
    found = said(with_xmp(packet, form))
    assert (found.software, found.digital_source_type) == ("Firefly & Co", (AI,))
    assert found.ai_declared


def extended(packet: bytes, piece_bytes: int) -> list[bytes]:
    """The segments of a JPEG in which XMP of any length is split."""
    head = b"http://ns.adobe.com/xmp/extension/\0" + b"0" * 32 + len(packet).to_bytes(4, "big")
    return [
        segment(0xE1, head + at.to_bytes(4, "big") + packet[at : at + piece_bytes])
        for at in range(0, len(packet), piece_bytes)
    ]


def test_xmp_in_several_segments_is_put_together():
    parts = extended(AS_ELEMENTS, 1 + len(AS_ELEMENTS) // 2)
    assert said(jpeg_with(*parts)).digital_source_type == (AI,)
    assert said(jpeg_with(parts[1])) is None


MODELS = ("trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia", "compositeSynthetic")
CODES = dict.fromkeys(MODELS, True) | {"algorithmicMedia": False, "digitalCapture": False}


@pytest.mark.parametrize(("code", "declared"), CODES.items())
def test_source_type_of_a_model_is_declared(code, declared):
    told = said(with_xmp(xmp(f'e:DigitalSourceType="{IPTC}{code}"'), "JPEG"))
    assert (told.digital_source_type, told.ai_declared) == ((code,), declared)


@pytest.mark.parametrize(
    "packet",
    [
        b"<a>" + f'DigitalSourceType="{IPTC}{AI}"'.encode() + b"</a>",  # only the letters
        xmp(f'xmp:DigitalSourceType="{IPTC}{AI}"'),  # another vocabulary's property
        # of another file
        xmp("", f'<xmp:Pantry><rdf:Description e:DigitalSourceType="{IPTC}{AI}"/></xmp:Pantry>'),
        xmp(f'e:DigitalSourceType="https://example.org/{AI}"'),
        b'<!DOCTYPE a [<!ENTITY t "x">]>' + AS_ATTRIBUTES,
        xmp("", f"<e:Pantry><e:DigitalSourceType>{IPTC}{AI}</e:DigitalSourceType></e:Pantry>"),
        b"\0",
    ],
)
def test_xmp_of_another_property_is_not_read(packet):
    assert read_xmp([packet]).source_types == []


@pytest.mark.parametrize(
    "value",
    [
        f"http://cv.iptc.org/newscodes/digitalsourcetype/{AI}",
        f"https://cv.iptc.org/newscodes/digitalsourcetype/{AI}/",
        f"HTTP://CV.IPTC.ORG/NewsCodes/DigitalSourceType/{AI}?lang=en",
        f"cv.iptc.org/newscodes/digitalsourcetype/{AI}#it",
        f"http://c2pa.org/digitalsourcetype/{AI}",
        f"digsrctype:{AI}",
        "https://schema.org/TrainedAlgorithmicMediaDigitalSource",
        AI.upper(),
        f" {AI} ",
    ],
)
def test_source_type_is_read_in_every_form(value):
    assert parse_source_type(value) == AI
    bag = f"<e:DigitalSourceType><rdf:Bag><rdf:li>{value}</rdf:li></rdf:Bag></e:DigitalSourceType>"
    for packet in (xmp(f'e:DigitalSourceType="{value}"'), xmp("", bag)):
        assert read_xmp([packet]).source_types == [AI]


def test_source_types_in_a_bag_are_all_read():
    items = "".join(f"<rdf:li>{IPTC}{code}</rdf:li>" for code in ("digitalCapture", AI))
    packet = xmp("", f"<e:DigitalSourceType><rdf:Bag>{items}</rdf:Bag></e:DigitalSourceType>")
    assert read_xmp([packet]).source_types == ["digitalCapture", AI]


@pytest.mark.parametrize("form", ["JPEG", "WEBP", "PNG", "TIFF", "AVIF"])
@pytest.mark.parametrize("is_last", [False, True])
def test_xmp_with_a_long_history_is_read(form, is_last):
    ancestors = "<rdf:li>xmp.did:0180117407206811822A8A8A8A8A8A8A</rdf:li>" * 12_000
    history = f"<xmp:Ancestors><rdf:Bag>{ancestors}</rdf:Bag></xmp:Ancestors>"
    packet = xmp("", history + STATED if is_last else STATED + history)
    assert len(packet) > 500_000
    data = jpeg_with(*extended(packet, 60_000)) if form == "JPEG" else with_xmp(packet, form)
    found = said(data)
    assert (found.digital_source_type, found.ai_declared, found.unread) == ((AI,), True, ())


def test_xmp_over_the_limit_is_read_up_to_there():
    filler = f"<xmp:Filler>{'x' * 5000}</xmp:Filler>"
    reader = ProvenanceReader(ProvenancePolicy(), max_text_bytes=4000)
    for form in ("JPEG", "WEBP", "PNG", "TIFF", "AVIF", "GIF"):
        for packet, codes in ((xmp("", STATED + filler), (AI,)), (xmp("", filler + STATED), ())):
            data = with_xmp(packet, form)
            found = reader.read(data, sniff_format(data))
            assert found.digital_source_type == codes, form
            assert found.unread == ("XMP: over max_text_bytes (4000)",), form


XMP_LIMIT = "XMP: too many elements and attributes, or too long names"
ATTRIBUTES = " ".join(f'xmp:a{n:x}=""' for n in range(60_000))
COSTLY = {
    "elements": xmp("", "<e:a/>" * 1000),
    "attributes": xmp("", '<e:a xmp:b="" xmp:c=""/>' * 400),
    "attributes-of-one-element": xmp(ATTRIBUTES),
    "long-namespace": xmp(f'xmlns:z="{"u" * 2_000_000}"', "<z:b/>" * 200),
    "long-namespace-in-apostrophes": xmp(
        f"a='=\"' xmlns:z = '{'u' * 2_000_000}'", '<z:b z:c=""/>' * 50
    ),
}


@pytest.mark.parametrize("name", COSTLY)
def test_xmp_that_is_costly_to_parse_is_reported_unread(name, monkeypatch):
    end = "</rdf:Description>"
    packet = COSTLY[name].replace(end.encode(), (STATED + end).encode())
    if not name.startswith("long-namespace"):
        assert read_xmp([packet]).source_types == [AI]
        monkeypatch.setattr(metadata, "MAX_XMP_MARKS", 1000)
    monkeypatch.setattr(metadata, "_CHUNK_BYTES", 1 << 16)
    started = time.process_time()
    found = said(with_xmp(packet, "PNG"))
    assert (found.digital_source_type, found.unread) == ((), (XMP_LIMIT,))
    assert time.process_time() - started < 0.3


def test_xmp_attribute_of_megabytes_is_read():
    depth_map = f'xmlns:d="http://ns.google.com/photos/1.0/depthmap/" d:Data="{"A" * 3_000_000}"'
    found = read_xmp([xmp(f'{depth_map} e:DigitalSourceType="{IPTC}{AI}"')])
    assert (found.source_types, found.is_whole) == ([AI], True)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("declaration", ["", '<?xml version="1.0" encoding="UTF-16"?>'])
def test_xmp_in_utf_16_is_read(encoding, declaration):
    packet = (declaration + xmp(f'e:DigitalSourceType="{IPTC}{AI}"').decode()).encode(encoding)
    assert read_xmp([packet]).source_types == [AI]
    assert read_xmp([packet + bytes(8)]).source_types == [AI]


def test_xmp_in_an_encoding_unlike_ascii_is_not_read():
    text = xmp(f'e:DigitalSourceType="{IPTC}{AI}"').decode()
    packet = b'<?xml version="1.0" encoding="cp037"?>' + text.encode("cp037")
    assert read_xmp([packet]).source_types == []


def test_xmp_names_a_manifest_elsewhere():
    found = said(with_xmp(xmp('dcterms:provenance="https://127.0.0.1:1/manifest.c2pa"'), "JPEG"))
    assert (found.c2pa.state, found.c2pa.remote) == ("unreadable", True)
    assert found.c2pa.problems == ("manifest.inaccessible",)
    assert said(with_xmp(xmp('dcterms:provenance="self#jumbf=c2pa"'), "JPEG")) is None
