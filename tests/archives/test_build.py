"""Listing in sections, partitions and runs: the same members, once each, however the work is
divided and wherever it was interrupted.
"""

import itertools
from dataclasses import replace

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_app.archives import (
    BlockPlan,
    MemberLocation,
    Portions,
    dedup,
    list_members,
    open_source,
    raw_listing,
    read_block,
    read_blocks,
    read_vanished,
)
from ray_app.archives.members import first_word, identity_digest
from ray_app.errors import ConfigError
from ray_app.storage import Store
from tests.archives.containers import hazards
from tests.archives.given import (
    SWEEPS,
    Dying,
    Given,
    all_members,
    backwards,
    files_below,
    listed,
    narrow,
)

PLAN = BlockPlan(batch_slots=4, max_block_members=32, blocks_per_doubling=2)
TINY = Portions(raw_rows=16, id_rows=8, run_rows=40, few=0)
_roots = itertools.count()


def fresh_store():
    return Store.open(f"memory://listing-{next(_roots)}")


def list_tiny(store, archive, plan=PLAN, **options):
    how = {"portions": TINY, "each": backwards, "clock": lambda: 0.0}
    return list_members(store, archive, plan, **how | options)


@pytest.fixture
def nothing_carried(monkeypatch):
    """All scratch goes through files, as that of large archives does."""
    monkeypatch.setattr(raw_listing, "_CARRIED_BYTES", 0)


numbers = st.lists(st.integers(0, 150), max_size=80)
portions = st.builds(
    Portions,
    raw_rows=st.integers(1, 40),
    id_rows=st.integers(1, 40),
    run_rows=st.integers(1, 60),
    few=st.sampled_from([0, 10**6]),
)
plans = st.builds(
    BlockPlan,
    batch_slots=st.integers(1, 8),
    max_block_members=st.integers(1, 40),
    blocks_per_doubling=st.integers(1, 3),
)


@pytest.mark.parametrize("examples", SWEEPS)
def test_blocks_hold_each_member_once(examples):
    """Whatever the sections, limit, plan, portions and collisions."""
    numbered = st.lists(numbers, min_size=1, max_size=4).filter(any)
    limits, groups = st.none() | st.integers(1, 150), st.integers(1, 30)
    check = given(numbered, plans, portions, limits, st.sampled_from([7, 64]), groups)(
        assert_partition
    )
    settings(max_examples=examples, deadline=None)(check)()


