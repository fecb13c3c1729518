"""What crosses processes comes out as it went in, and pixels are not copied on the way out."""

import numpy as np
import pyarrow as pa
import pytest

from ray_app.archives import BlockRef
from ray_app.errors import ConfigError, Status
from ray_app.images import ImageFileFacts
from ray_app.inference import Batch, DecodeResult
from ray_app.inference.batch import PerturbedBatch
from ray_app.scoring.messages import (
    MESSAGE_SCHEMA,
    BlockReport,
    BlockState,
    BlockWork,
    FailedBlock,
    HandedBack,
    OpenBlock,
    PendingBlock,
    message_of,
    report_of,
    table_of,
)

REF = BlockRef(0, 3, 2, 100, "part-00000-00000.parquet", 1)
MEMBERS = pa.table({"image_id": pa.array([5, -7], pa.int64()), "uri": ["file:///a", "file:///b"]})


def batch(seed, *, slots=4, usable=True):
    rng = np.random.default_rng(seed)
    outcomes = (
        DecodeResult(Status.OK, None, ImageFileFacts("00", width=seed, height=2), provenance='{"c2pa": null}'),
        DecodeResult(Status.EMPTY_FILE, "no bytes", None),
    )
    if not usable:
        return Batch(outcomes, (), (None, None))
    fixed = tuple(rng.integers(0, 256, (slots, side, side, 3), dtype=np.uint8) for side in (16, 24))
    native = ((None, None),)
    return Batch(outcomes, (*fixed, *native), (b"a file", None), (PerturbedBatch(fixed[:1], ((16, 16), None)),), (5, -7))


def through_ipc(table):
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return pa.ipc.open_stream(sink.getvalue()).read_all()


@pytest.mark.parametrize("usable", [[True, True, True], [True, False, True], [False], []])
def test_an_open_block_comes_back_as_it_was(usable):
    work = BlockWork({"decode": 0.5}, {"decoded": 3, "looked_again": 0}, 7)
    block = OpenBlock(REF, MEMBERS, work, [batch(seed, usable=each) for seed, each in enumerate(usable)])
    table = through_ipc(table_of(block))
    assert table.schema == MESSAGE_SCHEMA
    assert table["state"].to_pylist() == [BlockState.OPEN]
    found = message_of(table)
    assert (found.ref, found.members, found.work) == (REF, MEMBERS, work)
    assert len(found.batches) == len(block.batches)
    for left, right in zip(found.batches, block.batches, strict=True):
        assert (left.outcomes, left.encoded, left.ids) == (right.outcomes, right.encoded, right.ids)
        assert [view.sizes for view in left.views] == [view.sizes for view in right.views]
        assert len(left.pixels) == len(right.pixels)
        for one, other in zip(left.pixels, right.pixels, strict=True):
            assert isinstance(one, np.ndarray) == isinstance(other, np.ndarray)
            np.testing.assert_array_equal(one, other)


def test_pixels_are_views_of_the_table():
    table = through_ipc(table_of(OpenBlock(REF, MEMBERS, BlockWork(), [batch(1)])))
    held = table["pixels"].chunk(0).values.buffers()[2]
    for tensor in message_of(table).batches[0].pixels[:2]:
        assert held.address <= tensor.ctypes.data < held.address + held.size


def test_work_of_stages_adds_up():
    first, second = (
        BlockWork({"decode": 0.5, "wait": 0.0}, {"decoded": 3}, 7),
        BlockWork({"decode": 0.5, "score": 1.0}, {"looked_again": 0}, 5),
    )
    assert first.joined(second) == BlockWork({"decode": 1.0, "wait": 0.0, "score": 1.0}, {"decoded": 3, "looked_again": 0}, 7)


def test_what_ends_a_block_is_a_report_its_error_or_nothing():
    report = BlockReport(REF, 1, BlockWork({"write": 0.5}), [{"uri": "file:///a", "member": None, "image_id": 5, "traceback": "…"}])
    assert report_of(table_of(report)) == report
    assert report_of(table_of(HandedBack(REF))) is None
    with pytest.raises(ConfigError, match="no such") as caught:
        report_of(table_of(FailedBlock(ConfigError("no such thing", hint="another"))))
    assert caught.value.hint == "another"
    assert message_of(table_of(PendingBlock(REF))) == PendingBlock(REF)
