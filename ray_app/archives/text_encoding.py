"""Detect the encoding of a text table and the separator of its header.

`utf8_chunks` reads a file in any Unicode encoding. `find_delimiter` finds the separator.

Both are necessary because Excel on Windows saves "Unicode text" as UTF-16, and saves CSV with
semicolons if the decimal sign of the language is a comma.
"""

import codecs
import re
from collections.abc import Iterator
from typing import Any

DELIMITERS = (",", ";", "\t", "|")
_INSIDE_NAMES = re.compile(r"\([^()]*\)|\[[^\[\]]*\]|\{[^{}]*\}|[,;|] ")

# The mark of UTF-32 begins with the mark of UTF-16, so UTF-32 is tried first.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def find_encoding(start: bytes) -> tuple[str, int]:
    """Return the encoding of a text from its start, and the length of its byte order mark.

    A text without a byte order mark is UTF-16 if at least half of its first 32 pairs of bytes have
    a zero at the same side. Otherwise it is UTF-8.
    """
    for mark, encoding in _MARKS:
        if start.startswith(mark):
            return encoding, len(mark)
    even, odd = start[0:64:2], start[1:64:2]
    if len(odd) > 1 and 2 * odd.count(0) >= len(odd) and all(even):
        return "utf-16-le", 0
    if len(odd) > 1 and 2 * even.count(0) >= len(even) and all(odd):
        return "utf-16-be", 0
    return "utf-8", 0


def utf8_chunks(file: Any, size: int) -> Iterator[bytes]:
    """Read a text file of any Unicode encoding, and yield it as UTF-8 without a byte order mark.

    Chunks may end inside a character. A file in UTF-8 is not converted.

    Args:
        file: A binary file; only `read` is called.
        size: The number of bytes to read at once.

    Yields:
        The text in UTF-8, without empty chunks.

    Raises:
        UnicodeDecodeError: The file is not in the encoding that `find_encoding` found.
    """
    data = file.read(size)
    encoding, skipped = find_encoding(data)
    data = data[skipped:]
    if encoding == "utf-8":
        while data:
            yield data
            data = file.read(size)
        return
    decoder = codecs.getincrementaldecoder(encoding)()
    while data:
        if text := decoder.decode(data):
            yield text.encode()
        data = file.read(size)
    decoder.decode(b"", final=True)


def find_delimiter(header: str, expected: str = ",") -> str:
    """Return the separator between the column names in the header line of a table.

    A separator in double quotes is part of a name. A separator in brackets or before a space is
    also part of a name, unless the line has no other separators.

    Args:
        header: The header line.
        expected: The separator that the file's name suggests.

    Returns:
        `expected` if it separates at least two names that contain no other separator. If
        `expected` is a tab, a single tab in the line is enough. Otherwise the first separator in
        the line, but a bar (`|`) only if the line has no other. If the line has no separator,
        `expected`.
    """
    outside = "".join(header.split('"')[::2])
    text = _INSIDE_NAMES.sub("", outside)
    if not any(mark in text for mark in DELIMITERS):
        text = outside
    names = text.split(expected)
    others = [mark for mark in DELIMITERS if mark != expected]
    plain_names = [
        name for name in names if name.strip() and not any(mark in name for mark in others)
    ]
    if len(names) > 1 and (expected == "\t" or len(plain_names) > 1):
        return expected
    marks = [letter for letter in text if letter in DELIMITERS]
    return next((mark for mark in marks if mark != "|"), marks[0] if marks else expected)
