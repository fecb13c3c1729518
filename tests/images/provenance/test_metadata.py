"""XMP is read as the XML that it is: properties of the file itself, no entities, no substrings."""

import pytest

from ray_app.images.formats import sniff_format
from ray_app.images.provenance import ProvenancePolicy, ProvenanceReader, metadata
from ray_app.images.provenance.metadata import read_xmp
from ray_app.images.provenance.statement import source_type
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
        xmp("", f"<e:Pantry><e:DigitalSourceType>{IPTC}{AI}</e:DigitalSourceType></e:Pantry>"),
        b"\0",
    ],
)
def test_what_is_not_the_property_is_not_read(packet):
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
    assert source_type(value) == AI
    assert read_xmp([xmp(f'e:DigitalSourceType="{value}"')]).source_types == [AI]
    assert read_xmp([xmp("", f"<e:DigitalSourceType><rdf:Bag><rdf:li>{value}</rdf:li></rdf:Bag></e:DigitalSourceType>")]).source_types == [
        AI
    ]


def test_source_types_in_a_bag_are_all_read():
    items = "".join(f"<rdf:li>{IPTC}{code}</rdf:li>" for code in ("digitalCapture", AI))
    packet = xmp("", f"<e:DigitalSourceType><rdf:Bag>{items}</rdf:Bag></e:DigitalSourceType>")
    assert read_xmp([packet]).source_types == ["digitalCapture", AI]


@pytest.mark.parametrize("form", ["JPEG", "WEBP", "PNG", "TIFF", "AVIF"])
@pytest.mark.parametrize("is_last", [False, True])
def test_xmp_with_a_long_history_is_read(form, is_last):
    ancestors = "<rdf:li>xmp.did:0180117407206811822A8A8A8A8A8A8A</rdf:li>" * 12_000
    history = f"<xmp:Ancestors><rdf:Bag>{ancestors}</rdf:Bag></xmp:Ancestors>"
    stated = f"<e:DigitalSourceType>{IPTC}{AI}</e:DigitalSourceType>"
    packet = xmp("", history + stated if is_last else stated + history)
    assert len(packet) > 500_000
    if form == "JPEG":
        head, digest, size = b"http://ns.adobe.com/xmp/extension/\0", b"0" * 32, len(packet).to_bytes(4, "big")
        pieces = [(at, packet[at : at + 60_000]) for at in range(0, len(packet), 60_000)]
        data = jpeg_with(*(segment(0xE1, head + digest + size + at.to_bytes(4, "big") + piece) for at, piece in pieces))
    else:
        data = with_xmp(packet, form)
    found = said(data)
    assert (found.digital_source_type, found.ai_declared, found.unread) == ((AI,), True, ())


def test_xmp_over_the_limit_is_read_up_to_there():
    stated = f"<e:DigitalSourceType>{IPTC}{AI}</e:DigitalSourceType>"
    filler = f"<xmp:Filler>{'x' * 5000}</xmp:Filler>"
    reader = ProvenanceReader(ProvenancePolicy(), max_text_bytes=4000)
    for form in ("JPEG", "WEBP", "PNG", "TIFF", "AVIF", "GIF"):
        for packet, codes in ((xmp("", stated + filler), (AI,)), (xmp("", filler + stated), ())):
            data = with_xmp(packet, form)
            found = reader.read(data, sniff_format(data))
            assert (found.digital_source_type, found.unread) == (codes, ("XMP: over max_text_bytes (4000)",)), form


def test_xmp_of_too_many_elements_is_said_to_be_unread(monkeypatch):
    packet = xmp("", "<e:a/>" * 1000 + f"<e:DigitalSourceType>{IPTC}{AI}</e:DigitalSourceType>")
    assert said(with_xmp(packet, "PNG")).digital_source_type == (AI,)
    monkeypatch.setattr(metadata, "MOST_ELEMENTS", 900)
    found = said(with_xmp(packet, "PNG"))
    assert (found.digital_source_type, found.unread) == ((), ("XMP after its first 900 elements",))


def test_a_manifest_elsewhere_is_told_and_not_fetched():
    told = said(with_xmp(xmp('dcterms:provenance="https://127.0.0.1:1/manifest.c2pa"'), "JPEG"))
    assert told.c2pa.model_dump(exclude_defaults=True) == {"state": "unreadable", "ai_generated": False, "remote": True,
                                                            "problems": ("manifest.inaccessible",)}  # fmt: skip
    assert said(with_xmp(xmp('dcterms:provenance="self#jumbf=c2pa"'), "JPEG")) is None
