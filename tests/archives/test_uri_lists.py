import contextlib
import csv
import gzip
import io
import json
import re
from dataclasses import replace
from datetime import datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_app.archives import ListedMember, TableColumns, open_source
from ray_app.archives.members import image_id
from ray_app.archives.uri_list_rows import ListEntries
from ray_app.errors import ConfigError, Status
from tests.archives.containers.hazards import LFS_POINTER

POINT = "s3://arn:aws:s3:us-east-1:123456789012:accesspoint/my-ap"


def listed(source, **how):
    return list(open_source([str(source)], **how))


@pytest.fixture
def two_images(tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a.jpg", "b c.jpg"):
        (tmp_path / "in" / name).write_bytes(name.encode())
    return tmp_path


ROWS = [
    {"uri": "in/a.jpg", "label": 1, "score": 0.5, "who": "x"},
    {"uri": "in/b c.jpg", "label": None, "score": 2.0, "who": 'with "quotes",\nand lines'},
]


def as_csv(rows, delimiter=","):
    out = io.StringIO()
    writer = csv.DictWriter(out, rows[0], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


FORMS = {
    "csv": lambda: as_csv(ROWS).encode(),
    "tsv": lambda: as_csv(ROWS, "\t").encode(),
    "ndjson": lambda: "\n".join(json.dumps(row) for row in ROWS).encode(),
    "csv.gz": lambda: gzip.compress(as_csv(ROWS).encode()),
    "JSONL": lambda: "".join(json.dumps(row) + "\r\n" for row in ROWS).encode(),
}


@pytest.mark.parametrize("ending", FORMS)
def test_list_of_every_form_gives_the_same_members(two_images, ending):
    (two_images / f"list.{ending}").write_bytes(FORMS[ending]())
    said = [{name: value for name, value in row.items() if name != "uri"} for row in ROWS]
    images = listed(two_images / "in")
    assert listed(two_images / f"list.{ending}") == [
        replace(item, input=row) for item, row in zip(images, said, strict=True)
    ]


def test_list_may_be_parquet_or_plain_text(two_images):
    table = pa.table({"path": ["in/a.jpg"], "thumb": [b"x"], "n": [1]})
    pq.write_table(table, two_images / "l.parquet")
    (two_images / "l.txt").write_text("in/b c.jpg\n\nhttps://example.org/x.jpg\n")
    items = listed(f"list::{two_images}/l.*")
    images = [f"{two_images}/in/{name}" for name in ("a.jpg", "b c.jpg")]
    assert [item.uri for item in items] == [*images, "https://example.org/x.jpg"]
    assert items[0].input["n"] == 1


def test_list_columns_describe_the_object(tmp_path):
    (tmp_path / "l.csv").write_text(
        'uri,etag,size_bytes,member\ns3://b/k,"""00123""",7,x\ns3://b/l,2024-01-01,,y\n'
    )
    items = listed(tmp_path / "l.csv")
    assert [(i.version, i.size_bytes, i.input) for i in items] == [
        ("00123", 7, {"member": "x"}),
        ("2024-01-01", -1, {"member": "y"}),
    ]
    (tmp_path / "l.jsonl").write_text(
        '{"uri": "s3://b/k", "version": "2024-01-01", "at": "2024-01-01"}\n'
    )
    [item] = listed(tmp_path / "l.jsonl")
    assert (item.version, item.input) == ("2024-01-01", {"at": datetime(2024, 1, 1)})


def test_list_column_of_uris_may_be_named(tmp_path):
    (tmp_path / "l.csv").write_text("uri,where\na,s3://b/1\n")
    [item] = listed(tmp_path / "l.csv", columns=TableColumns(uri="where"))
    assert (item.uri, item.input) == ("s3://b/1", {"uri": "a"})
    with pytest.raises(ConfigError, match="no column 'place'") as caught:
        listed(tmp_path / "l.csv", columns=TableColumns(uri="place"))
    assert "uri, where" in caught.value.hint


UNSAFE, MISSING, DENIED = Status.UNSAFE_MEMBER, Status.SOURCE_MISSING, Status.SOURCE_DENIED


@pytest.mark.parametrize(
    ("folder", "uri", "place", "refused"),
    [
        ("/data/lists", "a.jpg", "/data/lists/a.jpg", None),
        ("/data/lists", "../a.jpg", "/data/a.jpg", None),
        ("/data/lists", "/etc/x.jpg", "/etc/x.jpg", None),
        ("/data/lists", "file:///etc/x.jpg", "/etc/x.jpg", None),
        ("/data/lists", "file://localhost/etc/x.jpg", "/etc/x.jpg", None),
        ("/data/lists", "FILE:/etc/x.jpg", "/etc/x.jpg", None),
        ("/data/lists", "file:in/a%20b.jpg", "/data/lists/in/a b.jpg", None),
        ("/data/lists", "File:../a.jpg", "/data/a.jpg", None),
        ("", "file:a.jpg", "/a.jpg", None),
        ("/data/lists", "file://elsewhere/etc/x.jpg", "file://elsewhere/etc/x.jpg", MISSING),
        ("s3://b/lists", "x/a.jpg", "s3://b/lists/x/a.jpg", None),
        ("/data/lists", "s3a://b/k", "s3://b/k", None),
        ("s3://b/lists", "../a #1.jpg", "s3://b/a #1.jpg", None),
        ("s3://b/lists", "../../a.jpg", "../../a.jpg", UNSAFE),
        (POINT, "../a.jpg", "../a.jpg", UNSAFE),
        (f"{POINT}/lists", "../a.jpg", f"{POINT}/a.jpg", None),
        (f"{POINT}/lists", POINT, POINT, None),
        ("https://h/l", "a.jpg", "https://h/l/a.jpg", None),
        ("s3://b/lists", "/etc/passwd", "/etc/passwd", UNSAFE),
        ("https://h/l", "FILE:///etc/passwd", "FILE:///etc/passwd", UNSAFE),
        ("https://h/l", "file:etc/passwd", "file:etc/passwd", UNSAFE),
        ("s3://b/lists", "local:///etc/passwd", "local:///etc/passwd", UNSAFE),
        ("s3://b/lists", "hf://x::file:///etc/passwd", "hf://x::file:///etc/passwd", UNSAFE),
        ("/data/lists", "a\0.jpg", "a\0.jpg", UNSAFE),
        ("/data/lists", "s3://NOT A BUCKET/k", "s3://NOT A BUCKET/k", MISSING),
        ("/data", "https://h/a.jpg?X-Amz-Signature=s&v=1", "https://h/a.jpg?v=1", DENIED),
        ("/data", "https://me:secret@h/a.jpg", "https://h/a.jpg", DENIED),
    ],
)
def test_list_uri_is_relative_to_its_list_and_stays_in_it(folder, uri, place, refused):
    [item] = ListEntries(f"{folder}/list.csv", "uri").members([{"uri": uri}])
    assert (item.uri, item.refused and item.refused.status) == (place, refused)


@pytest.mark.parametrize("key", ["st", "se", "policy", "page_token"])
def test_list_uri_whose_query_picks_the_image_is_read(key):
    uris = [f"https://h/image?{key}={number}" for number in range(4)]
    items = list(ListEntries("/data/list.csv", "uri").members({"uri": uri} for uri in uris))
    assert [(item.uri, item.refused) for item in items] == [(uri, None) for uri in uris]


def test_list_uris_that_differ_in_a_secret_are_members_each():
    """Another signature in the same row keeps the id."""
    uris = ["https://h/image", *(f"https://h/image?token={number}" for number in (0, 1, 1, 2))]
    items = list(ListEntries("/data/list.csv", "uri").members({"uri": uri} for uri in uris))
    assert {item.uri for item in items} == {"https://h/image"}
    assert [item.refused and item.refused.status for item in items] == [None] + [DENIED] * 4
    ids = [image_id(item) for item in items]
    assert len(set(ids)) == 5
    signed = [{"uri": f"https://h/a.jpg?sig={day}"} for day in range(2)]
    [monday], [tuesday] = (ListEntries("/l.csv", "uri").members([dict(row)]) for row in signed)
    assert image_id(monday) == image_id(tuesday)


PKZIP = b"PK\x03\x04" + b"\0" * 60
NO_HEADER = "the first line of the list must be its header"


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.jpg", b"x", "not a list"),
        ("l.csv", b"uri,n\na.jpg,1\n,2\n", r"l\.csv: row 2 has no text in its column 'uri'"),
        ("l.jsonl", b"not json\n", r"l\.jsonl: JSON parse error"),
        ("l.csv", b'uri,"n\n' + b"a.jpg,1\n" * 40_000, "is a quotation mark missing"),
        ("l.csv", b"uri,uri\na,b\n", "must name each column once"),
        ("l.csv", b"name,n\na,1\n", "none of its columns holds uris: name, n"),
        ("l.parquet", b"PAR1 but not really", "a Parquet file that ends before its footer"),
        ("l.csv", LFS_POINTER, "not a list but a Git LFS pointer.*run `git lfs pull`"),
        ("l.csv.gz", LFS_POINTER, "run `git lfs pull`"),
        ("l.parquet", LFS_POINTER, "run `git lfs pull`"),
        ("l.csv", gzip.compress(b"uri\na.jpg\n", mtime=0), r"add \.gz to the name"),
        ("l.jsonl", b"<!DOCTYPE html><html>", "an HTML page, perhaps an error page"),
        ("l.csv", PKZIP, "not a list but a ZIP file"),
        ("l.csv", "path\nbl\xe4.jpg\n".encode("latin-1"), "save it as UTF-8"),
        ("l.txt", "bl\xe4.jpg\n".encode("latin-1"), "save it as UTF-8"),
        ("l.csv", b"a.jpg\n", NO_HEADER),
        ("l.csv", b"a.jpg\nb.jpg\n", NO_HEADER),
    ],
)
def test_list_that_is_not_one_shows_what_it_is(tmp_path, name, data, said):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ConfigError) as caught:
        listed(f"list::{tmp_path}/{name}")
    assert re.search(said, f"{caught.value.message}; {caught.value.hint}")


