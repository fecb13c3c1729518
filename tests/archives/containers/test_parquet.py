import base64
import io
import json
import random
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
from tests.images.factory import encoded, photo
from tests.storage.faulty_server import LOOPBACK

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


def listed(
    path,
    table: pa.Table | bytes,
    columns: TableColumns | None = None,
    limits: ContainerLimits | None = None,
    *,
    named=False,
    **how,
) -> list[ListedMember]:
    pq.write_table(table, path, **how) if isinstance(table, pa.Table) else path.write_bytes(table)
    size, columns, limits = (
        path.stat().st_size,
        columns or TableColumns(),
        limits or ContainerLimits(),
    )
    return list(
        index(
            Container(str(path), "", size, "parquet", path.name, columns, limits, named), Fetcher()
        )
    )


def read(items, max_bytes=10**6) -> list:
    return list(reader(Fetcher(guard=LOOPBACK), max_bytes).read(items))


def test_a_table_as_the_hub_writes_it(tmp_path):
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


class TestLists:
    @pytest.mark.parametrize("kind", [pa.list_(FILE), pa.large_list(FILE)], ids=str)
    def test_images_of_lists_are_members(self, tmp_path, kind):
        table = in_lists([b"a", b"b"], None, [], [None, b"c"], kind=kind, label=[1, 2, 3, 4])
        items = listed(tmp_path / "a.parquet", table, row_group_size=3)
        assert [(item.member, item.occurrence) for item in items] == [
            ("0/0", 0),
            ("0/1", 0),
            ("3/0", 0),
            ("3/1", 0),
        ]
        assert [item.input for item in items[1:]] == [
            {"label": 1, "path": "0-1.png"}, {"label": 4, "path": None}, {"label": 4, "path": "3-1.png"},
        ]  # fmt: skip
        assert [item.place.group for item in items] == [0, 0, 1, 1]
        assert [item.refused and item.refused.status for item in items] == [
            None,
            None,
            Status.SOURCE_MISSING,
            None,
        ]
        assert read([item for item in items if item.refused is None]) == [b"a", b"b", b"c"]

    def test_lists_of_a_fixed_size_are_read(self, tmp_path):
        items = listed(
            tmp_path / "a.parquet", in_lists([b"a", b"b"], [b"c", b"d"], kind=pa.list_(FILE, 2))
        )
        assert ([item.member for item in items], read(items)) == (
            ["0/0", "0/1", "1/0", "1/1"],
            [b"a", b"b", b"c", b"d"],
        )

    def test_blocks_may_begin_within_a_row(self, tmp_path):
        cells = [random.Random(row).randbytes(100_000) for row in range(40)]
        how = {
            "row_group_size": 5,
            "data_page_size": 100_000,
            "write_batch_size": 1,
            "use_dictionary": False,
        }
        items = listed(
            tmp_path / "a.parquet",
            in_lists(*(cells[row : row + 4] for row in range(0, 40, 4))),
            **how,
        )
        assert read(items[6:7]) == [cells[6]]
        fetcher = Fetcher()
        blocks = reader(fetcher, 10**6)
        assert [
            data for start in range(0, 40, 3) for data in blocks.read(items[start : start + 3])
        ] == cells
        assert fetcher.bytes_read < 1.3 * sum(map(len, cells))

    def test_the_listing_reads_no_images(self, tmp_path):
        large = in_lists(*([random.Random(row).randbytes(200_000)] * 2 for row in range(20)))
        pq.write_table(large, tmp_path / "a.parquet", use_dictionary=False)
        fetcher = Fetcher()
        container = Container(
            str(tmp_path / "a.parquet"),
            "",
            -1,
            "parquet",
            "a.parquet",
            TableColumns(),
            ContainerLimits(),
        )
        assert len(list(index(container, fetcher))) == 40
        assert fetcher.bytes_read < 0.1 * 40 * 200_000

    def test_a_column_with_one_image_per_row_comes_first(self, tmp_path):
        lists = in_lists([b"a"])["images"]
        items = listed(tmp_path / "a.parquet", as_hub([b"x"], images=lists))
        assert ([item.member for item in items], read(items)) == (["0"], [b"x"])
        items = listed(
            tmp_path / "a.parquet", as_hub([b"x"], images=lists), TableColumns(image="images")
        )
        assert ([item.member for item in items], read(items)) == (["0/0"], [b"a"])

    def test_a_list_of_uris_stays_one_where_the_user_names_it(self, tmp_path):
        table = in_lists([b"a"], url=["s3://b/a.jpg"])
        assert [item.uri for item in listed(tmp_path / "a.parquet", table, named=True)] == [
            "s3://b/a.jpg"
        ]
        assert [item.member for item in listed(tmp_path / "a.parquet", table)] == ["0/0"]

    def test_images_and_their_columns_are_listed_up_to_limits(self, tmp_path):
        *items, last = listed(
            tmp_path / "a.parquet",
            in_lists([b"a"] * 3, [b"b"] * 3),
            limits=ContainerLimits(max_members=4),
        )
        assert ([item.member for item in items], last.refused.status) == (
            ["0/0", "0/1", "0/2", "1/0"],
            Status.UNSAFE_MEMBER,
        )
        [long, short] = listed(tmp_path / "a.parquet", in_lists([b"a"] * 257, [b"b"]))
        assert (long.member, long.refused.status, short.member) == (
            "0",
            Status.IMAGE_TOO_LARGE,
            "1/0",
        )
        table = in_lists(*[[b"a"] * 250] * 30, said=["x" * 60_000] * 30)
        assert (
            listed(tmp_path / "a.parquet", table, limits=ContainerLimits(max_ratio=2))[
                -1
            ].refused.status
            == Status.IMAGE_TOO_LARGE
        )

    def test_patterns_see_the_paths_of_images(self, tmp_path):
        pq.write_table(in_lists([b"a", b"b"]), tmp_path / "a.parquet")
        assert [
            item.member for item in open_source([str(tmp_path)], include=["a.parquet/0-1.png"])
        ] == ["0/1"]

    def test_lists_that_the_file_does_not_have_are_refused(self, tmp_path):
        items = listed(tmp_path / "a.parquet", in_lists([b"a", b"b"]))
        listed(tmp_path / "a.parquet", in_lists([b"a"]))
        assert [isinstance(data, InputError) for data in read(items)] == [False, True]


