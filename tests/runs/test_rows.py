"""What a block's members have on disk; and what one member costs of which it cannot be made."""

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest

from ray_app.archives import read_block, read_blocks
from ray_app.errors import ClusterError, Status
from ray_app.identification.captions import Caption
from ray_app.images import ImageFileFacts
from ray_app.inference import DecodeResult, DetectorOutputs, judge
from ray_app.inference.decision import MASKS, SCORES, OutputKey
from ray_app.runs import block_tables, mask_rows, summarise
from ray_app.runs import rows as blocks_module
from tests.make.small_run import NAME, SPEC, begun, digest

NAMES = [f"{number}.jpg" for number in range(8)]
WHEN = datetime(2026, 1, 1, tzinfo=UTC)
FEATURES = {NAME: {"width": 3}}


@pytest.fixture(scope="module")
def members(tmp_path_factory):
    run = begun(tmp_path_factory.mktemp("rows"), NAMES)
    return pa.concat_tables([read_block(run.store, ref) for ref in read_blocks(run.store, 0)])


@pytest.fixture
def scored(members):
    count = len(members)
    outcomes = [
        DecodeResult(Status.OK, None, ImageFileFacts(digest(name), "JPEG", 300, 200))
        for name in NAMES
    ]
    outputs = DetectorOutputs.clean(
        scores={NAME: np.arange(count, dtype=np.float32)},
        masks={NAME: [np.full((4, 4), place, np.uint8) for place in range(count)]},
        replies={NAME: [f"reply {place}" for place in range(count)]},
        embeddings={NAME: np.ones((count, 3), np.float32)},
        captions={"words": [Caption(f"words {place}", 0.5) for place in range(count)]},
    )
    in_view = {
        OutputKey("view", NAME, SCORES): np.arange(count, dtype=np.float32),
        OutputKey("view", NAME, MASKS): [None] * count,
    }
    return judge(SPEC, outcomes, outputs.merge(DetectorOutputs(in_view)))


def tables(members, scored):
    return block_tables(members, scored, attempt=1, scored_at=WHEN, features=FEATURES)


def with_outcome(scored, place, **changes):
    outcomes = list(scored.outcomes)
    outcomes[place] = replace(outcomes[place], **changes)
    return replace(scored, outcomes=outcomes)


def with_output(scored, kind, place, value):
    [(name, column)] = scored.outputs.get(kind).items()
    spoilt = [*column[:place], value, *column[place + 1 :]]
    return replace(
        scored, outputs=scored.outputs.merge(DetectorOutputs.clean(**{kind: {name: spoilt}}))
    )


def with_fact(scored, **facts):
    return with_outcome(
        scored,
        3,
        facts=ImageFileFacts(digest(NAMES[3]), "JPEG", **{"width": 300, "height": 200} | facts),
    )


SPOILT = {
    "a width that no column holds": lambda scored: with_fact(scored, width=2**40),
    "half a character": lambda scored: with_outcome(scored, 3, provenance='{"software": "\ud800"}'),
    "a mask that is none": lambda scored: with_output(scored, "masks", 3, "no mask"),
}


NONE = ("verdict", "score", "scores", "width", "mask_area", "predicted_prompt", "provenance")


@pytest.mark.parametrize("what", SPOILT)
def test_member_without_a_possible_row_costs_itself_alone(members, scored, what):
    good = tables(members, scored)
    made = tables(members, SPOILT[what](scored))
    rows, expected = made.rows.to_pylist(), good.rows.to_pylist()
    row, image_id = rows.pop(3), expected.pop(3)["image_id"]
    assert rows == expected
    facts = ("decoder_crashed", image_id, digest(NAMES[3]))
    assert (row["status"], row["image_id"], row["sha256"]) == facts
    assert row["detail"].startswith("Touchstone's own code failed: ")
    assert all(row[name] is None for name in NONE)
    assert made.masks["image_id"].to_pylist() == [one["image_id"] for one in rows]
    assert made.rows.schema == good.rows.schema
    assert made.bad == 1
    [failure] = made.failures
    found = (failure["image_id"], failure["uri"], failure["member"])
    assert found == (image_id, row["uri"], None)
    assert failure["traceback"].startswith("Traceback")
    assert summarise([made.rows], [NAME]).own_failures == 1


@pytest.mark.parametrize(
    "error", [MemoryError(), ClusterError("no storage"), AssertionError("only of one")]
)
def test_fault_of_no_single_member_stays_an_exception(members, scored, monkeypatch, error):
    def failing(ids, scored):
        # else a fault that no member shows alone
        if len(ids) > 1 or not isinstance(error, AssertionError):
            raise error
        return mask_rows(ids, scored)

    monkeypatch.setattr(blocks_module, "mask_rows", failing)
    with pytest.raises(type(error)):
        tables(members, scored)
