import base64
import io
import json
import random
import re
from datetime import UTC, datetime
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_app.archives import (
    Container,
    ContainerLimits,
    ListedMember,
    MemberLocation,
    TableColumns,
    open_source,
)
from ray_app.archives.containers.parquet import index, reader
from ray_app.archives.containers.parquet_reader import read_referenced
from ray_app.errors import ConfigError, InputError, Status
from ray_app.storage import Fetcher
from tests.archives.containers.lying_parquet import BYTE_ARRAY, INT64, lying
from tests.make.images import encoded, photo
from tests.make.servers.faulty import LOOPBACK

BYTES = [b"image %d " % number + bytes(number) for number in range(20)]


def features(**kinds) -> dict[bytes, bytes]:
    return {b"huggingface": json.dumps({"info": {"features": kinds}}).encode()}


def as_hub(cells, **others) -> pa.Table:
    """What `datasets` writes for a column of images: its own test below compares this with the real
    thing.
    """
    image = pa.array(
        [{"bytes": cell, "path": f"{row}.png"} for row, cell in enumerate(cells)],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    said = {"image": {"_type": "Image"}} | {name: {"_type": "Value"} for name in others}
    return pa.table({"image": image, **others}).replace_schema_metadata(features(**said))


def listed(path, table: pa.Table | bytes, columns=None, limits=None, *, named=False, **how):
    """What a file with this table lists; `how`: how the table is written."""
    pq.write_table(table, path, **how) if isinstance(table, pa.Table) else path.write_bytes(table)
    return list(index(container(path, columns, limits, named), Fetcher()))


def container(path, columns=None, limits=None, named=False) -> Container:
    columns, limits = columns or TableColumns(), limits or ContainerLimits()
    size = path.stat().st_size
    return Container(str(path), "", size, "parquet", path.name, columns, limits, named)


def names(items) -> list[str | None]:
    return [item.member for item in items]


def why(items) -> list[Status | None]:
    return [item.refused and item.refused.status for item in items]


def read(items, max_bytes=10**6) -> list:
    return list(reader(Fetcher(guard=LOOPBACK), max_bytes).read(items))


def test_parquet_from_the_hub_lists_and_reads_every_row(tmp_path):
    items = listed(tmp_path / "a.parquet", as_hub(BYTES, label=list(range(20))), row_group_size=6)
    places = [MemberLocation("parquet", row, -1, row // 6, "image") for row in range(20)]
    assert [(item.member, item.place) for item in items] == [
        (str(row), place) for row, place in enumerate(places)
    ]
    assert [item.input for item in items] == [
        {"label": row, "path": f"{row}.png"} for row in range(20)
    ]
    assert {(item.uri, item.occurrence, item.size_bytes, item.refused) for item in items} == {
        (str(tmp_path / "a.parquet"), 0, -1, None)
    }
    assert read(items) == BYTES


FILE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def in_lists(*lists, kind=None, **others) -> pa.Table:
    """A table whose rows have several images each, as `datasets` writes List(Image())."""
    cells = [
        files
        and [file and {"bytes": file, "path": f"{row}-{n}.png"} for n, file in enumerate(files)]
        for row, files in enumerate(lists)
    ]
    return pa.table({"images": pa.array(cells, kind or pa.list_(FILE)), **others})


@pytest.mark.parametrize("kind", [pa.list_(FILE), pa.large_list(FILE)], ids=str)
def test_parquet_images_of_lists_are_members(tmp_path, kind):
    table = in_lists([b"a", b"b"], None, [], [None, b"c"], kind=kind, label=[1, 2, 3, 4])
    items = listed(tmp_path / "a.parquet", table, row_group_size=3)
    assert names(items) == ["0/0", "0/1", "3/0", "3/1"]
    assert [(item.input["label"], item.input["path"]) for item in items[1:]] == [
        (1, "0-1.png"),
        (4, None),
        (4, "3-1.png"),
    ]
    assert [(item.place.group, item.occurrence) for item in items] == [(0, 0)] * 2 + [(1, 0)] * 2
    assert why(items) == [None, None, Status.SOURCE_MISSING, None]
    assert read([item for item in items if item.refused is None]) == [b"a", b"b", b"c"]
    assert names(open_source([str(tmp_path)], include=["a.parquet/0-1.png"])) == ["0/1"]


def test_parquet_lists_of_a_fixed_size_are_read(tmp_path):
    table = in_lists([b"a", b"b"], [b"c", b"d"], kind=pa.list_(FILE, 2))
    items = listed(tmp_path / "a.parquet", table)
    assert names(items) == ["0/0", "0/1", "1/0", "1/1"]
    assert read(items) == [b"a", b"b", b"c", b"d"]


PAGES = {"data_page_size": 100_000, "write_batch_size": 1, "use_dictionary": False}


@pytest.mark.parametrize(("each", "together"), [(1, 5), (4, 3)], ids=["one a row", "lists"])
def test_parquet_blocks_in_turn_read_each_page_once(tmp_path, each, together):
    """A block of members may begin within a row that has a list."""
    cells = [random.Random(row).randbytes(100_000) for row in range(40)]
    rows = [cells[row : row + each] for row in range(0, 40, each)]
    table = as_hub(cells) if each == 1 else in_lists(*rows)
    items = listed(tmp_path / "a.parquet", table, row_group_size=20 // each, **PAGES)
    assert read(items[6:7]) == [cells[6]]
    fetcher = Fetcher()
    blocks = reader(fetcher, 10**6)
    starts = range(0, 40, together)
    assert [cell for n in starts for cell in blocks.read(items[n : n + together])] == cells
    assert fetcher.bytes_read < 1.3 * sum(map(len, cells))


@pytest.mark.parametrize(
    "make", [as_hub, lambda cells: in_lists(cells, cells)], ids=["rows", "lists"]
)
def test_parquet_listing_reads_no_images(tmp_path, make):
    path, fetcher = tmp_path / "a.parquet", Fetcher()
    table = make([random.Random(row).randbytes(300_000) for row in range(30)])
    pq.write_table(table, path, row_group_size=15, use_dictionary=False)
    assert len(list(index(container(path), fetcher))) in (30, 60)
    assert fetcher.bytes_read < 0.1 * 30 * 300_000


def test_parquet_column_with_one_image_per_row_comes_first(tmp_path):
    table = as_hub([b"x"], images=in_lists([b"a"])["images"])
    items = listed(tmp_path / "a.parquet", table)
    assert (names(items), read(items)) == (["0"], [b"x"])
    items = listed(tmp_path / "a.parquet", table, TableColumns(image="images"))
    assert (names(items), read(items)) == (["0/0"], [b"a"])


def test_parquet_with_uris_and_lists_is_a_list_if_named(tmp_path):
    table = in_lists([b"a"], url=["s3://b/a.jpg"])
    [item] = listed(tmp_path / "a.parquet", table, named=True)
    assert item.uri == "s3://b/a.jpg"
    assert names(listed(tmp_path / "a.parquet", table)) == ["0/0"]


def test_parquet_lists_are_listed_up_to_limits(tmp_path):
    path, at_most = tmp_path / "a.parquet", ContainerLimits(max_members=4)
    *items, last = listed(path, in_lists([b"a"] * 3, [b"b"] * 3), limits=at_most)
    assert (names(items), why([last])) == (["0/0", "0/1", "0/2", "1/0"], [Status.UNSAFE_MEMBER])
    items = listed(path, in_lists([b"a"] * 257, [b"b"]))
    assert (names(items), why(items)) == (["0", "1/0"], [Status.IMAGE_TOO_LARGE, None])
    table = in_lists(*[[b"a"] * 250] * 30, said=["x" * 60_000] * 30)
    *_, last = listed(path, table, limits=ContainerLimits(max_ratio=2))
    assert why([last]) == [Status.IMAGE_TOO_LARGE]


def test_parquet_list_shorter_than_listed_is_refused(tmp_path):
    items = listed(tmp_path / "a.parquet", in_lists([b"a", b"b"]))
    listed(tmp_path / "a.parquet", in_lists([b"a"]))
    assert [isinstance(data, InputError) for data in read(items)] == [False, True]


JPEG, PNG = (base64.b64encode(encoded(photo(8, 8, 0), form)).decode() for form in ("JPEG", "PNG"))
STRUCT = pa.struct([("image", FILE)])


@pytest.mark.parametrize(
    ("column", "found"),
    [
        (pa.array([{"image": {"bytes": b"x", "path": "a"}}], STRUCT), "files in 'meta.image'"),
        (
            pa.array([[{"scan": b"x"}]], pa.list_(pa.struct([("scan", pa.binary())]))),
            "files in 'meta[].scan'",
        ),
        (pa.array([[b"x"]], pa.list_(pa.binary())), "files in 'meta[]'"),
        (pa.array([JPEG]), "'meta' has images as base64 text"),
        (pa.array([None, f"data:image/png;base64,{PNG}"]), "base64 text"),
    ],
    ids=["struct", "list of structs", "list of bytes", "base64", "data url"],
)
def test_parquet_images_that_are_not_read_are_named(tmp_path, column, found):
    table = pa.table({"n": range(len(column)), "meta": column})
    [item] = listed(tmp_path / "a.parquet", table)
    assert (item.member, item.refused.status) == (None, Status.UNSUPPORTED_FORMAT)
    assert found in item.refused.detail


def test_parquet_texts_that_are_not_utf8_are_not_base64(tmp_path):
    [item] = listed(tmp_path / "a.parquet", pa.table({"other": FAR["no text"]}))
    assert "without a column of images" in item.refused.detail


@pytest.mark.parametrize("nested", [False, True])
def test_parquet_images_in_a_dictionary_are_read(tmp_path, nested):
    cells = pa.array([b"a", b"b", b"a"]).dictionary_encode()
    column = (
        pa.StructArray.from_arrays([cells, pa.array(["x", "y", "z"])], ["bytes", "path"])
        if nested
        else cells
    )
    assert read(listed(tmp_path / "a.parquet", pa.table({"image": column}))) == [b"a", b"b", b"a"]
    table = pa.table({"image": column, "pixels": [b"1", b"2", b"3"]})
    assert read(listed(tmp_path / "a.parquet", table)) == [b"1", b"2", b"3"], (
        "as before dictionaries were read"
    )


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()])
def test_parquet_plain_column_of_bytes_is_read(tmp_path, kind):
    items = listed(tmp_path / "a.parquet", pa.table({"jpg": pa.array(BYTES, kind), "n": range(20)}))
    assert read(items) == BYTES
    assert items[3].input == {"n": 3}


def test_parquet_class_labels_come_with_their_text(tmp_path):
    label = {"_type": "ClassLabel", "names": ["real", "fake"]}
    said = features(image={"_type": "Image"}, label=label)
    table = as_hub(BYTES[:4], label=[1, 0, None, -1]).replace_schema_metadata(said)
    inputs = [item.input for item in listed(tmp_path / "a.parquet", table)]
    assert [(row["label"], row["label_name"]) for row in inputs] == [
        (1, "fake"),
        (0, "real"),
        (None, None),
        (-1, None),
    ]


def test_parquet_other_images_are_referred_to_and_read_back(tmp_path):
    mask = as_hub([b"mask", None, b"third"])["image"].to_pylist()
    others = {"mask": pa.array([mask[0], None, mask[2]]), "depth": pa.array([b"d0", b"d1", b"d2"])}
    items = listed(tmp_path / "a #1.parquet", as_hub(BYTES[:3], **others), row_group_size=2)
    assert [item.input["mask_uri"] is None for item in items] == [False, True, False]
    assert read_referenced(items[2].input["mask_uri"], Fetcher()) == b"third"
    assert read_referenced(items[2].input["depth_uri"], Fetcher()) == b"d2"
    with pytest.raises(ConfigError, match="not a reference"):
        read_referenced("a.png", Fetcher())
    with pytest.raises(InputError, match="the table has no row 9"):
        read_referenced(f"{items[0].uri}#row=9&column=depth", Fetcher())


IMAGE = {"_type": "Image"}


@pytest.mark.parametrize(
    ("names", "said", "columns", "chosen"),
    [
        (["a", "b"], {}, TableColumns(image="b"), "b"),
        (["a", "b"], {"b": IMAGE}, TableColumns(), "b"),
        (["mask", "image"], {"mask": IMAGE, "image": IMAGE}, TableColumns(), "image"),
        (["thumb", "JPG"], {}, TableColumns(), "JPG"),
        (["whatever"], {}, TableColumns(), "whatever"),
    ],
)
def test_parquet_column_of_images_is_chosen(tmp_path, names, said, columns, chosen):
    table = pa.table({name: pa.array([name.encode()]) for name in names})
    table = table.replace_schema_metadata(features(**said))
    [item] = listed(tmp_path / "a.parquet", table, columns)
    assert read([item]) == [chosen.encode()]


TWO = pa.table({"a": [b"1"], "b": [b"2"]})
EITHER = pa.table({"vector": [b"1"], "url": ["https://example.org/a.jpg"]})


@pytest.mark.parametrize(
    ("table", "columns", "reason"),
    [
        (TWO, TableColumns(), "may be in any of the columns a, b.*columns.image=NAME"),
        (TWO, TableColumns(image="c"), "no column 'c'"),
        (EITHER, TableColumns(), "the bytes in 'vector' or the files that 'url' names"),
    ],
    ids=["two columns", "missing column", "bytes or uris"],
)
def test_parquet_that_is_unclear_asks_for_the_column(tmp_path, table, columns, reason):
    with pytest.raises(ConfigError) as caught:
        listed(tmp_path / "a.parquet", table, columns, named=True)
    assert re.search(reason, f"{caught.value.message}; {caught.value.hint}")


@pytest.mark.parametrize("table", [TWO, EITHER, pa.table({"n": [1]})], ids=["two", "or", "none"])
def test_parquet_that_is_unclear_in_a_folder_is_one_row(tmp_path, table):
    items = listed(tmp_path / "a.parquet", table)
    assert (names(items), why(items)) == ([None], [Status.UNSUPPORTED_FORMAT])


def test_parquet_of_uris_is_a_list_only_if_named(tmp_path):
    path, image = tmp_path / "list.parquet", tmp_path / "a.jpg"
    image.write_bytes(b"12345")
    about = {"etag": [None, "e"], "size_bytes": [None, 7], "n": [1, 2]}
    table = pa.table({"url": ["a.jpg", "s3://b/c.jpg"], **about})
    [item] = listed(path, table)
    assert (item.uri, item.refused.status) == (str(path), Status.UNSUPPORTED_FORMAT)
    assert f"list::{path}" in item.refused.detail
    items = listed(path, table, named=True)
    assert [(i.uri, i.member, i.version, i.size_bytes, i.input, i.place) for i in items] == [
        (str(image), None, f"5-{image.stat().st_mtime_ns}", 5, {"n": 1}, None),
        ("s3://b/c.jpg", None, "e", 7, {"n": 2}, None),
    ]


def test_parquet_rows_without_bytes_are_missing(tmp_path):
    table = as_hub([b"x", None])
    nulls = table.set_column(0, "image", pa.nulls(2, table["image"].type))
    items = listed(tmp_path / "a.parquet", pa.concat_tables([table, nulls]))
    assert why(items) == [None, None, Status.SOURCE_MISSING, Status.SOURCE_MISSING]
    data, missing = read(items[:2])
    assert (data, missing.status) == (b"x", Status.SOURCE_MISSING)
    assert "its path says '1.png'" in missing.detail


def test_parquet_cell_over_the_limit_is_refused_alone(tmp_path):
    items = listed(tmp_path / "a.parquet", as_hub([b"x" * 500, b"y" * 1001, b"z" * 1000]))
    small, large, fits = read(items, max_bytes=1000)
    assert (len(small), len(fits)) == (500, 1000)
    assert (large.status, large.observed) == (Status.IMAGE_TOO_LARGE, 1001)


def test_parquet_over_a_limit_is_listed_up_to_it(tmp_path):
    path = tmp_path / "a.parquet"
    *items, last = listed(path, as_hub(BYTES), limits=ContainerLimits(max_members=8))
    assert (names(items), names([last])) == ([str(row) for row in range(8)], [None])
    assert why([last]) == [Status.UNSAFE_MEMBER]
    bomb = pa.table({"image": [bytes(3_000_000)]})
    assert why(listed(path, bomb, compression="zstd", use_dictionary=False)) == [
        Status.IMAGE_TOO_LARGE
    ]


def written(table: pa.Table, **how) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file, **how)
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"", Status.EMPTY_FILE),
        (written(as_hub(BYTES))[:-20], Status.TRUNCATED_IMAGE),
        (b"PAR1", Status.TRUNCATED_IMAGE),
        (b"not a table at all", Status.CORRUPT_IMAGE),
        (b"PAR1" + bytes(100) + b"PAR1", Status.CORRUPT_IMAGE),
        (b"PARE" + bytes(100) + b"PARE", Status.ENCRYPTED_MEMBER),
    ],
)
def test_parquet_that_is_not_a_parquet_is_one_row(tmp_path, data, status):
    items = listed(tmp_path / "a.parquet", data)
    assert (names(items), why(items)) == ([None], [status])


