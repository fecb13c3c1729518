import gzip
import lzma
import os
import random
import tarfile
import tracemalloc

import pytest
import webdataset as wds
from backports import zstd

from ray_app.archives.containers import kind_of
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


@pytest.fixture(params=["tar", *PACK])
def kind(request):
    return request.param


def packed(data: bytes, kind: str) -> bytes:
    return PACK[kind](data) if kind in PACK else data


class TestReads:
    @pytest.mark.parametrize(
        "tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
    )
    def test_what_tarfile_writes(self, tmp_path, kind, tar_format):
        files = FILES | {"folder/" * 14 + "long ä😀 name" * 9 + ".jpg": b"long"}
        if tar_format == tarfile.USTAR_FORMAT:
            files = FILES | {"folder/" * 20 + "x.jpg": b"split in two"}
        listed = written(tmp_path, packed(tar(files, tar_format=tar_format), kind), kind)
        assert [(item.member, item.size_bytes, item.place.kind) for item in listed] == [
            (n, len(d), kind) for n, d in files.items()
        ]
        assert contents(listed) == list(files.values())

    def test_what_webdataset_writes(self, tmp_path, kind):
        path = tmp_path / f"shard-000000.{kind}"
        with wds.TarWriter(str(tmp_path / "shard.tar")) as writer:
            for number in range(3):
                writer.write(
                    {
                        "__key__": f"{number:06}",
                        "jpg": b"jpeg%d" % number,
                        "json": {"n": number},
                        "cls": number,
                        "bin": b"raw",
                    }
                )
        path.write_bytes(packed((tmp_path / "shard.tar").read_bytes(), kind))
        listed = opened(path, kind)
        assert [(item.member, item.input["json"], item.input["cls"]) for item in listed] == [
            (f"{number:06}.{ending}", f'{{"n": {number}}}', str(number))
            for number in range(3)
            for ending in ("bin", "jpg")
        ]
        assert contents(listed)[1::2] == [b"jpeg0", b"jpeg1", b"jpeg2"]

    def test_equal_names_are_counted_in_archives_behind_each_other(self, tmp_path, kind):
        both = tar({"a.jpg": b"1"})[:1024] + tar({"b.jpg": b"2", "a.jpg": b"3"})
        listed = written(tmp_path, packed(both, kind), kind)
        assert [(item.member, item.occurrence) for item in listed] == [
            ("a.jpg", 0),
            ("b.jpg", 0),
            ("a.jpg", 1),
        ]
        assert contents(listed) == [b"1", b"2", b"3"]
        assert listed == opened(tmp_path / f"archive.{kind}", kind)

    def test_names_that_are_no_utf8(self, tmp_path, kind):
        data = header(b"\xff.jpg") + header(b"\xfe.jpg") + bytes(1024)
        assert [item.member for item in written(tmp_path, packed(data, kind), kind)] == [
            r"\xff.jpg",
            r"\xfe.jpg",
        ]

    def test_an_archive_in_an_archive_is_one_member_and_folders_are_none(self, tmp_path, kind):
        data = tar({"inner.tar": tar(), "a.jpg": b"x"}, extra=(member("a", tarfile.DIRTYPE),))
        assert statuses(written(tmp_path, packed(data, kind), kind)) == [
            ("inner.tar", None),
            ("a.jpg", None),
        ]
        assert written(tmp_path, packed(tar({}), kind), kind) == []


