import stat
import struct
import unicodedata
import zipfile
import zlib

import pytest

from ray_app.storage import Fetcher
from tests.archives.containers import hazards
from tests.archives.containers.hazards import (
    FILES,
    contents,
    directory_entry,
    ended,
    opened,
    statuses,
    written,
    zip_with,
    zipped,
)
from tests.storage.faulty_server import LOOPBACK

GIB = 2**30

LINK, PIPE = (stat.S_IFLNK | 0o777) << 16, (stat.S_IFIFO | 0o600) << 16


def patched(data: bytes, offset: int, new: bytes, after: bytes) -> bytes:
    """The archive with bytes changed at `offset` behind the first `after`."""
    place = data.index(after) + offset
    return data[:place] + new + data[place + len(new) :]


class TestReads:
    @pytest.mark.parametrize(
        "method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2]
    )
    @pytest.mark.parametrize(
        "write", [lambda m: zipped(method=m), hazards.streamed_zip], ids=["whole", "streamed"]
    )
    def test_what_zipfile_writes(self, tmp_path, method, write):
        listed = written(tmp_path, write(method), "zip")
        assert [(item.member, item.size_bytes, item.refused) for item in listed] == [
            (name, len(data), None) for name, data in FILES.items()
        ]
        assert contents(listed) == list(FILES.values())

    @pytest.mark.slow
    def test_more_entries_than_16_bits_count(self, tmp_path):
        listed = written(
            tmp_path,
            zipped({f"{n}.jpg": b"%d" % n for n in range(66_000)}, zipfile.ZIP_STORED),
            "zip",
        )
        assert len(listed) == 66_000
        assert contents(listed[-2:]) == [b"65998", b"65999"]

    @pytest.mark.parametrize("write", [zipped, hazards.zip64_forced])
    def test_an_archive_behind_a_program_or_picture_and_before_a_comment(self, tmp_path, write):
        assert contents(written(tmp_path, write(), "zip")) == list(FILES.values())
        assert contents(written(tmp_path, b"#!/bin/sh\n" * 99 + write(), "zip")) == list(
            FILES.values()
        )
        with zipfile.ZipFile(tmp_path / "archive.zip", "a") as archive:
            archive.comment = b"c" * 65535
        assert contents(opened(tmp_path / "archive.zip", "zip")) == list(FILES.values())

    @pytest.mark.filterwarnings("ignore:Duplicate name")
    def test_equal_names_are_counted(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            for data in (b"1", b"2"):
                archive.writestr("a.jpg", data)
        listed = opened(tmp_path / "a.zip", "zip")
        assert [(item.member, item.occurrence) for item in listed] == [("a.jpg", 0), ("a.jpg", 1)]
        assert contents(listed) == [b"1", b"2"]

    def test_the_directory_is_had_with_few_requests(self, faulty):
        faulty.objects["/bucket/a.zip"] = zipped(
            {f"{n}.jpg": bytes([n % 256]) * 900 for n in range(3000)}, zipfile.ZIP_STORED
        )
        fetcher = Fetcher(guard=LOOPBACK)
        listed = opened(f"{faulty.url}/bucket/a.zip", "zip", fetcher=fetcher)
        assert (len(listed), fetcher.counts["requests"]) == (3000, 1)
        assert len(contents(listed, fetcher=fetcher)) == 3000
        assert fetcher.counts["requests"] == 2


def mac_zip(path, entries: list[tuple[str, bytes | int]], *, backwards: bool = False) -> None:
    """Write a zip as macOS' Archive Utility does: without zip64, the low 32 bits of offsets and
    sizes. A number is a hole of N bytes.
    """
    directory = []
    with path.open("wb") as file:
        for name, data in entries:
            offset, size = file.tell(), data if isinstance(data, int) else len(data)
            facts = (
                0 if isinstance(data, int) else zlib.crc32(data),
                size % 2**32,
                size % 2**32,
                len(name),
                0,
            )
            file.write(struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, 0, 0, 0, *facts) + name.encode())
            file.seek(size, 1) if isinstance(data, int) else file.write(data)
            directory.append(
                directory_entry(
                    name.encode(), size % 2**32, size % 2**32, offset % 2**32, facts[0], method=0
                )
            )
        start, listed = file.tell(), b"".join(directory[::-1] if backwards else directory)
        file.write(
            listed
            + struct.pack(
                "<4s4H2LH",
                b"PK\5\6",
                0,
                0,
                len(directory),
                len(directory),
                len(listed),
                start % 2**32,
                0,
            )
        )


