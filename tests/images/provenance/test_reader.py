"""What files say of their origin: statements by format, nothing private, nothing from what is
malformed, nothing slow.
"""

import json
import multiprocessing
import struct
import sys
import time
import zlib
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ray_app.ensembles.card import Thresholds
from ray_app.ensembles.finding import find_origin
from ray_app.errors import ConfigError
from ray_app.images import ImageLimits, decode_image
from ray_app.images.formats import sniff_format
from ray_app.images.provenance import (
    Provenance,
    ProvenanceConfig,
    ProvenancePolicy,
    ProvenanceReader,
    generators,
    has_manifest,
)
from ray_app.images.provenance.containers import locate
from ray_app.images.provenance.metadata import read_exif
from ray_app.images.provenance.trust_lists import load_own_list
from tests.make import images
from tests.make.flips import SWEEPS
from tests.make.provenance.files import (
    READER,
    WEBUI,
    box,
    camera_exif,
    jpeg_with,
    png_with,
    said,
    segment,
    user_comment,
    xmp,
)
from tests.make.provenance.signing import authority, signed


def test_trust_list_is_a_file_or_its_text(tmp_path):
    path = tmp_path / "list.pem"
    path.write_text(authority().root)
    wanted = ProvenancePolicy(trust_lists=(load_own_list(authority().root),))
    for trust_list in (str(path), authority().root):
        assert ProvenanceConfig(trust_list=trust_list).policy() == wanted
    assert ProvenanceConfig().policy() == ProvenancePolicy()
    assert ProvenanceConfig(read=False, trust_list="nowhere").policy() is None


DAMAGED = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"


@pytest.mark.parametrize("content", [b"", b"no certificates", b"\xff\xfe", DAMAGED, None])
def test_trust_list_without_certificates_is_refused(tmp_path, content):
    path = tmp_path / "list.pem"
    if content is not None:
        path.write_bytes(content)
    reason = r"provenance\.trust_list" if content is not None else "No such file"
    with pytest.raises(ConfigError, match=reason):
        ProvenanceConfig(trust_list=str(path)).policy()


STARTS = {"JPEG": b"\xff\xd8", "PNG": b"\x89PNG\r\n\x1a\n", "WEBP": b"RIFF\xff\xff\0\0WEBP", "GIF": b"GIF89a" + bytes(7),
          "TIFF": b"II*\0\x08\0\0\0", "AVIF": b"\0\0\0\x14ftypavif\0\0\0\0mif1", "HEIC": b"\0\0\0\x14ftypheic\0\0\0\0mif1"}  # fmt: skip


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "AVIF", "HEIF", "TIFF"])
def test_camera_is_read_without_names_and_places(form):
    exif = camera_exif()
    if form == "TIFF":
        exif = Image.Exif()
        exif.load(camera_exif())
    row = json.loads(said(images.encoded(images.photo(), form, exif=exif)).row())
    camera = {"make": "Nikon", "model": "Z 6", "taken": "2024:05:06 07:08:09"}
    assert row == {"camera": camera, "software": "Ver.1", "ai_declared": False}


def test_remarks_of_a_person_are_not_read():
    remarks = {"Description": "my aunt Mary", "Comment": "in Delft", "Title": "x"}
    assert said(png_with(Author="Jane Doe", **remarks)) is None
    assert said(images.jpeg(exif=user_comment(b"ASCII\0\0\0", b"my aunt Mary"))) is None
    assert said(images.jpeg(comment=b"my aunt Mary")) is None


def test_software_is_read_from_iptc():
    records = [b"\x1c\x02\x50\x00\x04Jane", b"\x1c\x02\x41\x00\x0bPhoto Mecha"]
    body = b"".join([*records, b"\x1c\x02\x46\x00\x016"])
    resources = b"8BIM\x04\x0c\x03abc\0\0\0\x02xx" + b"8BIM\x04\x04\0\0"
    resources += len(body).to_bytes(4, "big") + body
    found = said(jpeg_with(segment(0xED, b"Photoshop 3.0\0" + resources)))
    assert json.loads(found.row()) == {"software": "Photo Mecha 6", "ai_declared": False}


def test_values_are_one_short_printable_line():
    found = said(png_with(Software="\x1b[31mred\u202e\r\n\x00  " + "a" * 5000))
    assert found.software == "[31mred " + "a" * 292
    assert said(png_with(Software="\x01\x02")) is None
    many = Provenance.from_statements(digital_source_type=[f"{i}" * 200 for i in range(99)])
    assert len(many.digital_source_type) == 16


def test_files_without_statements_declare_nothing():
    for name, (_, make) in [*images.SOUND.items(), *images.ODD.items(), *images.REFUSED.items()]:
        found = said(make())
        assert found is None or not found.ai_declared, name