class TestConcatenated:
    """Archives after an end mark, as `cat a.tar b.tar` writes them and `tar --ignore-zeros` reads
    them.
    """

    @pytest.mark.parametrize("place", ["disk", "s3"])
    @pytest.mark.parametrize("streams", [1, 2])
    def test_members_after_an_end_mark_are_read(self, tmp_path, kind, place, streams, request):
        first, second = (
            tar({"1.jpg": b"one", "a.json": b"{}"}),
            tar({"2.jpg": b"two", "1.jpg": b"three"}),
        )
        data = (
            packed(first, kind) + packed(second, kind)
            if streams == 2
            else packed(first + second, kind)
        )
        listed = written(tmp_path, data, kind)
        if place == "s3":
            s3 = request.getfixturevalue("s3")
            url = s3.bucket(f"concatenated-{kind}-{streams}".replace(".", "-"))
            s3.client().put_object(Bucket=url.removeprefix("s3://"), Key=f"both.{kind}", Body=data)
            listed = opened(f"{url}/both.{kind}", kind)
        assert [(item.member, item.occurrence) for item in listed] == [
            ("1.jpg", 0),
            ("a.json", 0),
            ("2.jpg", 0),
            ("1.jpg", 1),
        ]
        assert contents(listed) == [b"one", b"{}", b"two", b"three"]
        assert contents(listed[2:]) == [b"two", b"three"], "a worker may begin after the end mark"

    def test_members_after_a_lone_zero_block_are_read(self, tmp_path, kind):
        listed = written(
            tmp_path,
            packed(header(b"a.jpg") + bytes(512) + header(b"b.jpg") + bytes(512), kind),
            kind,
        )
        assert statuses(listed) == [("a.jpg", None), ("b.jpg", None)]

    def test_records_for_all_members_end_with_their_archive(self, tmp_path, kind):
        first = tar({"a.jpg": b"x"}, pax_headers={"path": "everywhere.jpg"})
        listed = written(tmp_path, packed(first + tar({"b.jpg": b"y"}), kind), kind)
        assert [item.member for item in listed] == ["everywhere.jpg", "b.jpg"]

    @pytest.mark.parametrize("garbage_bytes", [512, 700])
    def test_garbage_after_an_end_mark_is_reported(self, tmp_path, kind, garbage_bytes):
        archive = tar({"a.jpg": b"x"})
        listed = written(tmp_path, packed(archive + b"\xff" * garbage_bytes, kind), kind)
        assert statuses(listed) == [("a.jpg", None), (None, "corrupt_image")]
        assert f"data at byte {len(archive)}, after the end mark" in listed[1].refused.detail

    @pytest.mark.parametrize("garbage_bytes", [1, 511])
    def test_garbage_too_short_for_a_header_has_no_row(self, tmp_path, kind, garbage_bytes):
        data = tar({"a.jpg": b"x"}) + b"\n" * garbage_bytes
        assert statuses(written(tmp_path, packed(data, kind), kind)) == [("a.jpg", None)]

    def test_padding_is_not_part_of_the_ratio(self, tmp_path, kind):
        data = tar({"a.jpg": b"x"}) + bytes(3 * MIB) + tar({"b.jpg": b"x"})
        assert statuses(written(tmp_path, packed(data, kind), kind)) == [
            ("a.jpg", None),
            ("b.jpg", None),
        ]

    def test_padding_of_many_archives_is_passed_over(self, tmp_path):
        archives = b"".join(tar({f"{number}.jpg": b"x"}) for number in range(7000))
        assert archives.count(0) > 64 * MIB
        assert len(written(tmp_path, archives, "tar")) == 7000

    @pytest.mark.parametrize("kind", ["tar", "tar.gz"])
    def test_zeros_after_an_end_mark_are_read_up_to_a_limit(self, tmp_path, kind):
        path, fetcher = tmp_path / f"a.{kind}", Fetcher()
        path.write_bytes(packed(tar({"a.jpg": b"x"}), kind))
        if kind == "tar":
            os.truncate(path, 2**36)  # a sparse file
        else:
            path.write_bytes(path.read_bytes() + gzip.compress(bytes(80 * MIB), 1))
        listed = opened(path, kind, fetcher=fetcher, max_ratio=10**6)
        assert statuses(listed) == [("a.jpg", None), (None, "image_too_large")]
        assert "zeros follow the end mark at byte 1024" in listed[1].refused.detail
        assert fetcher.bytes_read < 80 * MIB

    def test_zeros_after_a_stream_are_read_up_to_a_limit(self, tmp_path):
        path, fetcher = tmp_path / "a.tar.gz", Fetcher()
        path.write_bytes(gzip.compress(tar({"a.jpg": b"x"})))
        os.truncate(path, 2**36)
        listed = opened(path, "tar.gz", fetcher=fetcher)
        assert statuses(listed) == [("a.jpg", None), (None, "image_too_large")]
        assert fetcher.bytes_read < 80 * MIB


