"""Sizes and words that lists, inventories and containers state, on their way into a manifest."""

import json

import numpy as np

from ray_app.archives import BlockPlan, ListedMember, iter_blocks, list_members, open_source, read_block, read_blocks
from ray_app.archives.manifest import MOST_BYTES, listed_rows
from ray_app.archives.members import RefusedMember
from ray_app.errors import Status
from ray_app.storage import Store


def manifest_of(tmp_path, source):
    store = Store.open(str(tmp_path / "run"))
    list_members(store, open_source([str(source)]), BlockPlan(batch_slots=4, max_block_members=8))
    return store, [row for ref in iter_blocks(store, 0) for row in read_block(store, ref).to_pylist()]


def test_a_size_that_no_object_has_is_not_known_and_a_block_adds_up_the_others(tmp_path):
    stated = [2**63 - 1, 2**64 - 1, 2**70, MOST_BYTES + 1, 1e300, -5, True, "many", None]
    for number, sizes in enumerate([*([size] * 3 for size in stated), [MOST_BYTES] * 20]):
        listing, folder = tmp_path / f"{number}.jsonl", tmp_path / f"of {number}"
        listing.write_text("".join(json.dumps({"uri": f"s3://nowhere/{n}.jpg", "size_bytes": size}) + "\n" for n, size in enumerate(sizes)))
        store, rows = manifest_of(folder, listing)
        known = sizes if sizes[0] == MOST_BYTES else [-1] * 3
        assert [row["size_bytes"] for row in rows] == known
        assert read_blocks(store, 0).size_bytes == max(0, sum(known))


def test_a_refusal_is_one_line():
    refused = RefusedMember(Status.CORRUPT_IMAGE, "damaged:\x1b[31m\n" + "a" * 5000)
    [row] = listed_rows(np.array([1], np.int64), [ListedMember("a", None, 0, "", 7, refused=refused)]).to_pylist()
    assert row["refused"]["detail"].startswith("damaged:\\x1b[31m\\naaa")
    assert len(row["refused"]["detail"]) == 1000