@pytest.mark.parametrize(
    ("column", "found"),
    [
        (pa.array([{"image": {"bytes": b"x", "path": "a"}}], pa.struct([("image", FILE)])), "it has files in 'meta.image'"),
        (pa.array([[{"scan": b"x"}]], pa.list_(pa.struct([("scan", pa.binary())]))), "it has files in 'meta[].scan'"),
        (pa.array([[b"x"]], pa.list_(pa.binary())), "it has files in 'meta[]'"),
        (pa.array([base64.b64encode(encoded(photo(8, 8, 0), "JPEG")).decode()]), "'meta' has images as base64 text"),
        (pa.array([None, f"data:image/png;base64,{base64.b64encode(encoded(photo(8, 8, 0), 'PNG')).decode()}"]), "base64 text"),
    ],
    ids=["struct", "list of structs", "list of bytes", "base64", "data url"],
)  # fmt: skip
def test_images_that_are_not_read_are_named(tmp_path, column, found):
    [item] = listed(tmp_path / "a.parquet", pa.table({"n": range(len(column)), "meta": column}))
    assert (item.member, item.refused.status) == (None, Status.UNSUPPORTED_FORMAT)
    assert found in item.refused.detail


def test_texts_that_are_not_utf8_are_not_base64(tmp_path):
    [item] = listed(tmp_path / "a.parquet", pa.table({"other": FAR["no text"]}))
    assert item.refused.detail == "a Parquet file without a column of images"


