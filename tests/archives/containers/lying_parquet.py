"""Parquet footers written by hand (Thrift's compact protocol), so that they can claim what no
writer would.
"""

import struct

I32, I64, TEXT, LIST, STRUCT = 5, 6, 8, 9, 12
BYTE_ARRAY, INT64, OPTIONAL = 6, 2, 1


def varint(number: int) -> bytes:
    number &= (1 << 64) - 1
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def integer(number: int) -> bytes:
    return varint((number << 1) ^ (number >> 63))


def text(value: str) -> bytes:
    return varint(len(value.encode())) + value.encode()


def items(kind: int, values: list[bytes], count: int | None = None) -> bytes:
    """A list; `count`: how many it says that it has."""
    count = len(values) if count is None else count
    head = bytes([count << 4 | kind]) if count < 15 else bytes([0xF0 | kind]) + varint(count)
    return head + b"".join(values)


def fields(**values: tuple[int, int, bytes]) -> bytes:
    """A struct of (field id, type, value), ids ascending."""
    out, last = b"", 0
    for number, kind, value in values.values():
        out, last = out + bytes([(number - last) << 4 | kind]) + value, number
    return out + b"\0"


def column(name: str, kind: int, rows: int) -> bytes:
    meta = fields(
        type=(1, I32, integer(kind)),
        encodings=(2, LIST, items(I32, [integer(0)])),
        path=(3, LIST, items(TEXT, [text(name)])),
        codec=(4, I32, integer(0)),
        values=(5, I64, integer(rows)),
        unpacked=(6, I64, integer(0)),
        packed=(7, I64, integer(0)),
        page=(9, I64, integer(4)),
    )
    return fields(offset=(2, I64, integer(4)), meta=(3, STRUCT, meta))


def lying(rows: int, *, columns: dict[str, int] | None = None, claimed_groups: int = 1) -> bytes:
    """A file of hardly more than a footer, which claims so many `rows` in its row group. `columns`:
    name → physical type.
    """
    columns = {"image": BYTE_ARRAY} if columns is None else columns
    types = [
        (name, (1, I32, integer(kind)), (3, I32, integer(OPTIONAL)))
        for name, kind in columns.items()
    ]
    leaves = [
        fields(type=kind, repetition=repetition, name=(4, TEXT, text(name)))
        for name, kind, repetition in types
    ]
    root = fields(name=(4, TEXT, text("schema")), children=(5, I32, integer(len(columns))))
    chunks = [column(name, kind, rows) for name, kind in columns.items()]
    group = fields(
        columns=(1, LIST, items(STRUCT, chunks)),
        size=(2, I64, integer(0)),
        rows=(3, I64, integer(rows)),
    )
    footer = fields(
        version=(1, I32, integer(1)),
        schema=(2, LIST, items(STRUCT, [root, *leaves])),
        rows=(3, I64, integer(rows)),
        groups=(4, LIST, items(STRUCT, [group], claimed_groups)),
    )
    return b"PAR1" + footer + struct.pack("<I", len(footer)) + b"PAR1"
