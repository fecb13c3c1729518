import gzip
import lzma
import os
import random
import tarfile
import tracemalloc

import pytest
import webdataset as wds
from backports import zstd

from ray_app.archives.containers import detect_kind
from ray_app.storage import Fetcher
from tests.archives.containers import hazards
from tests.archives.containers.hazards import (
    FILES,
    PACK,
    block,
    contents,
    gnu_header,
    header,
    member,
    opened,
    pax,
    statuses,
    tar,
    written,
)

MIB = 2**20
CUT, DAMAGED, LARGE, UNSAFE = "truncated_image", "corrupt_image", "image_too_large", "unsafe_member"
END = bytes(1024)
ONE = tar({"a.jpg": b"x"})


def packed(data: bytes, kind: str) -> bytes:
    return PACK[kind](data) if kind in PACK else data


def listed_alike(folder, data: bytes, **limits):
    """List a tar as a file; a gzip of it, whose headers are read from a stream, lists the same."""
    found = [written(folder, packed(data, kind), kind, **limits) for kind in ("tar", "tar.gz")]
    assert statuses(found[0]) == statuses(found[1])
    assert contents(found[0]) == contents(found[1])
    return found[0]


@pytest.mark.parametrize("kind", ["tar", *PACK])
@pytest.mark.parametrize(
    ("tar_format", "long"),
    [
        (tarfile.USTAR_FORMAT, "folder/" * 20 + "x.jpg"),
        (tarfile.GNU_FORMAT, "folder/" * 14 + "long ä😀 name" * 9 + ".jpg"),
        (tarfile.PAX_FORMAT, "folder/" * 14 + "long ä😀 name" * 9 + ".jpg"),
    ],
    ids=["ustar", "gnu", "pax"],
)
def test_tar_from_tarfile_lists_and_reads_every_member(tmp_path, kind, tar_format, long):
    files = FILES | {long: b"long"}
    listed = written(tmp_path, packed(tar(files, tar_format=tar_format), kind), kind)
    assert [(item.member, item.size_bytes, item.place.kind) for item in listed] == [
        (name, len(data), kind) for name, data in files.items()
    ]
    assert contents(listed) == list(files.values())
    assert listed == opened(tmp_path / f"archive.{kind}", kind)


def test_tar_from_webdataset_has_texts_as_columns(tmp_path):
    with wds.TarWriter(str(tmp_path / "shard.tar")) as writer:
        for number in range(3):
            parts = {"jpg": b"jpeg%d" % number, "json": {"n": number}, "cls": number, "bin": b"raw"}
            writer.write({"__key__": f"{number:06}", **parts})
    listed = listed_alike(tmp_path, (tmp_path / "shard.tar").read_bytes())
    assert [(item.member, item.input["json"], item.input["cls"]) for item in listed] == [
        (f"{number:06}.{ending}", f'{{"n": {number}}}', str(number))
        for number in range(3)
        for ending in ("bin", "jpg")
    ]
    assert contents(listed)[1::2] == [b"jpeg0", b"jpeg1", b"jpeg2"]