class TestMac:
    """Zips over 4 GiB without zip64 records; the files are sparse."""

    def test_offsets_over_4_gib_are_restored(self, tmp_path):
        entries = [
            ("1.jpg", b"one"),
            ("film.mov", 2 * GIB),
            ("2.jpg", b"two"),
            ("film2.mov", 2 * GIB),
            ("3.jpg", b"three"),
        ]
        mac_zip(tmp_path / "a.zip", entries)
        listed = opened(tmp_path / "a.zip", "zip")
        assert statuses(listed) == [(name, None) for name, _ in entries]
        assert contents(listed[::2]) == [b"one", b"two", b"three"]

    @pytest.mark.parametrize("sizes", [(5, 9), (13, 1), (1, 4), (4, 4)], ids=str)
    def test_files_over_4_gib_cost_no_other_file(self, tmp_path, sizes):
        entries = [
            ("1.jpg", b"one"),
            ("a.mov", sizes[0] * GIB),
            ("2.jpg", b"two"),
            ("b.mov", sizes[1] * GIB),
            ("3.jpg", b"three"),
        ]
        mac_zip(tmp_path / "a.zip", entries)
        fetcher = Fetcher()
        listed = opened(tmp_path / "a.zip", "zip", fetcher=fetcher)
        assert statuses(listed) == [
            (name, "image_too_large" if isinstance(size, int) and size >= 4 * GIB else None)
            for name, size in entries
        ]
        assert contents(listed[::2]) == [b"one", b"two", b"three"]
        assert fetcher.bytes_read < 8 * 2**20

    def test_entries_in_another_order_say_what_to_do(self, tmp_path):
        mac_zip(
            tmp_path / "a.zip",
            [("1.jpg", b"one"), ("film.mov", 3 * GIB), ("2.jpg", b"two"), ("b.mov", 2 * GIB)],
            backwards=True,
        )
        listed = opened(tmp_path / "a.zip", "zip")
        assert statuses(listed)[-1] == (None, "corrupt_image")
        assert "pack it again with `zip -r`" in listed[-1].refused.detail


def named_zip(*names: tuple[bytes, int, bytes]) -> bytes:
    """A zip of files with these names, flags and extra fields in its directory."""
    data, entries = b"", []
    for number, (name, flags, extra) in enumerate(names):
        content = b"%d" % number
        facts = (zlib.crc32(content), 1, 1, len(name), len(extra))
        entries.append(
            struct.pack(
                "<4s6H3L5H2L",
                b"PK\1\2",
                0x315,
                20,
                flags,
                0,
                0,
                0,
                *facts,
                0,
                0,
                0,
                0o100644 << 16,
                len(data),
            )
        )
        entries[-1] += name + extra
        data += (
            struct.pack("<4s5H3L2H", b"PK\3\4", 20, flags, 0, 0, 0, *facts) + name + extra + content
        )
    return ended(data, entries)


def unicode_path(name: bytes, stored: bytes, version: int = 1) -> bytes:
    """Info-ZIP's extra field with the UTF-8 of a name, for the name that is `stored`; another field
    is before it.
    """
    body = struct.pack("<BL", version, zlib.crc32(stored)) + name
    return struct.pack("<2H3x", 0x5455, 3) + struct.pack("<2H", 0x7075, len(body)) + body


