import contextlib
import gzip
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
from ray_app.archives.uri_list_rows import ListEntries
from ray_app.errors import ConfigError, Status
from tests.archives.containers.hazards import LFS_POINTER


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
    def cell(value) -> str:
        return (
            ""
            if value is None
            else '"' + value.replace('"', '""') + '"'
            if isinstance(value, str)
            else str(value)
        )

    return "".join(
        delimiter.join(cells) + "\n"
        for cells in [[*rows[0]], *([cell(value) for value in row.values()] for row in rows)]
    )


FORMS = {
    "csv": lambda: as_csv(ROWS).encode(),
    "tsv": lambda: as_csv(ROWS, "\t").encode(),
    "ndjson": lambda: "\n".join(json.dumps(row) for row in ROWS).encode(),
    "csv.gz": lambda: gzip.compress(as_csv(ROWS).encode()),
    "JSONL": lambda: "".join(json.dumps(row) + "\r\n" for row in ROWS).encode(),
}


@pytest.mark.parametrize("ending", FORMS)
def test_every_form_of_list_gives_the_same_members(two_images, ending):
    (two_images / f"list.{ending}").write_bytes(FORMS[ending]())
    items = listed(two_images / f"list.{ending}")
    told = [{name: value for name, value in row.items() if name != "uri"} for row in ROWS]
    assert items == [
        replace(item, input=row) for item, row in zip(listed(two_images / "in"), told, strict=True)
    ]


def test_a_parquet_list_and_a_plain_text_one(two_images):
    pq.write_table(
        pa.table({"path": ["in/a.jpg"], "thumb": [b"x"], "n": [1]}), two_images / "l.parquet"
    )
    (two_images / "l.txt").write_text("in/b c.jpg\n\nhttps://example.org/x.jpg\n")
    items = listed(f"list::{two_images}/l.*")
    assert [item.uri for item in items] == [
        str(two_images / "in/a.jpg"),
        str(two_images / "in/b c.jpg"),
        "https://example.org/x.jpg",
    ]
    assert items[0].input["n"] == 1


def test_columns_that_describe_the_object(tmp_path):
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


def test_the_column_that_the_user_names(tmp_path):
    (tmp_path / "l.csv").write_text("uri,where\na,s3://b/1\n")
    [item] = listed(tmp_path / "l.csv", columns=TableColumns(uri="where"))
    assert (item.uri, item.input) == ("s3://b/1", {"uri": "a"})
    with pytest.raises(ConfigError, match="no column 'place'") as caught:
        listed(tmp_path / "l.csv", columns=TableColumns(uri="place"))
    assert "uri, where" in caught.value.hint