def test_parquet_torn_row_group_costs_its_own_rows_alone(tmp_path):
    cells = [random.Random(n).randbytes(5000) for n in range(8)]
    items = listed(tmp_path / "a.parquet", as_hub(cells), row_group_size=4, compression="gzip")
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    data[300:400] = bytes(100)
    (tmp_path / "a.parquet").write_bytes(data)
    outcomes = read(items)
    assert [type(outcome) for outcome in outcomes[:4]] == [InputError] * 4
    assert outcomes[4:] == cells[4:]


def outcomes_of(path, data: bytes) -> list:
    try:
        items = listed(path, data, limits=ContainerLimits(max_members=1000))
    except ConfigError:
        return []
    assert all(isinstance(item, ListedMember) for item in items)
    return [*items, *read([item for item in items if item.place and item.refused is None])]


WRITERS = [
    {},
    {"compression": "gzip", "data_page_version": "2.0"},
    {"compression": "none", "use_dictionary": False},
]
HUB_ROWS = as_hub(BYTES, n=list(range(20)), tags=[["a"]] * 20)
LIST_ROWS = in_lists(*(BYTES[row : row + 3] for row in range(0, 20, 3)), n=list(range(7)))
VALID = [written(HUB_ROWS, row_group_size=10, **how) for how in WRITERS]
VALID += [written(LIST_ROWS, row_group_size=3, **how) for how in WRITERS[::2]]


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(VALID),
    st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=5
    ),
)
def test_parquet_with_any_damage_is_members_or_a_reason(tmp_path_factory, data, damage):
    torn = bytearray(data)
    for where, value in damage:
        torn[int(where * len(torn))] = value
    for outcome in outcomes_of(tmp_path_factory.getbasetemp() / "torn.parquet", bytes(torn)):
        assert isinstance(outcome, ListedMember | bytes | InputError)