@pytest.mark.parametrize("nested", [False, True])
def test_images_in_a_dictionary_are_read(tmp_path, nested):
    cells = pa.array([b"a", b"b", b"a"]).dictionary_encode()
    column = (
        pa.StructArray.from_arrays([cells, pa.array(["x", "y", "z"])], ["bytes", "path"])
        if nested
        else cells
    )
    assert read(listed(tmp_path / "a.parquet", pa.table({"image": column}))) == [b"a", b"b", b"a"]
    items = listed(
        tmp_path / "a.parquet", pa.table({"image": column, "pixels": [b"1", b"2", b"3"]})
    )
    assert read(items) == [b"1", b"2", b"3"], "as before dictionaries were read"


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()])
def test_a_plain_column_of_bytes(tmp_path, kind):
    items = listed(tmp_path / "a.parquet", pa.table({"jpg": pa.array(BYTES, kind), "n": range(20)}))
    assert read(items) == BYTES
    assert items[3].input == {"n": 3}
    items = listed(tmp_path / "a.parquet", pa.table({"image": pa.array(BYTES)}), row_group_size=7)
    assert ([item.input for item in items], read(items)) == ([{}] * 20, BYTES)


def test_the_listing_reads_no_images_and_blocks_in_turn_each_page_once(tmp_path):
    large = as_hub([random.Random(row).randbytes(300_000) for row in range(30)])
    pq.write_table(large, tmp_path / "large.parquet", row_group_size=15, use_dictionary=False)
    fetcher = Fetcher()
    container = Container(
        str(tmp_path / "large.parquet"),
        "",
        -1,
        "parquet",
        "large.parquet",
        TableColumns(),
        ContainerLimits(),
    )
    assert len(list(index(container, fetcher))) == 30
    assert fetcher.bytes_read < 0.1 * 30 * 300_000
    cells = [random.Random(row).randbytes(100_000) for row in range(40)]
    how = {
        "row_group_size": 20,
        "data_page_size": 100_000,
        "write_batch_size": 1,
        "use_dictionary": False,
    }
    items, fetcher = listed(tmp_path / "a.parquet", as_hub(cells), **how), Fetcher()
    blocks = reader(fetcher, 10**6)
    assert [
        data for start in range(0, 40, 5) for data in blocks.read(items[start : start + 5])
    ] == cells
    assert fetcher.bytes_read < 1.3 * sum(map(len, cells))


def test_class_labels_come_with_their_text(tmp_path):
    said = features(
        image={"_type": "Image"}, label={"_type": "ClassLabel", "names": ["real", "fake"]}
    )
    table = as_hub(BYTES[:4], label=[1, 0, None, -1]).replace_schema_metadata(said)
    assert [
        (i.input["label"], i.input["label_name"]) for i in listed(tmp_path / "a.parquet", table)
    ] == [*[(1, "fake"), (0, "real"), (None, None), (-1, None)]]


def test_other_images_are_referred_to_and_read_back(tmp_path):
    mask = as_hub([b"mask", None, b"third"])["image"].to_pylist()
    table = as_hub(
        BYTES[:3], mask=pa.array([mask[0], None, mask[2]]), depth=pa.array([b"d0", b"d1", b"d2"])
    )
    items = listed(tmp_path / "a #1.parquet", table, row_group_size=2)
    assert [item.input["mask_uri"] is None for item in items] == [False, True, False]
    assert read_referenced(items[2].input["mask_uri"], Fetcher()) == b"third"
    assert read_referenced(items[2].input["depth_uri"], Fetcher()) == b"d2"
    with pytest.raises(ConfigError, match="not a reference"):
        read_referenced("a.png", Fetcher())
    with pytest.raises(InputError, match="no row 9"):
        read_referenced(f"{items[0].uri}#row=9&column=depth", Fetcher())