_TIMES = [b"15302164203\0" * 2, b"15302164203\0" + bytes(12), b"\x80" + bytes(10) + b"\1"]
_NAMES = b"Y1.jpg\0\0"
_VOLUME = {"GNU.volume.filename": "2.jpg", "GNU.volume.size": "9", "GNU.volume.offset": "5"}
# Name → the archive, and the name and status of every member.
HEADERS = {
    "names that are not UTF-8": (
        header(b"\xff.jpg") + header(b"\xfe.jpg") + END,
        [(r"\xff.jpg", None), (r"\xfe.jpg", None)],
    ),
    "archive in an archive, and a folder": (
        tar({"inner.tar": tar(), "a.jpg": b"x"}, extra=(member("a", tarfile.DIRTYPE),)),
        [("inner.tar", None), ("a.jpg", None)],
    ),
    "no member": (tar({}), []),
    "one zero block between members": (
        header(b"a.jpg") + bytes(512) + header(b"b.jpg") + bytes(512),
        [("a.jpg", None), ("b.jpg", None)],
    ),
    "records for all members end with their archive": (
        tar({"a.jpg": b"x"}, pax_headers={"path": "everywhere.jpg"}) + tar({"b.jpg": b"y"}),
        [("everywhere.jpg", None), ("b.jpg", None)],
    ),
    "one byte after the end mark": (ONE + b"\n", [("a.jpg", None)]),
    "511 bytes after the end mark": (ONE + b"\n" * 511, [("a.jpg", None)]),
    "512 bytes after the end mark": (ONE + b"\xff" * 512, [("a.jpg", None), (None, DAMAGED)]),
    "700 bytes after the end mark": (ONE + b"\xff" * 700, [("a.jpg", None), (None, DAMAGED)]),
    "padding is not part of the ratio": (
        ONE + bytes(3 * MIB) + tar({"b.jpg": b"x"}),
        [("a.jpg", None), ("b.jpg", None)],
    ),
    "GNU tar: times in the place of a prefix": (
        b"".join(gnu_header(b"%d.jpg" % n, prefix=times) for n, times in enumerate(_TIMES)) + END,
        [(f"{number}.jpg", None) for number in range(3)],
    ),
    # Go before 1.8 wrote prefixes into GNU headers (https://golang.org/issues/12594).
    "GNU tar: a prefix": (
        gnu_header(b"1.jpg", prefix=b"folder/2024") + END,
        [("folder/2024/1.jpg", None)],
    ),
    "GNU tar: label, folder listing, access list": (
        gnu_header(b"Backup 2024", type_=b"V")
        + gnu_header(b"in/", size=len(_NAMES), type_=b"D")
        + block(_NAMES)
        + header(b"acl", b"%011o\0" % 3, b"A")
        + block(b"acl")
        + tar({"in/1.jpg": b"x"}),
        [("in/1.jpg", None)],
    ),
    "GNU tar: the rest of files of another volume": (
        gnu_header(b"1.jpg", size=4, type_=b"M")
        + block(b"rest")
        + tar({"GNUFileParts/2.jpg.2": b"rest", "3.jpg": b"x"}, pax_headers=_VOLUME),
        [("1.jpg", CUT), ("2.jpg", CUT), ("3.jpg", None)],
    ),
    "sparse file of GNU tar 1.0": (
        pax(b"22 GNU.sparse.major=1\n" + b"28 GNU.sparse.name=in/1.jpg\n")
        + header(b"GNUSparseFile.7/1.jpg", b"%011o\0" % 512)
        + bytes(512)
        + tar({"after.jpg": b"x"}),
        [("in/1.jpg", UNSAFE), ("after.jpg", None)],
    ),
    "sparse file of old GNU tar": (
        hazards.sparse_old(),
        [("sparse.jpg", UNSAFE), ("after.jpg", None)],
    ),
    "NUL in a name": (pax(b"16 path=a\0b.jpg\n") + header(b"a") + END, [(r"a\x00b.jpg", UNSAFE)]),
    "random bytes": (b"\xff" * 5000, [(None, DAMAGED)]),
    "every byte": (bytes(range(256)) * 40, [(None, DAMAGED)]),
    "negative size": (header(b"a", b"\x80" + b"\xff" * 11) + END, [(None, DAMAGED)]),
    "damage in the middle": (
        tar()[:1024] + b"\xff" * 512 + tar()[1536:],
        [("a/1.jpg", None), (None, DAMAGED)],
    ),
    "size beyond the end": (header(b"a.jpg", b"77777777777\0") + b"little", [("a.jpg", CUT)]),
    "cut inside the first member": (tar()[:997], [("a/1.jpg", CUT)]),
    "cut inside the second member": (tar()[:2226], [("a/1.jpg", None), ("a/2.jpg", CUT)]),
    "cut inside a header": (tar()[:1124], [("a/1.jpg", None), (None, CUT)]),
    "cut before a header": (tar()[:1024], [("a/1.jpg", None), (None, CUT)]),
}


@pytest.mark.parametrize("name", HEADERS)
def test_tar_headers_become_members_or_refusals(tmp_path, name):
    data, expected = HEADERS[name]
    assert statuses(listed_alike(tmp_path, data)) == expected