def test_parquet_files_in_a_folder_are_one_source(tmp_path):
    for number, label in enumerate(["real", 1.5]):
        table = as_hub(BYTES[number : number + 3], label=[label] * 3)
        pq.write_table(table, tmp_path / f"{number}.parquet")
    items = list(open_source([str(tmp_path)]))
    assert read(items[:3]) + read(items[3:]) == BYTES[:3] + BYTES[1:4]
    assert {type(item.input["label"]) for item in items} == {str, float}
    assert names(open_source([f"{tmp_path}/0.parquet"], include=["1.png"])) == ["1"]
    some = open_source([str(tmp_path)], include=["0.parquet/*"], exclude=["2.*"])
    assert names(some) == ["0", "1"]


@pytest.mark.slow
def test_parquet_from_datasets_is_read(tmp_path):
    import datasets  # five seconds

    path, lists = tmp_path / "d.parquet", tmp_path / "l.parquet"
    rows = {"image": [{"bytes": png(seed=n), "path": f"p{n}.png"} for n in range(25)]}
    rows["mask"] = [None, {"bytes": png(seed=99), "path": None}] * 12 + [None]
    others = {"label": [0, 1] * 12 + [0], "tags": [["a"], []] * 12 + [[]]}
    table = datasets.Dataset.from_dict({**rows, **others})
    table = table.cast_column("image", datasets.Image()).cast_column("mask", datasets.Image())
    table = table.cast_column("label", datasets.ClassLabel(names=["real", "fake"]))
    table.to_parquet(path, batch_size=10)

    items = list(open_source([str(path)]))
    assert read(items) == [png(seed=n) for n in range(25)]
    mask = f"{path}#row=1&column=mask"
    said = {"label": 1, "label_name": "fake", "tags": [], "path": "p1.png"}
    assert items[1].input == said | {"mask_uri": mask}
    assert items[0].input["mask_uri"] is None
    assert read_referenced(mask, Fetcher()) == png(seed=99)
    assert max(item.place.group for item in items) == 2

    several = datasets.Dataset.from_dict({"images": [rows["image"][:2], [], rows["image"][2:3]]})
    several.cast_column("images", datasets.List(datasets.Image())).to_parquet(lists)
    items = list(open_source([str(lists)]))
    assert names(items) == ["0/0", "0/1", "2/0"]
    assert [item.input["path"] for item in items] == ["p0.png", "p1.png", "p2.png"]
    assert read(items) == [png(seed=n) for n in range(3)]