@pytest.mark.parametrize(
    ("names", "said", "columns", "chosen"),
    [
        (["a", "b"], {}, TableColumns(image="b"), "b"),
        (["a", "b"], {"b": {"_type": "Image"}}, TableColumns(), "b"),
        (
            ["mask", "image"],
            {"mask": {"_type": "Image"}, "image": {"_type": "Image"}},
            TableColumns(),
            "image",
        ),
        (["thumb", "JPG"], {}, TableColumns(), "JPG"),
        (["whatever"], {}, TableColumns(), "whatever"),
    ],
)
def test_which_column_holds_the_images(tmp_path, names, said, columns, chosen):
    table = pa.table({name: pa.array([name.encode()]) for name in names}).replace_schema_metadata(
        features(**said)
    )
    [item] = listed(tmp_path / "a.parquet", table, columns)
    assert read([item]) == [chosen.encode()]


def test_what_only_the_user_can_say_and_what_is_no_table_of_images(tmp_path):
    two = pa.table({"a": [b"1"], "b": [b"2"]})
    with pytest.raises(
        ConfigError, match=r"a.parquet: the images may be in any of the columns a, b"
    ) as caught:
        listed(tmp_path / "a.parquet", two, named=True)
    assert "--set columns.image=NAME" in caught.value.hint
    with pytest.raises(ConfigError, match="no column 'c'"):
        listed(tmp_path / "a.parquet", two, TableColumns(image="c"), named=True)
    either = pa.table({"vector": [b"1"], "url": ["https://example.org/a.jpg"]})
    with pytest.raises(ConfigError, match="the bytes in 'vector' or the files that 'url' names"):
        listed(tmp_path / "a.parquet", either, named=True)
    for table in (two, either, pa.table({"n": [1]})):  # one of many in a folder
        [item] = listed(tmp_path / "a.parquet", table)
        assert (item.member, item.refused.status) == (None, Status.UNSUPPORTED_FORMAT)


def test_a_table_of_uris_is_a_list_where_the_user_names_it(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"12345")
    table = pa.table(
        {
            "url": ["a.jpg", "s3://b/c.jpg"],
            "etag": [None, "e"],
            "size_bytes": [None, 7],
            "n": [1, 2],
        }
    )
    [item] = listed(tmp_path / "list.parquet", table)
    assert (item.uri, item.refused.status) == (
        str(tmp_path / "list.parquet"),
        Status.UNSUPPORTED_FORMAT,
    )
    assert (
        f"its column 'url' names, give it as a source of its own: list::{tmp_path}/list.parquet"
        in item.refused.detail
    )
    items = listed(tmp_path / "list.parquet", table, named=True)
    assert [(i.uri, i.member, i.version, i.size_bytes, i.input, i.place) for i in items] == [
        (
            str(tmp_path / "a.jpg"),
            None,
            f"5-{(tmp_path / 'a.jpg').stat().st_mtime_ns}",
            5,
            {"n": 1},
            None,
        ),
        ("s3://b/c.jpg", None, "e", 7, {"n": 2}, None),
    ]


def test_rows_without_bytes(tmp_path):
    table = as_hub([b"x", None])
    table = pa.concat_tables(
        [table, table.set_column(0, "image", pa.nulls(2, table["image"].type))]
    )
    items = listed(tmp_path / "a.parquet", table)
    assert [item.refused and item.refused.status for item in items] == [
        None,
        None,
        Status.SOURCE_MISSING,
        Status.SOURCE_MISSING,
    ]
    data, missing = read(items[:2])
    assert (data, missing.status, missing.detail) == (
        b"x",
        Status.SOURCE_MISSING,
        "the row has no bytes; its path says '1.png'",
    )


def test_a_cell_over_the_limit_is_refused_and_the_next_is_read(tmp_path):
    items = listed(tmp_path / "a.parquet", as_hub([b"x" * 500, b"y" * 1001, b"z" * 1000]))
    small, large, fits = read(items, max_bytes=1000)
    assert (len(small), large.status, large.observed, len(fits)) == (
        500,
        Status.IMAGE_TOO_LARGE,
        1001,
        1000,
    )


