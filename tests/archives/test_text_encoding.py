import io

import pytest

from ray_app.archives.tabular import csv_tables
from ray_app.archives.text_encoding import find_delimiter, utf8_chunks

TEXT = "path;größe\r\n€/𝄞.jpg;7\r\n" * 40


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]
)
@pytest.mark.parametrize("size", [5, 1 << 20])
def test_utf8_chunks_convert_every_unicode_encoding(encoding, size):
    assert b"".join(utf8_chunks(io.BytesIO(TEXT.encode(encoding)), size)) == TEXT.encode()


def test_utf8_chunks_reject_text_that_ends_inside_a_character():
    with pytest.raises(UnicodeDecodeError):
        list(utf8_chunks(io.BytesIO("ab".encode("utf-16") + b"c"), 1 << 20))


@pytest.mark.parametrize(
    ("header", "expected", "found"),
    [
        ("path;label", ",", ";"),
        ("path\tlabel", ",", "\t"),
        ("path,label", "\t", ","),
        ("path|label|n", ",", "|"),
        ("path", ",", ","),
        ("path", "\t", "\t"),
        ('"a;b;c",label', ",", ","),
        ("caption (a, b, c)\turi", "\t", "\t"),
        ("caption, long\turi", "\t", "\t"),
        ("tags;style\turi", "\t", "\t"),
        ("uri,tags|style|mood", ",", ","),
        ("tags|style|mood,uri", ",", ","),
        ("uri,size (w;h;d)", ",", ","),
        ("a;b,uri,label", ",", ","),
        ("uri, label", ",", ","),
        ("uri; label", ",", ";"),
        ("uri;score;note, with, commas, x", ",", ";"),
        ("uri;label;size,mm", ",", ";"),
        (";url;label;;", ",", ";"),
    ],
)
def test_find_delimiter_reads_the_header(header, expected, found):
    assert find_delimiter(header, expected) == found


@pytest.mark.parametrize(
    "text",
    [
        "path;n\na,b.jpg;7\n",
        "\r\n\npath;n\na,b.jpg;7\n",
        "\nsep=;\r\npath;n\r\na,b.jpg;7\r\n",
        "path\tn\na,b.jpg\t7\n",
    ],
)
def test_csv_tables_read_other_separators_than_commas(text):
    [table] = csv_tables(io.BytesIO(text.encode()))
    assert table.to_pylist() == [{"path": "a,b.jpg", "n": "7"}]
