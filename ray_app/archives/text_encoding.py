"""Read the text tables that people bring: the encoding of a file (`utf8_chunks`) and the separator of its header (`find_delimiter`).

Excel on Windows saves "Unicode text" as UTF-16, and CSV with semicolons if the decimal sign of the language is a comma.
"""

import codecs
from collections import Counter
from collections.abc import Iterator
from typing import Any

DELIMITERS = (",", ";", "\t", "|")

# The mark of UTF-32 begins with that of UTF-16, so it is tried first.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def find_encoding(start: bytes) -> tuple[str, int]:
    """Return the encoding that the first bytes of a text show, and the length of its mark.

    A text without a mark is UTF-8, or UTF-16 if at least half of its first letters have a zero byte at the same side.
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
    """Read a text file of any Unicode encoding in chunks of about `size` bytes, as UTF-8 without a mark.

    Chunks may end inside a character. UTF-8 is passed on as it is.

    Args:
        file: A binary file; only `read` is called.
        size: The number of bytes to read at once.

    Yields:
        The text in UTF-8, without empty chunks.

    Raises:
        UnicodeDecodeError: The file is not what its mark shows.
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
    """Return the separator of the header line of a table.

    The most frequent of `DELIMITERS` outside double quotes wins; `expected` wins a tie and a header of one column.
    """
    outside = "".join(header.split('"')[::2])
    counts = Counter({mark: outside.count(mark) for mark in (expected, *DELIMITERS)})
    return counts.most_common(1)[0][0]