class TestNames:
    NAME = "Größe/日本 é.jpg"
    DECOMPOSED = unicodedata.normalize("NFD", NAME)
    UTF8 = 0x800

    def shown(self, tmp_path, name: bytes, flags: int = 0, extra: bytes = b"") -> str:
        [item] = written(tmp_path, named_zip((name, flags, extra)), "zip")
        assert contents([item]) == [b"0"]
        return item.member

    def test_utf8_without_its_flag_is_composed(self, tmp_path):
        assert self.shown(tmp_path, self.DECOMPOSED.encode()) == self.NAME

    def test_a_unicode_path_with_its_checksum_is_the_name(self, tmp_path):
        for stored in (b"Gr__e/__ _.jpg", "Größe.jpg".encode("cp437")):
            assert (
                self.shown(tmp_path, stored, extra=unicode_path(self.DECOMPOSED.encode(), stored))
                == self.NAME
            )

    @pytest.mark.parametrize(
        "extra",
        [
            unicode_path(b"other.jpg", b"another name"),
            unicode_path(b"other.jpg", b"a.jpg", 2),
            unicode_path(b"\xff.jpg", b"a.jpg"),
        ],
        ids=["checksum", "version", "bytes"],
    )
    def test_a_unicode_path_that_does_not_hold_is_ignored(self, tmp_path, extra):
        assert self.shown(tmp_path, b"a.jpg", extra=extra) == "a.jpg"

    def test_names_that_were_read_right_stay(self, tmp_path):
        """Names are part of image ids."""
        assert self.shown(tmp_path, self.DECOMPOSED.encode(), self.UTF8) == self.DECOMPOSED
        assert self.shown(tmp_path, "Größe é.jpg".encode("cp437")) == "Größe é.jpg"
        assert self.shown(tmp_path, b"\xff.jpg", self.UTF8) == r"\xff.jpg"

    def test_an_unsafe_unicode_path_is_refused(self, tmp_path):
        listed = written(
            tmp_path, named_zip((b"a.jpg", 0, unicode_path(b"../a.jpg", b"a.jpg"))), "zip"
        )
        assert statuses(listed) == [("../a.jpg", "unsafe_member")]

    def test_names_that_become_equal_are_counted(self, tmp_path):
        names = [(self.NAME.encode(), self.UTF8, b""), (self.DECOMPOSED.encode(), 0, b"")]
        assert [
            (one.member, one.occurrence) for one in written(tmp_path, named_zip(*names), "zip")
        ] == [(self.NAME, 0), (self.NAME, 1)]


class TestRefuses:
    @pytest.mark.parametrize(
        ("data", "status", "reason"),
        [
            (
                zip_with("l.jpg", b"/etc/passwd", external_attr=LINK, create_system=3),
                "unsafe_member",
                "symbolic link",
            ),
            (zip_with("l.jpg", external_attr=PIPE, create_system=3), "unsafe_member", "pipe"),
            (zip_with("../l.jpg"), "unsafe_member", "'..'"),
            (zip_with("folder/", b"data"), "unsafe_member", "folder that has data"),
            (zip_with("aXb.jpg").replace(b"aXb.jpg", b"a\0b.jpg"), "unsafe_member", "NUL"),
            (patched(zip_with("a.jpg"), 8, b"\1", b"PK\1\2"), "encrypted_member", "encrypted"),
            (patched(zip_with("a.jpg"), 10, b"\x63", b"PK\1\2"), "unsupported_format", "method 99"),
            (
                patched(zip_with("a.jpg"), 20, struct.pack("<L", 9999), b"PK\1\2"),
                "corrupt_image",
                "outside",
            ),
            (
                zipped(
                    {"a.jpg": bytes(2_000_000), "noise": bytes(range(256)) * 4},
                    zipfile.ZIP_DEFLATED,
                ),
                "image_too_large",
                "max_ratio (900)",
            ),
        ],
        ids=["link", "pipe", "dots", "folder", "nul", "encrypted", "method", "outside", "ratio"],
    )
    def test_members_one_by_one(self, tmp_path, data, status, reason):
        item = written(tmp_path, data, "zip", max_ratio=900)[0]
        assert (str(item.refused.status), item.member is None) == (status, False)
        assert reason in item.refused.detail
        assert contents([item]) == [status]

    def test_folders_are_no_members_and_more_members_than_allowed_are_not_listed(self, tmp_path):
        assert statuses(written(tmp_path, zipped({"a/": b"", "a/b.jpg": b"x"}), "zip")) == [
            ("a/b.jpg", None)
        ]
        listed = written(tmp_path, zipped(), "zip", max_members=2)
        assert statuses(listed) == [("a/1.jpg", None), ("a/2.jpg", None), (None, "unsafe_member")]
        assert statuses(written(tmp_path, hazards.bomb("zip"), "zip")) == [
            (None, "image_too_large")
        ]

    def test_all_but_the_first_of_overlapping_entries(self, tmp_path):
        listed = written(tmp_path, hazards.overlapping_zip(), "zip", max_ratio=5000)
        assert statuses(listed) == [("0.jpg", None)] + [
            (f"{n}.jpg", "unsafe_member") for n in range(1, 9)
        ]
        assert contents(listed)[0] == bytes(50_000)