class TestGnu:
    """Headers of GNU tar's backups: `--listed-incremental`, `-V`, `--multi-volume`, `--sparse`."""

    def test_times_in_a_header_are_not_part_of_the_name(self, tmp_path, kind):
        times = [
            b"15302164203\0" * 2,
            b"15302164203\0" + bytes(12),
            b"\x80" + bytes(10) + b"\1" + bytes(12),
        ]
        data = b"".join(
            gnu_header(b"in/%d.jpg" % number, prefix=prefix) for number, prefix in enumerate(times)
        )
        assert statuses(written(tmp_path, packed(data + bytes(1024), kind), kind)) == [
            (f"in/{n}.jpg", None) for n in range(3)
        ]

    def test_a_prefix_that_is_not_a_time_stays_in_the_name(self, tmp_path, kind):
        """Go before 1.8 wrote prefixes into GNU headers (https://golang.org/issues/12594)."""
        data = gnu_header(b"1.jpg", prefix=b"folder/2024") + bytes(1024)
        assert statuses(written(tmp_path, packed(data, kind), kind)) == [
            ("folder/2024/1.jpg", None)
        ]

    def test_entries_that_are_not_files_have_no_rows(self, tmp_path, kind):
        names = b"Y1.jpg\0\0"
        data = (
            gnu_header(b"Backup 2024", type_=b"V")
            + gnu_header(b"in/", size=len(names), type_=b"D")
            + block(names)
        )
        data += header(b"acl", b"%011o\0" % 3, b"A") + block(b"acl") + tar({"in/1.jpg": b"x"})
        assert contents(written(tmp_path, packed(data, kind), kind)) == [b"x"]

    def test_the_rest_of_a_file_of_another_volume_is_truncated(self, tmp_path, kind):
        rest = gnu_header(b"1.jpg", size=4, type_=b"M") + block(b"rest")
        records = {"GNU.volume.filename": "2.jpg", "GNU.volume.size": "9", "GNU.volume.offset": "5"}
        data = rest + tar({"GNUFileParts/2.jpg.2": b"rest", "3.jpg": b"x"}, pax_headers=records)
        listed = written(tmp_path, packed(data, kind), kind)
        assert statuses(listed) == [
            ("1.jpg", "truncated_image"),
            ("2.jpg", "truncated_image"),
            ("3.jpg", None),
        ]
        assert "another volume" in listed[0].refused.detail

    def test_a_sparse_file_has_its_own_name(self, tmp_path, kind):
        record = b"22 GNU.sparse.major=1\n" + b"28 GNU.sparse.name=in/1.jpg\n"
        data = (
            pax(record)
            + header(b"GNUSparseFile.7/1.jpg", b"%011o\0" % 512)
            + bytes(512)
            + bytes(1024)
        )
        assert statuses(written(tmp_path, packed(data, kind), kind)) == [
            ("in/1.jpg", "unsafe_member")
        ]