def png(seed: int) -> bytes:
    return encoded(photo(8, 8, seed), "PNG")


TAKEN = datetime(2024, 5, 6, 7, 8, 9, 123456, UTC)


def test_parquet_columns_of_any_type_are_kept_unless_long(tmp_path):
    said = [None, "a", "b" * 100_000]
    others = {
        "view": pa.array(said, pa.string_view()),
        "large": pa.array(said, pa.large_string()),
        "words": pa.array(said).dictionary_encode(),
        "numbers": pa.array([1, None, 1]).dictionary_encode(),
        "map": pa.array([None, [("k", 1)], [("k", 2), ("l", 3)]], pa.map_(pa.string(), pa.int64())),
        "lists": pa.array([None, [], [["a"], None]], pa.list_(pa.list_(pa.string()))),
        "fixed": pa.array([None, [1, 2], [3, 4]], pa.list_(pa.int8(), 2)),
        "struct": pa.array([None, {"a": "x", "b": [1]}, {"a": None, "b": None}]),
        "when": pa.array([None, 1, 2], pa.timestamp("ns")),
        "taken": pa.array([None, TAKEN, None], pa.timestamp("us", "UTC")),
        "decimal": pa.array([None, Decimal("1.5"), Decimal("2")]),
        "huge": pa.array([None, 2**64 - 1, 1], pa.uint64()),
        "bool": pa.array([None, True, False]),
        "nothing": pa.nulls(3),
    }
    items = listed(tmp_path / "a.parquet", pa.table({"image": [b"1", b"2", b"3"], **others}))
    assert read(items) == [b"1", b"2", b"3"]
    for name, column in others.items():
        is_long = name in ("view", "large", "words")
        if name not in ("map", "when"):
            assert [item.input[name] for item in items] == [
                *column.to_pylist()[:2],
                None if is_long else column[2].as_py(),
            ], name
        assert [f"{name}_uri" in item.input for item in items] == [False, False, is_long]
    assert items[1].input["map"] == '[["k", 1]]'
    pa.array([item.input for item in items])  # what a manifest will do with them