@pytest.mark.parametrize("examples", SWEEPS)
def test_any_bytes_and_damage_are_short_statements_or_none(examples):
    files = {form: signed(form) for form in ("PNG", "WEBP", "GIF", "TIFF", "AVIF")}
    files["JPEG"] = images.jpeg(exif=camera_exif())

    @settings(max_examples=examples, deadline=None)
    @given(
        st.sampled_from(sorted(STARTS)),
        st.binary(max_size=400),
        st.lists(st.tuples(st.integers(0, 899), st.integers(0, 255)), max_size=8),
    )
    def check(form, tail, damage):
        data = bytearray(files.get(form, b"\0"))
        for at, value in damage:
            data[at % len(data)] = value
        for anything in (STARTS[form] + tail, tail, bytes(data)):
            found = READER.read(anything, form, native=False)
            if found is not None:
                assert found == Provenance.model_validate_json(found.row())
                assert len(found.row()) < 40_000

    check()


LIMITED = ProvenanceReader(ProvenancePolicy(), max_text_bytes=8000)
OVER = "over max_text_bytes (8000)"


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "TIFF"])
def test_text_over_the_limit_is_reported_unread(form):
    text = "x" * 9000 + "\nSteps: 20, Sampler: Euler a, Seed: 1"
    block = Image.Exif()
    block[270] = text
    options = {"GIF": {"comment": text.encode()}, "TIFF": {"tiffinfo": {270: text}}}
    options = options.get(form, {"exif": block.tobytes()})
    is_png = form == "PNG"
    data = png_with(parameters=text) if is_png else images.encoded(images.photo(), form, **options)
    what = {"PNG": "text “parameters”", "GIF": "text “comment”"}.get(form, "EXIF")
    found = LIMITED.read(data, form)
    assert (found.generator, found.ai_declared) == (None, False)
    assert found.unread == (f"{what}: {OVER}",)
    finding = find_origin(found.row(), "real", Thresholds())
    grounds = [ground.says for ground in finding.grounds]
    assert f"not all of its metadata was read: {what}: {OVER}" in grounds
    assert finding.finding == "no evidence found"


def test_metadata_of_provenance_alone_sets_no_flag():
    data = jpeg_with(segment(0xFE, b"ab") * 4001)
    assert said(data).unread == ("what follows 4000 segments",)
    assert decode_image(data, ImageLimits()).facts.flags == ()


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt"])
def test_packed_text_within_the_limit_is_read(kind):
    text = WEBUI.encode() + b" " * (3 * 2**20)
    head = b"parameters\0\0" if kind == b"zTXt" else b"parameters\0\1\0\0\0"
    for at in (33, -12):
        data = images.png()
        data = data[:at] + images.chunk(kind, head + zlib.compress(text)) + data[at:]
        assert said(data).generator.seed == 4294967295


def test_metadata_is_limited_as_a_whole():
    found = LIMITED.read(png_with(first="x" * 5000, parameters=WEBUI + " " * 5000), "PNG")
    assert (found.generator, found.unread) == (None, (f"text “parameters”: {OVER}",))
    assert LIMITED.read(png_with(parameters=WEBUI, second="x" * 9000), "PNG").generator is not None


def exif_tags(texts: bytes, offsets: list[int]) -> bytes:
    """EXIF whose text tags all end at the end of the same text, and start at offsets in it."""
    start = 8 + 2 + 12 * len(offsets) + 4
    entries = b"".join(
        struct.pack("<HHII", 40_000 + number, 2, len(texts) - at, start + at)
        for number, at in enumerate(offsets)
    )
    head = b"II*\0\x08\0\0\0" + struct.pack("<H", len(offsets))
    return head + entries + bytes(4) + texts


def test_exif_tags_that_share_a_text_are_limited_as_a_whole():
    labels = b"".join(b"k%04d: {" % number for number in range(100))
    block = exif_tags(labels + b"a" * 2**20, list(range(0, len(labels), 8)))
    statements = read_exif(block, 2**21)
    assert (len(statements.texts), statements.is_whole) == (2, False)
    assert sum(map(len, statements.texts.values())) <= 2**21
    statements = read_exif(exif_tags(b"{" + b"a" * 2**20, [0] * 1000), 2**21)
    assert (len(statements.texts), statements.is_whole) == (1, True)
    assert statements.left_bytes == 2**20 - 1