class TestRefuses:
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
    def test_what_is_unsafe(self, tmp_path, kind, info, reason):
        after = tar({"after.jpg": b"after"})
        data = (
            tar({"a.jpg": b"x"}, extra=(info,))[
                : 1024 + (1536 if info.isreg() and info.pax_headers else 512)
            ]
            + after
        )
        first, refused, last = written(tmp_path, packed(data, kind), kind)
        assert (first.refused, last.refused, str(refused.refused.status)) == (
            None,
            None,
            "unsafe_member",
        )
        assert reason in refused.refused.detail
        assert contents([first, refused, last]) == [b"x", "unsafe_member", b"after"]

    def test_a_nul_in_a_name(self, tmp_path, kind):
        data = pax(b"17 path=a\0b.jpg\n"[:16].replace(b"17", b"16")) + header(b"a") + bytes(1024)
        [item] = written(tmp_path, packed(data, kind), kind)
        assert (item.member, str(item.refused.status)) == (r"a\x00b.jpg", "unsafe_member")

    @pytest.mark.parametrize("new", [False, True])
    def test_sparse_files(self, tmp_path, kind, new):
        record = b"22 GNU.sparse.major=1\n" + b"22 GNU.sparse.minor=0\n"
        data = (
            pax(record)
            + header(b"sparse.jpg", b"%011o\0" % 512)
            + bytes(512)
            + tar({"after.jpg": b"x"})
            if new
            else hazards.sparse_old()
        )
        assert statuses(written(tmp_path, packed(data, kind), kind)) == [
            ("sparse.jpg", "unsafe_member"),
            ("after.jpg", None),
        ]

    def test_more_members_than_allowed_and_members_over_the_limit_of_bytes(self, tmp_path, kind):
        listed = written(tmp_path, packed(tar(), kind), kind, max_members=2)
        assert statuses(listed) == [("a/1.jpg", None), ("a/2.jpg", None), (None, "unsafe_member")]
        listed = written(tmp_path, packed(tar(), kind), kind)
        assert contents(listed, max_bytes=500) == [
            FILES["a/1.jpg"],
            "image_too_large",
            b"",
            "image_too_large",
        ]


class TestBroken:
    def test_whole_members_before_a_cut_are_kept(self, tmp_path, kind):
        data = tar()
        for cut, whole in ((512 + 485, 1), (1024 + 512 + 690, 2)):
            listed = written(tmp_path, packed(data[:cut], kind), kind)
            assert [item.refused for item in listed[:-1]] == [None] * (whole - 1)
            assert statuses(listed)[-1] == (list(FILES)[whole - 1], "truncated_image")
            assert contents(listed)[:-1] == list(FILES.values())[: whole - 1]
        for cut in (1024 + 100, 1024):  # inside of a header, or before one
            assert statuses(written(tmp_path, packed(data[:cut], kind), kind)) == [
                ("a/1.jpg", None),
                (None, "truncated_image"),
            ]

    @pytest.mark.parametrize(
        "data",
        [
            b"\xff" * 5000,
            bytes(range(256)) * 40,
            header(b"a", b"\x80" + b"\xff" * 11) + bytes(1024),
        ],
    )
    def test_garbage(self, tmp_path, kind, data):
        [item] = written(tmp_path, packed(data, kind), kind)
        assert (item.member, str(item.refused.status)) == (None, "corrupt_image")

    def test_garbage_in_the_middle_is_not_taken_for_the_end(self, tmp_path, kind):
        data = tar()
        listed = written(tmp_path, packed(data[:1024] + b"\xff" * 512 + data[1536:], kind), kind)
        assert statuses(listed) == [("a/1.jpg", None), (None, "corrupt_image")]

    def test_a_size_beyond_the_end_and_no_byte_at_all(self, tmp_path, kind):
        data = header(b"a.jpg", b"77777777777\0") + b"little"
        assert statuses(written(tmp_path, packed(data, kind), kind)) == [
            ("a.jpg", "truncated_image")
        ]
        assert statuses(written(tmp_path, b"", kind)) == [(None, "empty_file")]

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
    def test_hostile_extended_headers(self, tmp_path, kind, data):
        [item] = written(tmp_path, packed(data + bytes(1024), kind), kind)
        assert item.member is None
        assert str(item.refused.status) in (
            "corrupt_image",
            "truncated_image",
            *["image_too_large"] * (kind in PACK),
        )