@pytest.mark.parametrize("kind", ["tar", *PACK])
@pytest.mark.parametrize("streams", [1, 2])
def test_tar_after_an_end_mark_is_read_as_by_ignore_zeros(tmp_path, kind, streams):
    both = tar({"1.jpg": b"one", "a.json": b"{}"}), tar({"2.jpg": b"two", "1.jpg": b"three"})
    data = b"".join(packed(archive, kind) for archive in both)
    listed = written(tmp_path, data if streams == 2 else packed(b"".join(both), kind), kind)
    assert [(item.member, item.occurrence) for item in listed] == [
        ("1.jpg", 0),
        ("a.json", 0),
        ("2.jpg", 0),
        ("1.jpg", 1),
    ]
    assert contents(listed) == [b"one", b"{}", b"two", b"three"]
    assert contents(listed[2:]) == [b"two", b"three"], "a worker may begin after the end mark"


def test_tar_with_end_marks_of_many_archives_is_read(tmp_path):
    """Together their zeros exceed the 64 MiB that one end mark may have."""
    archives = b"".join(
        header(b"%d.jpg" % number) + bytes(tarfile.RECORDSIZE - 512) for number in range(7000)
    )
    assert archives.count(0) > 64 * MIB
    assert len(written(tmp_path, archives, "tar")) == 7000


@pytest.mark.parametrize("where", ["file", "unpacked stream", "after the stream"])
def test_tar_with_endless_zeros_is_read_up_to_a_limit(tmp_path, where):
    kind, fetcher = ("tar" if where == "file" else "tar.gz"), Fetcher()
    path = tmp_path / f"a.{kind}"
    path.write_bytes(packed(ONE, kind))
    if where == "unpacked stream":
        path.write_bytes(path.read_bytes() + gzip.compress(bytes(80 * MIB), 1))
    else:
        os.truncate(path, 2**36)  # a sparse file
    listed = opened(path, kind, fetcher=fetcher, max_ratio=10**6)
    assert statuses(listed) == [("a.jpg", None), (None, LARGE)]
    assert fetcher.bytes_read < 80 * MIB


@pytest.mark.parametrize(
    ("info", "reason"),
    [
        (member("l.jpg", tarfile.SYMTYPE, linkname="/etc/passwd"), "symbolic link"),
        (member("l.jpg", tarfile.LNKTYPE, linkname="a.jpg", size=500), "hard link"),
        (member("l.jpg", tarfile.CHRTYPE), "device"),
        (member("l.jpg", tarfile.FIFOTYPE), "pipe"),
        (member("l.jpg", b"N"), "type b'N'"),
        (member("a/../../l.jpg"), "'..'"),
    ],
)
def test_tar_member_that_is_unsafe_is_refused_alone(tmp_path, info, reason):
    data = tar({"a.jpg": b"x"}, extra=(info,))[:1536] + tar({"after.jpg": b"after"})
    listed = listed_alike(tmp_path, data)
    assert contents(listed) == [b"x", UNSAFE, b"after"]
    assert reason in listed[1].refused.detail


@pytest.mark.parametrize("kind", ["tar", "tar.gz"])
def test_tar_over_a_limit_is_listed_and_read_up_to_it(tmp_path, kind):
    listed = written(tmp_path, packed(tar(), kind), kind, max_members=2)
    assert statuses(listed) == [("a/1.jpg", None), ("a/2.jpg", None), (None, UNSAFE)]
    listed = written(tmp_path, packed(tar(), kind), kind)
    assert contents(listed, max_bytes=500) == [FILES["a/1.jpg"], LARGE, b"", LARGE]


@pytest.mark.parametrize("kind", ["tar", "tar.gz"])
@pytest.mark.parametrize(
    "data",
    [
        header(b"long", b"77777777777\0", b"L"),
        header(b"long", b"%011o\0" % 0, b"L") * 3000,
        pax(b"9" * 900_000),
        pax(b"0 path=x\n"),
        pax(b"99 path=x\n"),
        pax(b"-1 path=x\n"),
        pax(b"14 size=-500\n\n") + header(b"a"),
    ],
    ids=["endless", "chain", "digits", "zero", "beyond", "negative", "size"],
)
def test_tar_with_hostile_extended_headers_is_one_row(tmp_path, kind, data):
    [(name, status)] = statuses(written(tmp_path, packed(data + END, kind), kind))
    assert name is None
    assert status in (DAMAGED, CUT, *[LARGE] * (kind != "tar"))