BOMB = zlib.compress(bytes(2**20), 9)
BROKEN_BOMB = BOMB[:-4] + b"\xff" * 4
ONE_XMP = images.chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0<x/>")
XMP_BOMB = b"XML:com.adobe.xmp\0\1\0\0\0"
BOMBS = {
    "texts-after-the-maximum": b"".join(images.chunk(b"tEXt", b"a%d\0x" % n) for n in range(1000))
    + images.chunk(b"zTXt", b"k\0\0" + BOMB) * 500,
    "xmp-after-the-maximum": ONE_XMP * 2 + images.chunk(b"iTXt", XMP_BOMB + BOMB) * 500,
    "broken-texts": b"".join(
        images.chunk(b"zTXt", b"k%d\0\0" % n + BROKEN_BOMB) for n in range(500)
    ),
    "broken-xmp": ONE_XMP + images.chunk(b"iTXt", XMP_BOMB + BROKEN_BOMB) * 500,
}


@pytest.mark.parametrize("name", BOMBS)
def test_png_bombs_over_the_maximum_are_not_unpacked(name):
    data = images.png()
    data = data[:33] + BOMBS[name] + data[33:]
    started = time.process_time()
    assert ProvenanceReader(ProvenancePolicy(), max_text_bytes=2**21).read(data, "PNG").unread
    assert time.process_time() - started < 0.1


def test_has_manifest_unpacks_no_text(monkeypatch):
    data = signed("PNG")
    data = data[:33] + images.chunk(b"zTXt", b"k\0\0" + BOMB) + data[33:]
    monkeypatch.setattr(zlib, "decompressobj", lambda: pytest.fail("a text was unpacked"))
    assert has_manifest(data, "PNG")


def test_json_of_too_many_values_is_reported_unread(monkeypatch):
    graph = json.dumps({str(n): {"class_type": "Note", "inputs": {}} for n in range(300)})
    assert said(png_with(prompt=graph)).generator.tool == "ComfyUI"
    monkeypatch.setattr(generators, "MAX_VALUES", 500)
    found = said(png_with(prompt=graph))
    assert (found.generator, found.unread) == (None, ("text “prompt”: more than 500 values",))


def test_gif_text_after_many_frames_is_read():
    plain = images.encoded(images.photo(400, 400).convert("L"), "GIF")
    frame = plain[plain.index(b",", 13 + 768) : -1]
    comment = WEBUI.encode()
    blocks = b"".join(bytes([len(part)]) + part for part in (comment[:200], comment[200:]))
    data = plain[:-1] + frame * 40 + b"!\xfe" + blocks + b"\0;"
    assert len(data) > 4_000_000  # more than ten thousand blocks
    assert said(data).generator.seed == 4294967295