def test_records_for_all_members_that_are_not_used_are_dropped(tmp_path):
    parts = []
    for number in range(8):
        records = b"".join(b"18 key.%02d.%05d=v\n" % (number, key) for key in range(3500))
        parts.append(
            header(b"pax", b"%011o\0" % len(records), b"g")
            + block(records)
            + header(b"%d.jpg" % number)
        )
    (tmp_path / "a.tar").write_bytes(b"".join(parts) + bytes(1024))
    tracemalloc.start()
    try:
        listed = opened(tmp_path / "a.tar", "tar")
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert statuses(listed) == [(f"{number}.jpg", None) for number in range(8)]
    assert peak_bytes < 2 * MIB, "the file, one header, and no record of it"


@pytest.mark.parametrize("packing", list(PACK))
class TestCompressed:
    def test_a_cut_or_damaged_stream(self, tmp_path, packing):
        noise = random.Random(0).randbytes
        data = PACK[packing](tar({f"{n}.jpg": noise(100_000) for n in range(9)}))
        listed = written(tmp_path, data[: len(data) * 5 // 9], packing)
        assert 2 <= len(listed) <= 6
        assert [item.refused for item in listed[:-1]] == [None] * (len(listed) - 1)
        assert statuses(listed)[-1][1] == "truncated_image"
        place = len(data) * 5 // 9
        listed = written(
            tmp_path, data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :], packing
        )
        assert statuses(listed)[-1] == (None, "corrupt_image")
        for missing in (1, 3):
            assert (
                statuses(written(tmp_path, PACK[packing](tar())[:-missing], packing))[-1][1]
                == "truncated_image"
            )

    @pytest.mark.parametrize("data", [b"GIF89a" * 500, b"\xff" * 5000])
    def test_what_is_no_stream(self, tmp_path, packing, data):
        assert statuses(written(tmp_path, data, packing)) == [(None, "corrupt_image")]

    def test_several_streams_behind_each_other_are_one(self, tmp_path, packing):
        data = tar()
        between, after = (bytes(200_000), bytes(100)) if packing != "tar.zst" else (b"", b"")
        packed_twice = PACK[packing](data[:1000]) + between + PACK[packing](data[1000:]) + after
        assert contents(written(tmp_path, packed_twice, packing)) == list(FILES.values())

    def test_a_bomb_is_not_unpacked(self, tmp_path, packing):
        listed = written(tmp_path, hazards.bomb(packing), packing)
        assert statuses(listed) == [("first.jpg", None), (None, "image_too_large")]
        assert "container_limits.max_ratio (200)" in listed[1].refused.detail


def test_a_gzip_that_is_only_a_header(tmp_path):
    [item] = written(tmp_path, b"\x1f\x8b\x08\x08" + bytes(6) + b"name" * 5_000_000, "tar.gz")
    assert str(item.refused.status) in ("corrupt_image", "truncated_image")


def test_names_announce_formats():
    names = {
        "a.TXZ": "tar.xz",
        "b.tar.bz2": "tar.bz2",
        "c.cbz": "zip",
        "d.CBT": "tar",
        "e.xz": None,
    }
    assert {name: kind_of(name) for name in names} == names


def test_a_window_of_gigabytes_is_not_allocated(tmp_path):
    """xz and zstd let a file say how much memory its reader has to have."""
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 512 * 2**20}]
    [item] = written(tmp_path, lzma.compress(tar(), filters=filters), "tar.xz")
    assert (item.member, str(item.refused.status)) == (None, "corrupt_image")
    assert "emory" in item.refused.detail
    options = {
        zstd.CompressionParameter.window_log: 30,
        zstd.CompressionParameter.enable_long_distance_matching: 1,
    }
    # as a stream: a size that is known makes the window small
    compressor = zstd.ZstdCompressor(options=options)
    [item] = written(tmp_path, compressor.compress(tar()) + compressor.flush(), "tar.zst")
    assert (item.member, str(item.refused.status)) == (None, "corrupt_image")