def test_tar_records_that_are_not_used_take_no_memory(tmp_path):
    parts = []
    for number in range(8):
        records = b"".join(b"18 key.%02d.%05d=v\n" % (number, key) for key in range(3500))
        parts += [header(b"pax", b"%011o\0" % len(records), b"g"), block(records)]
        parts.append(header(b"%d.jpg" % number))
    (tmp_path / "a.tar").write_bytes(b"".join(parts) + END)
    tracemalloc.start()
    try:
        listed = opened(tmp_path / "a.tar", "tar")
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert statuses(listed) == [(f"{number}.jpg", None) for number in range(8)]
    assert peak_bytes < 2 * MIB, "the file, one header, and no record of it"


@pytest.mark.parametrize("kind", PACK)
def test_packed_tar_that_is_cut_or_damaged_keeps_what_is_whole(tmp_path, kind):
    noise = random.Random(0).randbytes
    data = PACK[kind](tar({f"{n}.jpg": noise(100_000) for n in range(9)}))
    place = len(data) * 5 // 9
    listed = written(tmp_path, data[:place], kind)
    assert 2 <= len(listed) <= 6
    assert [item.refused for item in listed[:-1]] == [None] * (len(listed) - 1)
    assert statuses(listed)[-1][1] == CUT
    flipped = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
    assert statuses(written(tmp_path, flipped, kind))[-1] == (None, DAMAGED)
    for missing in (1, 3):
        assert statuses(written(tmp_path, PACK[kind](tar())[:-missing], kind))[-1][1] == CUT


@pytest.mark.parametrize("kind", PACK)
def test_packed_tar_that_is_not_a_stream_is_one_row(tmp_path, kind):
    for data in (b"GIF89a" * 500, b"\xff" * 5000):
        assert statuses(written(tmp_path, data, kind)) == [(None, DAMAGED)]
    assert statuses(written(tmp_path, b"", kind)) == [(None, "empty_file")]


@pytest.mark.parametrize("kind", PACK)
def test_packed_tar_in_two_streams_within_a_member_is_read(tmp_path, kind):
    data = tar()
    between, after = (bytes(200_000), bytes(100)) if kind != "tar.zst" else (b"", b"")
    packed_twice = PACK[kind](data[:1000]) + between + PACK[kind](data[1000:]) + after
    assert contents(written(tmp_path, packed_twice, kind)) == list(FILES.values())


@pytest.mark.parametrize("kind", PACK)
def test_packed_tar_that_is_a_bomb_is_not_unpacked(tmp_path, kind):
    listed = written(tmp_path, hazards.bomb(kind), kind)
    assert statuses(listed) == [("first.jpg", None), (None, LARGE)]
    assert "container_limits.max_ratio (200)" in listed[1].refused.detail


def test_gzip_with_an_endless_header_is_refused(tmp_path):
    data = b"\x1f\x8b\x08\x08" + bytes(6) + b"name" * 5_000_000
    assert statuses(written(tmp_path, data, "tar.gz"))[0][1] in (DAMAGED, CUT)


def test_container_kind_follows_the_ending():
    names = {"a.TXZ": "tar.xz", "b.tar.bz2": "tar.bz2", "c.cbz": "zip", "d.CBT": "tar"}
    assert {name: detect_kind(name) for name in [*names, "e.xz"]} == names | {"e.xz": None}


def test_packed_tar_with_a_window_of_gigabytes_is_refused(tmp_path):
    """xz and zstd let a file say how much memory its reader must have."""
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 512 * MIB}]
    [item] = written(tmp_path, lzma.compress(tar(), filters=filters), "tar.xz")
    assert statuses([item]) == [(None, DAMAGED)]
    assert "emory" in item.refused.detail
    options = {
        zstd.CompressionParameter.window_log: 30,
        zstd.CompressionParameter.enable_long_distance_matching: 1,
    }
    # As a stream, since a size that is known makes the window small.
    compressor = zstd.ZstdCompressor(options=options)
    data = compressor.compress(tar()) + compressor.flush()
    assert statuses(written(tmp_path, data, "tar.zst")) == [(None, DAMAGED)]