def test_more_rows_than_a_container_may_have_and_more_bytes_than_it_may_unpack_to(tmp_path):
    *items, last = listed(
        tmp_path / "a.parquet", as_hub(BYTES), limits=ContainerLimits(max_members=8)
    )
    assert ([item.member for item in items], last.member, last.refused.status) == (
        [str(r) for r in range(8)],
        None,
        Status.UNSAFE_MEMBER,
    )
    [item] = listed(
        tmp_path / "a.parquet",
        pa.table({"image": [bytes(3_000_000)]}),
        compression="zstd",
        use_dictionary=False,
    )
    assert item.refused.status == Status.IMAGE_TOO_LARGE


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
def test_what_is_no_parquet(tmp_path, data, status):
    [item] = listed(tmp_path / "a.parquet", data)
    assert (item.uri, item.member, item.refused.status) == (
        str(tmp_path / "a.parquet"),
        None,
        status,
    )


def test_a_torn_row_group_costs_its_own_rows_alone(tmp_path):
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


VALID = [
    written(as_hub(BYTES, n=list(range(20)), tags=[["a"]] * 20), row_group_size=10, **how)
    for how in (
        {},
        {"compression": "gzip", "data_page_version": "2.0"},
        {"compression": "none", "use_dictionary": False},
    )
]
VALID += [
    written(
        in_lists(*(BYTES[row : row + 3] for row in range(0, 20, 3)), n=list(range(7))),
        row_group_size=3,
        **how,
    )
    for how in ({}, {"compression": "none", "use_dictionary": False})
]


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(VALID),
    st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=5
    ),
)
def test_any_damage_is_members_or_a_reason(tmp_path_factory, data, damage):
    torn = bytearray(data)
    for where, value in damage:
        torn[int(where * len(torn))] = value
    for outcome in outcomes_of(tmp_path_factory.getbasetemp() / "torn.parquet", bytes(torn)):
        assert isinstance(outcome, ListedMember | bytes | InputError)


def test_several_files_in_one_run_and_patterns_that_see_the_rows_own_paths(tmp_path):
    for number in range(2):
        pq.write_table(
            as_hub(BYTES[number : number + 3], label=["real", 1.5][number : number + 1] * 3),
            tmp_path / f"{number}.parquet",
        )
    items = list(open_source([str(tmp_path)]))
    assert [
        data
        for name in "01"
        for data in read([i for i in items if i.uri.endswith(f"{name}.parquet")])
    ] == BYTES[:3] + BYTES[1:4]
    assert {type(item.input["label"]) for item in items} == {str, float}
    assert [item.member for item in open_source([f"{tmp_path}/0.parquet"], include=["1.png"])] == [
        "1"
    ]
    assert [
        item.member
        for item in open_source([str(tmp_path)], include=["0.parquet/*"], exclude=["2.*"])
    ] == ["0", "1"]


@pytest.mark.slow
def test_what_datasets_itself_writes(tmp_path):
    import datasets  # five seconds

    rows = {"image": [{"bytes": png(seed=n), "path": f"p{n}.png"} for n in range(25)]}
    rows["mask"] = [None, {"bytes": png(seed=99), "path": None}] * 12 + [None]
    table = datasets.Dataset.from_dict(
        {**rows, "label": [0, 1] * 12 + [0], "tags": [["a"], []] * 12 + [[]]}
    )
    table = table.cast_column("image", datasets.Image()).cast_column("mask", datasets.Image())
    table.cast_column("label", datasets.ClassLabel(names=["real", "fake"])).to_parquet(
        tmp_path / "d.parquet", batch_size=10
    )

    items = list(open_source([str(tmp_path / "d.parquet")]))
    assert read(items) == [png(seed=n) for n in range(25)]
    mask = f"{tmp_path / 'd.parquet'}#row=1&column=mask"
    assert items[1].input == {
        "label": 1,
        "label_name": "fake",
        "tags": [],
        "path": "p1.png",
        "mask_uri": mask,
    }
    assert items[0].input["mask_uri"] is None
    assert read_referenced(mask, Fetcher()) == png(seed=99)
    assert max(item.place.group for item in items) == 2

    several = datasets.Dataset.from_dict({"images": [rows["image"][:2], [], rows["image"][2:3]]})
    several.cast_column("images", datasets.List(datasets.Image())).to_parquet(
        tmp_path / "l.parquet"
    )
    items = list(open_source([str(tmp_path / "l.parquet")]))
    assert [(item.member, item.input["path"]) for item in items] == [
        ("0/0", "p0.png"),
        ("0/1", "p1.png"),
        ("2/0", "p2.png"),
    ]
    assert read(items) == [png(seed=n) for n in range(3)]


