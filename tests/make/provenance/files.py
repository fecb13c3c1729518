"""Files that say something of their origin, made in code."""

import struct

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ray_app.images.formats import sniff_format
from ray_app.images.provenance import Provenance, ProvenancePolicy, ProvenanceReader
from tests.make import images

GPS, ARTIST = 34853, 315
IPTC = "http://cv.iptc.org/newscodes/digitalsourcetype/"
# The parameters of a picture, as Stable Diffusion web UI writes them.
WEBUI = """a cat, (sleeping:1.2)
on two lines
Negative prompt: ugly, blurry
Steps: 20, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 4294967295, Size: 512x768, Model hash: 6ce0161689, Model: v1-5-pruned, """ \
    'Lora hashes: "a: 1, b: 2", Version: v1.6.0'  # fmt: skip
READER = ProvenanceReader(ProvenancePolicy())


def said(data: bytes) -> Provenance | None:
    return READER.read(data, sniff_format(data))


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


def png_with(**texts: str) -> bytes:
    notes = PngInfo()
    for key, text in texts.items():
        notes.add_text(key, text)
    return images.png(pnginfo=notes)


def xmp(inner: str, element: str = "") -> bytes:
    description = f"<rdf:Description {inner}>{element}</rdf:Description>"
    return f"""<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">
<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" xmlns:e="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
 xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmlns:dcterms="http://purl.org/dc/terms/">{description}</rdf:RDF></x:xmpmeta>""".encode()


def with_xmp(packet: bytes, form: str) -> bytes:
    if form == "PNG":
        notes = PngInfo()
        notes.add_itxt("XML:com.adobe.xmp", packet.decode(), zip=True)
        return images.png(pnginfo=notes)
    if form == "GIF":
        plain = images.encoded(images.photo(), "GIF")
        trailer = bytes([1, *range(255, -1, -1), 0])
        return plain[:-1] + b"\x21\xff\x0bXMP DataXMP" + packet + trailer + b";"
    if form == "TIFF":
        return images.encoded(images.photo(), "TIFF", tiffinfo={700: packet})
    return images.encoded(images.photo(), form, xmp=packet)


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def jpeg_with(*segments: bytes) -> bytes:
    plain = images.jpeg()
    return plain[:2] + b"".join(segments) + plain[2:]


def box(kind: bytes, *content: bytes) -> bytes:
    body = b"".join(content)
    return struct.pack(">I", len(body) + 8) + kind + body