@pytest.mark.parametrize(
    ("folder", "uri", "place", "refused"),
    [
        ("/data/lists", "a.jpg", "/data/lists/a.jpg", None),
        ("/data/lists", "../a.jpg", "/data/a.jpg", None),
        ("/data/lists", "/etc/x.jpg", "/etc/x.jpg", None),
        ("/data/lists", "file:///etc/x.jpg", "/etc/x.jpg", None),
        ("/data/lists", "file://localhost/etc/x.jpg", "/etc/x.jpg", None),
        ("/data/lists", "FILE:/etc/x.jpg", "/etc/x.jpg", None),
        (
            "/data/lists",
            "file://elsewhere/etc/x.jpg",
            "file://elsewhere/etc/x.jpg",
            Status.SOURCE_MISSING,
        ),
        ("s3://b/lists", "x/a.jpg", "s3://b/lists/x/a.jpg", None),
        ("s3://b/lists", "../a #1.jpg", "s3://b/a #1.jpg", None),
        ("s3://b/lists", "../../a.jpg", "../../a.jpg", Status.UNSAFE_MEMBER),
        ("https://h/l", "a.jpg", "https://h/l/a.jpg", None),
        ("s3://b/lists", "/etc/passwd", "/etc/passwd", Status.UNSAFE_MEMBER),
        ("https://h/l", "FILE:///etc/passwd", "FILE:///etc/passwd", Status.UNSAFE_MEMBER),
        ("s3://b/lists", "local:///etc/passwd", "local:///etc/passwd", Status.UNSAFE_MEMBER),
        (
            "s3://b/lists",
            "hf://x::file:///etc/passwd",
            "hf://x::file:///etc/passwd",
            Status.UNSAFE_MEMBER,
        ),
        ("/data/lists", "a\0.jpg", "a\0.jpg", Status.UNSAFE_MEMBER),
        ("/data/lists", "s3://NOT A BUCKET/k", "s3://NOT A BUCKET/k", Status.SOURCE_MISSING),
        (
            "/data",
            "https://h/a.jpg?X-Amz-Signature=s&v=1",
            "https://h/a.jpg?v=1",
            Status.SOURCE_DENIED,
        ),
        ("/data", "https://me:secret@h/a.jpg", "https://h/a.jpg", Status.SOURCE_DENIED),
    ],
)
def test_what_a_uri_in_a_list_means(folder, uri, place, refused):
    [item] = ListEntries(f"{folder}/list.csv", "uri").members([{"uri": uri}])
    assert (item.uri, item.refused and item.refused.status) == (place, refused)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.jpg", "x", "not a list"),
        ("l.csv", "uri,n\na.jpg,1\n,2\n", r"l\.csv: row 2 has no text in its column 'uri'"),
        ("l.jsonl", "not json\n", r"l\.jsonl: JSON parse error"),
        (
            "l.csv",
            'uri,"n\n' + "a.jpg,1\n" * 40_000,
            "its first line cannot be read .*; is a quotation mark missing",
        ),
        ("l.csv", "uri,uri\na,b\n", "should name each column once"),
        ("l.csv", "name,n\na,1\n", "none of its columns holds uris: name, n"),
        ("l.parquet", "PAR1 but not really", "a Parquet file that ends before its footer"),
    ],
)
def test_what_is_wrong_with_a_list_is_said(tmp_path, name, text, said):
    (tmp_path / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=said):
        listed(f"list::{tmp_path}/{name}")


def test_a_list_on_a_web_server(faulty):
    faulty.objects["/lists/l.csv?X-Amz-Signature=abc"] = b"uri,n\na.jpg,1\n/etc/passwd,2\n"
    items = listed(f"{faulty.url}/lists/l.csv?X-Amz-Signature=abc")
    assert [(i.uri, i.refused and i.refused.status) for i in items] == [
        (f"{faulty.url}/lists/a.jpg", None),
        ("/etc/passwd", Status.UNSAFE_MEMBER),
    ]


def test_patterns_see_paths_below_the_lists_folder(two_images):
    (two_images / "l.csv").write_text("uri\nin/a.jpg\nin/b c.jpg\ns3://b/x/c.jpg\n")
    assert [
        item.uri for item in listed(two_images / "l.csv", include=["in/*"], exclude=["b*"])
    ] == [str(two_images / "in/a.jpg")]
    assert [item.uri for item in listed(two_images / "l.csv", include=["c.jpg"])] == [
        "s3://b/x/c.jpg"
    ]


def test_a_column_may_change_its_type_from_piece_to_piece(tmp_path, monkeypatch):
    """Pieces are typed on their own; a column that is empty or whole at first may have text or
    fractions later.
    """
    monkeypatch.setattr("ray_app.archives.tabular._PIECE", 64)
    rows = "".join(
        f"s3://b/{n},{n if n < 50 else n + 0.5},{'' if n < 50 else 'late'}\n" for n in range(100)
    )
    (tmp_path / "l.csv").write_text("uri,n,note\n" + rows)
    items = listed(tmp_path / "l.csv")
    assert [item.input["n"] for item in items] == [n if n < 50 else n + 0.5 for n in range(100)]
    assert [item.input["note"] for item in items] == [
        None if n < 50 else "late" for n in range(100)
    ]


PARTS = [
    "uri,n",
    "a,1",
    '"',
    '{"uri": "x"}',
    "\0",
    '{"uri": {"bytes": 1}}',
    "s3://b/k,2",
    "[",
    "\x85,\ufeff",
    ",,,",
]
lines = st.lists(st.sampled_from(PARTS)).map(lambda parts: "\n".join(parts).encode())