SIZE = 32 * 2**20
ILOC = b"\1\0\0\0\0\0\xff\xff" + b"\0\1\0\0\0\0\xff\xff" * 60_000
INFES = box(b"iinf", bytes(6), box(b"infe", b"\2", bytes(13)) * 1000)
LAUGHS = b'<!DOCTYPE a [<!ENTITY b "bbbbbbbbbb"><!ENTITY c "&b;&b;&b;&b;">]><a>&c;</a>'.ljust(256)
SLOW = {
    "JPEG of empty segments": ("JPEG", lambda: STARTS["JPEG"] + b"\xff\xe1\0\x02" * (SIZE // 4)),
    "PNG of text bombs": ("PNG", lambda: STARTS["PNG"] + images.chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**22))) * 3000),
    "WebP of empty chunks": ("WEBP", lambda: STARTS["WEBP"] + b"XMP \0\0\0\0" * (SIZE // 8)),
    "GIF of one-byte blocks": ("GIF", lambda: STARTS["GIF"] + b"!\xfe" + b"\1a" * (SIZE // 2)),
    "TIFF of tags": ("TIFF", lambda: b"II+\0\x08\0\0\0\x10" + bytes(7) + (SIZE // 20).to_bytes(8, "little") + b"\x0f\1\2\0" * (SIZE // 4)),
    "AVIF of metas": ("AVIF", lambda: b"\0\0\0\x08ftyp" + box(b"meta", bytes(4), INFES, box(b"iloc", ILOC[:9000])) * 990),
    "JPEG of resources": ("JPEG", lambda: STARTS["JPEG"] + segment(0xED, b"Photoshop 3.0\0" + b"8BIM\0\0\0\0\0\0\0\0" * 200) * 4000),
    "settings without a colon": ("JPEG", lambda: jpeg_with(segment(0xFE, b"Steps: 1, A" + b"a " * 30000))),
    "XMP of elements": ("WEBP", lambda: STARTS["WEBP"] + b"XMP \0\0\x04\0" + b"<a>" + b"<b/>" * 65535 + b"b"),
    "XMP of laughs": ("WEBP", lambda: STARTS["WEBP"] + b"XMP \0\1\0\0" + LAUGHS),
}  # fmt: skip


WHOLE = 16 * 2**20 - 100  # just under the limit
PROMPT, PARAMETERS = (b"tEXt", b"prompt\0"), (b"tEXt", b"parameters\0")
XMP = b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0"
LARGE_TEXT = b'{"3": {"class_type": "a", "inputs": {"b": "' + b"c" * (WHOLE - 99) + b'"}}}'
ITEMS = "<e:DigitalSourceType>" + "<rdf:li>a</rdf:li>" * (WHOLE // 19) + "</e:DigitalSourceType>"
ENDLESS = {
    "graph": lambda: png_of(*PROMPT, b'{"3":' + b'{"a":1},"4":' * (WHOLE // 12 - 1) + b"{}}"),
    "lists": lambda: png_of(*PROMPT, b'{"3":[' + b"[]," * (WHOLE // 3 - 10) + b"[]]}"),
    "strings": lambda: png_of(*PROMPT, b'{"3":[' + b'"ab",' * 1_990_000 + b'""]}'),
    "objects": lambda: png_of(*PROMPT, b'{"3":[' + b"{}," * 990_000 + b"{}]}"),
    "a large text": lambda: png_of(*PROMPT, LARGE_TEXT),
    "packed objects": lambda: png_of(
        b"zTXt",
        b"workflow\0\0",
        zlib.compress(b'{"nodes":[' + b"{}," * (WHOLE // 3 - 10) + b"{}]}"),
    ),
    "steps": lambda: png_of(*PARAMETERS, b"Steps: 1, A" * (WHOLE // 11)),
    "lines of steps": lambda: png_of(*PARAMETERS, b"Steps: 1, A\n" * (WHOLE // 12)),
    "digits of steps": lambda: png_of(*PARAMETERS, b"Steps: " + b"1" * (WHOLE - 9)),
    "dream": lambda: png_of(b"tEXt", b"Dream\0", b'"a" -s ' * (WHOLE // 7)),
    "emoji": lambda: png_of(b"iTXt", b"prompt\0\0\0\0\0", "😀".encode() * (WHOLE // 4)),
    "history": lambda: png_of(*XMP, xmp("", "<e:x><e:b/></e:x>" * (WHOLE // 18))),
    "elements": lambda: png_of(*XMP, b"<a>" + b"<b/>" * (WHOLE // 4 - 1)),
    "items": lambda: png_of(*XMP, xmp("", ITEMS)),
    "comment": lambda: images.encoded(
        images.photo(),
        "WEBP",
        exif=user_comment(b"UNICODE\0", b"\0{" + b"\0a" * (WHOLE // 2 - 300)),
    ),
}


def png_of(kind: bytes, head: bytes, body: bytes) -> bytes:
    data = images.png()
    return data[:33] + images.chunk(kind, head + body) + data[33:]


def read_measured(data: bytes, form: str) -> tuple[float, int]:
    """Seconds of processor time, and bytes that this process grew by at most."""
    Path("/proc/self/clear_refs").write_text("5")
    before, started = memory("VmRSS"), time.process_time()
    READER.read(data, form)
    return time.process_time() - started, memory("VmHWM") - before


def memory(name: str) -> int:
    line = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)
    )
    return int(line.split()[1]) * 1024


@pytest.fixture(scope="module")
def measured():
    """`read_measured` in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield lambda *wanted: pool.submit(read_measured, *wanted).result()


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel for its count")
@pytest.mark.parametrize("name", ENDLESS)
def test_metadata_of_16_mib_takes_bounded_time_and_memory(name, measured):
    data = ENDLESS[name]()
    seconds, size_bytes = measured(data, sniff_format(data))
    assert seconds < 5
    assert size_bytes < 384 * 2**20  # what any process has room for


def seconds_of(function, *arguments) -> float:
    started = time.process_time()
    function(*arguments)
    return time.process_time() - started


@pytest.mark.parametrize("name", SLOW)
def test_container_of_32_mib_is_read_only_up_to_a_limit(name):
    """The time is compared with that of a loop, which a busy machine slows as much."""
    form, make = SLOW[name]
    data, numbers = make(), range(10**6)
    pairs = [(seconds_of(READER.read, data, form), seconds_of(sum, numbers)) for _ in range(5)]
    spent, loop = (min(seconds) for seconds in zip(*pairs, strict=True))
    assert spent < 4 * loop, f"{spent:.3f} s, and {loop:.3f} s for a loop"


def test_manifest_store_is_known_by_its_type_and_place():
    assert locate(signed("PNG"), "PNG").manifest_bytes > 1000
    store = signed("PNG")[signed("PNG").index(b"caBX") + 4 :][:3000]
    other = b"JP\0\1\0\0\0\1" + store.replace(b"c2pa\0\x11", b"c3pa\0\x11")
    assert said(png_with(Comment="c2pa jumb caBX")) is None
    assert said(images.jpeg() + store) is None, "behind the end"
    assert said(jpeg_with(segment(0xFE, store))) is None, "in a comment"
    assert said(jpeg_with(segment(0xEB, other))) is None