def test_list_on_a_web_server_reaches_no_local_file(faulty):
    faulty.objects["/lists/l.csv?X-Amz-Signature=abc"] = b"uri,n\na.jpg,1\n/etc/passwd,2\n"
    items = listed(f"{faulty.url}/lists/l.csv?X-Amz-Signature=abc")
    assert [(i.uri, i.refused and i.refused.status) for i in items] == [
        (f"{faulty.url}/lists/a.jpg", None),
        ("/etc/passwd", UNSAFE),
    ]


def test_list_patterns_select_paths_below_its_folder(two_images):
    source, there = two_images / "l.csv", "s3://b/x/c.jpg"
    source.write_text(f"uri\nin/a.jpg\nin/b c.jpg\n{there}\n")
    [item] = listed(source, include=["in/*"], exclude=["b*"])
    assert item.uri == str(two_images / "in/a.jpg")
    assert [item.uri for item in listed(source, include=["c.jpg"])] == [there]


def test_list_column_may_change_its_type(tmp_path, monkeypatch):
    """Pieces are typed on their own; a column that is empty or whole at first may have text or
    fractions later.
    """
    monkeypatch.setattr("ray_app.archives.tabular._CHUNK_BYTES", 64)
    rows = "".join(
        f"s3://b/{n},{n if n < 50 else n + 0.5},{'' if n < 50 else 'late'}\n" for n in range(100)
    )
    (tmp_path / "l.csv").write_text("uri,n,note\n" + rows)
    items = listed(tmp_path / "l.csv")
    assert [(item.input["n"], item.input["note"]) for item in items] == [
        (n, None) if n < 50 else (n + 0.5, "late") for n in range(100)
    ]