NO_TEXT = [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0\4\0\0\0"), pa.py_buffer(b"\xff\xfeab")]
FAR = {
    "seconds": pa.array([2**40, 0], pa.timestamp("s")),
    "durations": pa.array([2**62, 0], pa.duration("s")),
    "in a list": pa.array([[2**40], [0]], pa.list_(pa.timestamp("s"))),
    "a zone that nobody has": pa.array([0, None], pa.timestamp("us", "Nowhere/Land")),
    "no text": pa.Array.from_buffers(pa.string(), 2, NO_TEXT),
}


@pytest.mark.parametrize("what", FAR)
def test_parquet_cell_that_python_cannot_hold_is_left_out(tmp_path, what):
    items = listed(tmp_path / "a.parquet", pa.table({"image": BYTES[:2], "other": FAR[what]}))
    assert [item.refused for item in items] == [None, None]
    assert items[0].input == {"other": None}
    assert (items[1].input["other"] is None) == what.startswith("a zone")
    assert read(items) == BYTES[:2]


@pytest.mark.parametrize(
    "data",
    [
        lying(10**12),
        lying(10**12, columns={"image": BYTE_ARRAY, "n": INT64}),
        lying(-5),
        lying(5, claimed_groups=2**31 - 1),
        lying(10**12, columns={"url": BYTE_ARRAY}),
    ],
)
def test_parquet_footer_that_claims_too_much_costs_one_row(tmp_path, data):
    assert len(data) < 260
    items = listed(tmp_path / "a.parquet", data)
    assert (names(items), why(items)) == ([None], [Status.CORRUPT_IMAGE])
    with pytest.raises(ConfigError, match=r"claims|not a readable"):
        list(open_source([f"list::{tmp_path}/a.parquet"]))


def test_parquet_null_images_are_rows_up_to_a_limit(tmp_path):
    """A few null images take no bytes to speak of; a million of them is a claim."""
    kind = as_hub([b"x"])["image"].type
    items = listed(tmp_path / "a.parquet", pa.table({"image": pa.nulls(4000, kind)}))
    assert why(items) == [Status.SOURCE_MISSING] * 4000
    items = listed(tmp_path / "a.parquet", pa.table({"image": pa.nulls(1_000_000, kind)}))
    assert why(items) == [Status.CORRUPT_IMAGE]


def test_parquet_text_of_all_rows_is_listed_up_to_the_ratio(tmp_path):
    path, limits = tmp_path / "a.parquet", ContainerLimits(max_ratio=50)
    rows, text = 20_000, "x" * 60_000  # in no row longer than a row may be, and 1.2 GB in all
    said = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), [text])
    chance = random.Random(0)
    table = pa.table({"image": [chance.randbytes(20) for _ in range(rows)], "said": said})
    pq.write_table(table, path, store_schema=False)
    before = pa.default_memory_pool().max_memory()
    *items, last = listed(path, path.read_bytes(), limits=limits)
    assert pa.default_memory_pool().max_memory() - before < 100e6
    assert (last.member, last.refused.status) == (None, Status.IMAGE_TOO_LARGE)
    assert "over container_limits.max_ratio (50)" in last.refused.detail
    assert len(items) * len(text) <= max(64 << 20, 50 * path.stat().st_size)