@settings(deadline=None, max_examples=100)
@given(st.sampled_from([".csv", ".jsonl", ".txt", ".csv.gz"]), st.binary(max_size=80) | lines)
def test_any_bytes_are_members_or_a_config_error(tmp_path_factory, ending, data):
    path = tmp_path_factory.getbasetemp() / f"any{ending}"
    path.write_bytes(gzip.compress(data) if ending == ".csv.gz" and len(data) % 2 else data)
    with contextlib.suppress(ConfigError):
        assert all(isinstance(item, ListedMember) for item in listed(f"list::{path}"))


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize(
    ("ending", "line"),
    [(".jsonl", b'{"uri": "' + b"x" * (17 << 20)), (".csv", b'uri\n"' + b"a,b\n" * (5 << 20))],
)
def test_a_line_that_goes_on_and_on_is_given_up(tmp_path, ending, line, pack):
    path = tmp_path / f"l{ending}{'.gz' if pack is gzip.compress else ''}"
    path.write_bytes(pack(line))
    with pytest.raises(ConfigError, match=r"a line of more than 16777216 bytes"):
        listed(path)


def test_what_is_nested_without_an_end_is_refused_before_it_is_parsed(tmp_path):
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
def test_utf16_list_of_another_form_is_read(two_images, ending):
    rows = {"txt": "in/a.jpg\r\n", "jsonl": '{"uri": "in/a.jpg"}\r\n'}
    (two_images / f"l.{ending}").write_bytes(rows[ending].encode("utf-16"))
    [item] = listed(f"list::{two_images}/l.{ending}")
    assert item.uri == f"{two_images}/in/a.jpg"


def test_windows_paths_in_a_list_say_what_to_write(two_images):
    (two_images / "in" / r"odd\name.jpg").write_bytes(b"x")
    (two_images / "l.csv").write_text(
        "path\nin\\a.jpg\nC:\\photos\\a.jpg\nC:/photos/a.jpg\nin/odd\\name.jpg\nin/a.jpg\n"
    )
    refused = [
        item.refused and (item.refused.status, item.refused.detail)
        for item in listed(two_images / "l.csv")
    ]
    backslashes, *drives = refused[:3]
    assert backslashes == (
        Status.SOURCE_MISSING,
        r"in\a.jpg: no such file; it has backslashes, as Windows writes them: write / in their place",
    )
    assert all(
        status == Status.SOURCE_MISSING and "it is a path of Windows" in detail
        for status, detail in drives
    )
    assert refused[3:] == [None, None], "a name with a backslash that is there is read"


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        (
            "l.csv",
            LFS_POINTER,
            "not a list but a Git LFS pointer, not the file itself; run `git lfs pull`",
        ),
        ("l.csv.gz", LFS_POINTER, "run `git lfs pull`"),
        ("l.parquet", LFS_POINTER, "run `git lfs pull`"),
        (
            "l.csv",
            gzip.compress(b"uri\na.jpg\n", mtime=0),
            r"does not end in \.gz; add \.gz to the name",
        ),
        ("l.jsonl", b"<!DOCTYPE html><html>", "an HTML page, perhaps an error page"),
        ("l.csv", b"PK\x03\x04" + b"\0" * 60, "not a list but a ZIP file"),
        ("l.csv", "path\nbl\xe4.jpg\n".encode("latin-1"), "save it as UTF-8"),
        ("l.txt", "bl\xe4.jpg\n".encode("latin-1"), "save it as UTF-8"),
        ("l.csv", b"a.jpg\n", "the first line of the list must be its header"),
        ("l.csv", b"a.jpg\nb.jpg\n", "the first line of the list must be its header"),
    ],
)
def test_file_that_is_not_a_list_says_what_it_is(tmp_path, name, data, said):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ConfigError) as caught:
        listed(f"list::{tmp_path}/{name}")
    assert re.search(said, f"{caught.value.message}; {caught.value.hint}")