PARTS = ["uri,n", "a,1", '"', '{"uri": "x"}', "\0", '{"uri": {"bytes": 1}}', "s3://b/k,2", "["]
PARTS += ["\x85,\ufeff", ",,,"]
lines = st.lists(st.sampled_from(PARTS)).map(lambda parts: "\n".join(parts).encode())


@settings(deadline=None, max_examples=60)
@given(st.sampled_from([".csv", ".jsonl", ".txt", ".csv.gz"]), st.binary(max_size=80) | lines)
def test_list_of_any_bytes_is_members_or_an_error(tmp_path_factory, ending, data):
    path = tmp_path_factory.getbasetemp() / f"any{ending}"
    path.write_bytes(gzip.compress(data) if ending == ".csv.gz" and len(data) % 2 else data)
    with contextlib.suppress(ConfigError):
        assert all(isinstance(item, ListedMember) for item in listed(f"list::{path}"))


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize(
    ("ending", "line"),
    [(".jsonl", b'{"uri": "' + b"x" * (17 << 20)), (".csv", b'uri\n"' + b"a,b\n" * (5 << 20))],
)
def test_list_with_an_endless_line_is_refused(tmp_path, ending, line, pack):
    path = tmp_path / f"l{ending}{'.gz' if pack is gzip.compress else ''}"
    path.write_bytes(pack(line))
    with pytest.raises(ConfigError, match=r"a line of more than 16777216 bytes"):
        listed(path)


