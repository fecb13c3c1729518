from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from ray_app.detectors import Preprocessing
from ray_app.errors import Status
from ray_app.images import ImageFacts
from ray_app.inference import Batch, Outcome, pack, unpack


def batch(seed, *, slots=4, usable=True):
    rng = np.random.default_rng(seed)
    outcomes = (Outcome(Status.OK, None, ImageFacts("00", width=seed, height=2)), Outcome(Status.EMPTY_FILE, "no bytes", None))
    pixels = tuple(rng.integers(0, 256, (slots, side, side, 3), dtype=np.uint8) for side in (16, 24)) if usable else ()
    return Batch(outcomes, pixels)


FIXED = (Preprocessing(center_crop=16), Preprocessing(center_crop=24))
WITH_NATIVE = (FIXED[0], Preprocessing(), FIXED[1])


def through_ipc(table):
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return pa.ipc.open_stream(sink.getvalue()).read_all()


@pytest.mark.parametrize("usable", [[True, True, True], [True, False, True], [False], []])
def test_batches_come_back_as_they_were(usable):
    batches = [batch(seed, usable=each) for seed, each in enumerate(usable)]
    found = list(unpack(through_ipc(pack(batches, FIXED)), FIXED))
    assert [each.outcomes for each in found] == [each.outcomes for each in batches]
    for left, right in zip(found, batches, strict=True):
        assert len(left.pixels) == len(right.pixels)
        for one, other in zip(left.pixels, right.pixels, strict=True):
            np.testing.assert_array_equal(one, other)


def test_tensors_are_views_not_copies():
    table = pack([batch(1)], FIXED)
    tensor = next(unpack(table, FIXED)).pixels[0]
    assert not tensor.flags.owndata


def test_images_that_keep_their_size_travel_encoded():
    first, second = batch(1), batch(2, usable=False)
    native = replace(first, pixels=(first.pixels[0], (None, None), first.pixels[1]), encoded=(b"a file", None))
    failed = replace(second, encoded=(None, None))
    table = pack([native, failed, native], WITH_NATIVE)
    found = list(unpack(through_ipc(table), WITH_NATIVE))
    assert [each.encoded for each in found] == [(b"a file", None), (None, None), (b"a file", None)]
    assert [each.pixels[1] if each.pixels else None for each in found] == [(None, None), None, (None, None)]
    np.testing.assert_array_equal(found[2].pixels[2], first.pixels[1])