class TestBroken:
    @pytest.mark.parametrize("data", [b"\xff" * 5000, b"PK", bytes(100)])
    def test_garbage(self, tmp_path, data):
        [item] = written(tmp_path, data, "zip")
        assert (item.member, str(item.refused.status)) == (None, "corrupt_image")
        assert item.refused.detail.startswith("not a readable zip archive: ")

    def test_a_cut_or_empty_archive_is_the_archives_own(self, tmp_path):
        for cut in (10, 300, -1, -22, -30):
            assert statuses(written(tmp_path, zipped()[:cut], "zip")) == [(None, "truncated_image")]
        assert statuses(written(tmp_path, b"", "zip")) == [(None, "empty_file")]
        assert written(tmp_path, zipped({}), "zip") == []

    @pytest.mark.parametrize("length", [4, 17, 18, 21])
    def test_end_record_that_is_cut_is_truncated(self, tmp_path, length):
        assert statuses(written(tmp_path, zipped({})[:length], "zip")) == [
            (None, "truncated_image")
        ]

    def test_an_entry_without_its_zip64_sizes_costs_itself(self, tmp_path):
        listed = written(
            tmp_path, patched(zipped(), 20, b"\xff" * 8, b"PK\1\2"), "zip", max_ratio=10**9
        )
        assert statuses(listed) == [
            ("a/1.jpg", "corrupt_image"),
            *((name, None) for name in list(FILES)[1:]),
        ]

    def test_a_directory_that_is_damaged_in_the_middle(self, tmp_path):
        data = zipped()
        place = data.index(b"PK\1\2", data.index(b"PK\1\2") + 1)
        listed = written(tmp_path, data[:place] + b"XX" + data[place + 2 :], "zip")
        assert statuses(listed) == [("a/1.jpg", None), (None, "corrupt_image")]
        assert contents(listed[:1]) == [FILES["a/1.jpg"]]

    @pytest.mark.parametrize(
        ("offset", "new", "after", "status"),
        [
            (35, b"\xff\xff", b"PK\3\4", "corrupt_image"),  # the stream
            (6, b"\1", b"PK\3\4", "encrypted_member"),
            (18, b"\xff\xff\0", b"PK\3\4", "corrupt_image"),  # the size beside the data
            # the size in the directory, and less than there is
            (24, b"\x09", b"PK\1\2", "corrupt_image"),
            (24, b"\xff", b"PK\1\2", "truncated_image"),  # and more
        ],
    )
    def test_a_member_that_is_not_what_was_listed(self, tmp_path, offset, new, after, status):
        assert contents(
            written(
                tmp_path, patched(zipped({"a.jpg": b"some bytes" * 9}), offset, new, after), "zip"
            )
        ) == [status]
        stored = patched(
            zipped({"a.jpg": b"some bytes" * 9}, zipfile.ZIP_STORED), 40, b"X", b"PK\3\4"
        )
        assert contents(written(tmp_path, stored, "zip")) == ["corrupt_image"], "its checksum"

    def test_packed_data_is_cut_off_where_it_lies_about_its_size(self, tmp_path):
        for method, size, status in (
            (zipfile.ZIP_DEFLATED, 1000, "corrupt_image"),
            (zipfile.ZIP_STORED, 10, "unsafe_member"),
        ):
            lying = patched(
                zipped({"a.jpg": bytes(2**21)}, method), 24, struct.pack("<L", size), b"PK\1\2"
            )
            assert contents(written(tmp_path, lying, "zip")) == [status]