def test_list_with_endless_nesting_is_refused(tmp_path):
    """Some ten thousand brackets in one another end the process of a parser that calls itself."""
    closing = b'{"uri":"' + b"]" * 100_000 + b'"}\n'
    for deep, shut, first in (
        (b"[\n", b"]\n", b""),
        (b'{"k":"}","a":', b"}", b""),
        (b"[", b"]", closing),
    ):
        (tmp_path / "l.jsonl").write_bytes(
            first + b'{"uri":"a.jpg","x":[' + deep * 100_000 + b"1" + shut * 100_000 + b"]}\n"
        )
        # in this process, which would end
        with pytest.raises(ConfigError, match="64 nested brackets"):
            listed(tmp_path / "l.jsonl")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be"])
@pytest.mark.parametrize(
    "text",
    ["path;n\r\nin/a.jpg;1\r\n", "sep=;\r\npath;n\r\nin/a.jpg;1\r\n", "path\tn\r\nin/a.jpg\t1\r\n"],
)
def test_list_from_excel_is_read(two_images, text, encoding):
    (two_images / "l.csv").write_bytes(text.encode(encoding))
    [item] = listed(two_images / "l.csv")
    assert (item.uri, item.size_bytes, item.input) == (f"{two_images}/in/a.jpg", 5, {"n": 1})


@pytest.mark.parametrize("ending", ["txt", "jsonl"])
def test_list_in_utf16_is_read(two_images, ending):
    rows = {"txt": "in/a.jpg\r\n", "jsonl": '{"uri": "in/a.jpg"}\r\n'}
    (two_images / f"l.{ending}").write_bytes(rows[ending].encode("utf-16"))
    [item] = listed(f"list::{two_images}/l.{ending}")
    assert item.uri == f"{two_images}/in/a.jpg"


def test_list_with_windows_paths_shows_what_to_write(two_images):
    (two_images / "in" / r"odd\name.jpg").write_bytes(b"x")
    paths = ["in\\a.jpg", "C:\\photos\\a.jpg", "C:/photos/a.jpg", "in/odd\\name.jpg", "in/a.jpg"]
    (two_images / "l.csv").write_text("\n".join(["path", *paths]))
    *missing, odd, plain = (item.refused for item in listed(two_images / "l.csv"))
    assert [refused.status for refused in missing] == [MISSING] * 3
    assert "it has backslashes, as Windows writes them: replace them with /" in missing[0].detail
    assert all("it is a Windows path" in refused.detail for refused in missing[1:])
    assert (odd, plain) == (None, None), "a name with a backslash that is there is read"