def assert_partition(numbered, plan, portions, limit, bits, group):
    """Each member once, in order, in dense slots of numbered blocks."""

    def member(number):
        return replace(
            listed(number),
            uri=f"s3://b/{number // 50}.parquet",
            member=str(number),
            place=MemberLocation("x", 0, group=number // group),
        )

    store, digest = fresh_store(), identity_digest if bits == 64 else narrow(bits)
    archive = Given(*[[member(number) for number in section] for section in numbered])
    info = list_members(
        store, archive, plan, each=backwards, portions=portions, limit=limit, digest=digest
    )
    wanted = list(dict.fromkeys(list(itertools.chain(*numbered))[:limit]))
    members = all_members(store)
    assert [m.member for m in members] == [str(number) for number in wanted]
    assert len({m.image_id for m in members}) == len(wanted) == info.members
    plain = [first_word(digest(member(number), 0)) for number in wanted]
    holders = {number: m.image_id for number, m in reversed(list(zip(plain, members, strict=True)))}
    assert all(number == image_id for number, image_id in holders.items()), (
        "the first to have an id keeps it"
    )
    refs = read_blocks(store, 0)
    assert [ref.block for ref in refs] == list(range(len(refs)))
    for ref in refs:
        rows = read_block(store, ref)
        assert rows["slot"].to_pylist() == list(range(ref.members))
        assert set(rows["block"].to_pylist()) == {ref.block}
        assert 0 < ref.members <= plan.largest_block
    assert store.names("manifest/0/listing") == []


def sections(*spans):
    return Given(*[[listed(number) for number in range(*span)] for span in spans])


def test_listing_in_tasks_of_any_order_is_the_same(nothing_carried):
    archive = sections(*((start, start + 90) for start in range(0, 400, 70)))
    here, there = fresh_store(), fresh_store()
    list_tiny(here, archive, each=map)
    list_tiny(there, archive)
    assert files_below(here) == files_below(there)
    assert [m.uri for m in all_members(here)] == [listed(number).uri for number in range(440)]
    assert len(here.names("manifest/0/ids")) > 8


@pytest.mark.parametrize("later", [False, True])
def test_killed_listing_gives_the_same_manifest(later, nothing_carried):
    before, now = sections((40,)), sections((10, 50), (45, 70))
    portions = Portions(raw_rows=32, id_rows=40, run_rows=50, few=0)
    options = {"digest": narrow(10), "portions": portions, "each": map}
    start = fresh_store()
    if later:
        list_tiny(start, before, **options)

    def prepared():
        store = fresh_store()
        for path, data in files_below(start).items():
            store.write(path, data)
        return store

    whole = prepared()
    list_tiny(whole, now, **options)
    for lives in itertools.count(0, 7):
        store = prepared()
        try:
            list_tiny(Dying(store.url, lives), now, **options)
        except KeyboardInterrupt:
            assert f"manifest/{int(later)}/_complete" not in files_below(store)
            list_tiny(store, now, **options)
            assert files_below(store) == files_below(whole)
        else:
            break
    assert lives > 10


def test_colliding_members_keep_their_ids():
    """Also if the member that had the id first is deleted: its rows stay its own."""
    store = fresh_store()
    items = [listed(number) for number in range(60)]
    list_tiny(store, Given(items), digest=narrow(6))
    ids = {m.uri: m.image_id for m in all_members(store)}
    assert len(set(ids.values())) == 60
    hashed_again = [item for item in items if ids[item.uri] != first_word(narrow(6)(item, 0))]
    assert hashed_again
    assert list_tiny(store, Given(list(reversed(items))), digest=narrow(6)) is None
    info = list_tiny(store, Given([*hashed_again, listed(100)]), digest=narrow(6))
    assert (info.members, info.vanished) == (1, 60 - len(hashed_again))
    gone = {ids[item.uri] for item in items if item not in hashed_again}
    assert set(read_vanished(store, 1).tolist()) == gone


def test_linked_folders_are_counted_with_an_example(tmp_path):
    folder, elsewhere = tmp_path / "in", tmp_path / "elsewhere"
    for place in (folder / "deep", elsewhere):
        place.mkdir(parents=True)
        (place / "a.jpg").write_bytes(b"x")
    (folder / "link").symlink_to(elsewhere)
    (folder / "deep" / "up").symlink_to(folder)
    info = list_tiny(fresh_store(), open_source([str(folder)]))
    assert (info.members, info.linked_folders) == (1, 2)
    assert info.linked_example == str(folder / "deep" / "up")


def test_files_come_before_members_of_containers(tmp_path):
    for name in ("b.jpg", "z.jpg"):
        (tmp_path / name).write_bytes(b"x")
    for name in ("a.tar", "m.tar"):
        (tmp_path / name).write_bytes(hazards.tar({"1.jpg": b"1", "2.jpg": b"2"}))
    members = [(name, f"{n}.jpg") for name in ("a.tar", "m.tar") for n in (1, 2)]
    expected = [("b.jpg", None), ("z.jpg", None), *members]
    for limit in (None, 3):
        store = fresh_store()
        list_tiny(store, open_source([str(tmp_path)]), limit=limit)
        found = [(m.uri.rpartition("/")[2], m.member) for m in all_members(store)]
        assert found == expected[:limit]


def test_columns_of_all_sections_have_one_type():
    first = [replace(listed(n), input={"label": n, "note": None}) for n in range(30)]
    wider = [{"label": n + 0.5, "generator": "sd"} for n in range(30, 60)]
    second = [replace(listed(n), input=row) for n, row in enumerate(wider, 30)]
    store = fresh_store()
    list_tiny(store, Given(first, second, [listed(n) for n in range(60, 90)]))
    wanted = pa.struct([("label", pa.float64()), ("note", pa.string()), ("generator", pa.string())])
    blocks = [read_block(store, ref) for ref in read_blocks(store, 0)]
    assert {block.schema.field("input").type for block in blocks} == {wanted}
    members = {m.uri: m.input for m in all_members(store)}
    assert members[listed(3).uri] == {"label": 3.0, "note": None, "generator": None}
    assert members[listed(33).uri] == {"label": 33.5, "note": None, "generator": "sd"}
    assert set(members[listed(63).uri].values()) <= {None}


@pytest.mark.parametrize("together", [True, False])
def test_columns_of_two_types_are_refused(together):
    items = [replace(listed(1), input={"label": 1}), replace(listed(2), input={"label": "fake"})]
    archive = Given(items) if together else Given(items[:1], items[1:])
    with pytest.raises(ConfigError, match=r"column 'label' .* both int(64)? and str(ing)?"):
        list_tiny(fresh_store(), archive)


@pytest.mark.parametrize("values", [[2**80, 1], [[2**64], ["a"]], [{"a": 1}, {"a": "x"}]])
def test_columns_without_an_arrow_type_are_texts_or_refused(values):
    """Texts in an archive, refused in a list that the user names."""
    items = [replace(listed(n), input={"n": value}) for n, value in enumerate(values)]
    with pytest.raises(ConfigError, match="column 'n' of the source holds"):
        list_tiny(fresh_store(), Given(items))
    assert all(isinstance(text, str) for text in archived_texts(values, together=True))


@pytest.mark.parametrize("together", [True, False])
def test_columns_of_several_types_in_an_archive_are_texts(together):
    values = [1, "fake", None, 2.5, True, ["a", 1], {"x": 1}, "ü"]
    texts = ["1", "fake", None, "2.5", "true", '["a", 1]', '{"x": 1}', "ü"]
    assert archived_texts(values, together) == texts


def archived_texts(values, together):
    items = [
        replace(listed(n), place=MemberLocation("parquet", n), input={"label": value})
        for n, value in enumerate(values)
    ]
    store = fresh_store()
    list_tiny(store, Given(items) if together else Given(*([item] for item in items)))
    found = {m.uri: m.input["label"] for m in all_members(store)}
    return [found[item.uri] for item in items]


def test_database_of_ids_reaches_no_file_and_no_network(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with dedup._database() as db:
        assert list(tmp_path.iterdir())
        for statement in (
            "FROM read_csv('/etc/passwd')",
            "INSTALL httpfs",
            "COPY known TO '/tmp/known.csv'",
        ):
            with pytest.raises(duckdb.Error):
                db.execute(statement)
    assert not list(tmp_path.iterdir())