def png(seed: int) -> bytes:
    return encoded(photo(8, 8, seed), "PNG")


def test_other_columns_of_any_type_are_kept_but_what_is_long_is_left_out(tmp_path):
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
        "taken": pa.array(
            [None, datetime(2024, 5, 6, 7, 8, 9, 123456, UTC), None], pa.timestamp("us", "UTC")
        ),
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


FAR = {
    "seconds": pa.array([2**40, 0], pa.timestamp("s")),
    "durations": pa.array([2**62, 0], pa.duration("s")),
    "in a list": pa.array([[2**40], [0]], pa.list_(pa.timestamp("s"))),
    "a zone that nobody has": pa.array([0, None], pa.timestamp("us", "Nowhere/Land")),
    "no text": pa.Array.from_buffers(
        pa.string(),
        2,
        [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0\4\0\0\0"), pa.py_buffer(b"\xff\xfeab")],
    ),
}


@pytest.mark.parametrize("what", FAR)
def test_a_cell_that_python_has_no_value_for_costs_neither_table_nor_row(tmp_path, what):
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
def test_a_footer_that_claims_what_the_file_cannot_hold_costs_one_row(tmp_path, data):
    assert len(data) < 260
    [item] = listed(tmp_path / "a.parquet", data)
    assert (item.uri, item.member, item.refused.status) == (
        str(tmp_path / "a.parquet"),
        None,
        Status.CORRUPT_IMAGE,
    )
    with pytest.raises(ConfigError, match=r"claims|not a readable"):
        list(open_source([f"list::{tmp_path}/a.parquet"]))


def test_rows_of_nothing_are_rows_as_far_as_they_can_be_images(tmp_path):
    """A few null images take no bytes to speak of; a million of them is a claim."""
    for rows, refused in ((4000, Status.SOURCE_MISSING), (1_000_000, Status.CORRUPT_IMAGE)):
        items = listed(
            tmp_path / "a.parquet",
            pa.table({"image": pa.nulls(rows, as_hub([b"x"])["image"].type)}),
        )
        assert {item.refused.status for item in items} == {refused}
        assert len(items) == (rows if refused is Status.SOURCE_MISSING else 1)


def test_a_text_that_all_rows_share_is_listed_as_far_as_its_file_may_unpack(tmp_path):
    rows, text = 20_000, "x" * 60_000  # in no row longer than a row may be, and 1.2 GB in all
    said = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), [text])
    chance = random.Random(0)
    table = pa.table({"image": [chance.randbytes(20) for _ in range(rows)], "said": said})
    pq.write_table(table, tmp_path / "a.parquet", store_schema=False)
    before = pa.default_memory_pool().max_memory()
    *items, last = listed(
        tmp_path / "a.parquet",
        (tmp_path / "a.parquet").read_bytes(),
        limits=ContainerLimits(max_ratio=50),
    )
    assert pa.default_memory_pool().max_memory() - before < 100e6
    assert (last.member, last.refused.status) == (None, Status.IMAGE_TOO_LARGE)
    assert "over max_ratio (50); further ones are not read" in last.refused.detail
    assert len(items) * len(text) <= max(64 << 20, 50 * (tmp_path / "a.parquet").stat().st_size)
