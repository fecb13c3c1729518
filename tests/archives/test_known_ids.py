"""Ids of earlier manifests, kept together: what they say is what each manifest says, whatever happens to the files."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_app.archives import BlockPlan, known_ids, list_members, manifests
from ray_app.archives.members import identity_digest
from ray_app.storage import Store
from tests.archives.given import Given, Items, all_members, listed

PLAN = BlockPlan(batch_slots=4, max_block_members=8)
NIGHTS = 6


class Counting(Store):
    """Counts what is asked of it."""

    def __init__(self, url):
        super().__init__(url)
        self.asked = []

    def _ask(self, doing, path, *given, **options):
        self.asked.append((doing, path))
        return super()._ask(doing, path, *given, **options)


def relist(store, count):
    return list_members(store, Given(Items([listed(number) for number in range(count)])), PLAN)


@pytest.fixture
def store(tmp_path):
    """A run of several nights, three new members each."""
    store = Store.open(str(tmp_path / "run"))
    for number in range(NIGHTS):
        relist(store, 10 + 3 * number)
    return store


def known(store, numbers=None):
    numbers = manifests(store) if numbers is None else numbers
    tables = list(known_ids.known_ids(store, numbers, identity_digest))
    assert all(table.schema.equals(tables[0].schema) for table in tables)
    return sorted(zip(*(pa.concat_tables(tables)[name].to_pylist() for name in ("image_id", "check")), strict=True))


def by_manifests(store, numbers=None):
    found = []
    for number in manifests(store) if numbers is None else numbers:
        for name in store.names(f"manifest/{number}/ids"):
            table = pq.read_table(pa.BufferReader(store.read(f"manifest/{number}/ids/{name}")))
            found += zip(table["image_id"].to_pylist(), table["check"].to_pylist(), strict=True)
    return sorted(found)


def rotten(data):
    """The same with one bit of the ids turned."""
    return data[:60] + bytes([data[60] ^ 1]) + data[61:]


def test_what_is_damaged_gone_or_of_no_manifest_costs_requests_alone(store):
    expected = by_manifests(store)
    for change in (lambda data: data[:40], lambda data: b"", lambda data: data[:-60] + b"x" * 60, rotten):
        store.write("ids/00000.parquet", change(store.read("ids/00000.parquet")))
        assert known(store) == expected
        counting = Counting(store.url)
        assert known(counting, manifests(store)) == expected
        assert len(counting.asked) == 2, "it was written anew"
    few = [0, 1, 2]
    assert known(store, few) == by_manifests(store, few), "a memory of manifests that are not there (any more)"
    store.write("ids/00003.parquet", store.read("ids/00000.parquet"))
    assert known(store) == expected


def test_a_manifest_that_is_listed_again_is_joined_by_its_own_ids(store):
    """The last manifest is taken away by hand: what is kept of it must not hide its members."""
    relist(store, 10 + 3 * NIGHTS)
    for number in (NIGHTS, NIGHTS - 1):
        store.clear(f"manifest/{number}")
    info = relist(store, 10 + 3 * NIGHTS)
    assert (info.manifest, info.members, info.earlier) == (NIGHTS - 1, 6, 10 + 3 * (NIGHTS - 2))
    ids = np.concatenate([[member.image_id for member in all_members(store, number)] for number in manifests(store)])
    assert len(np.unique(ids)) == len(ids) == 10 + 3 * NIGHTS
