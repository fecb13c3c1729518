"""Messages between stages: what arrives is what was sent, without a copy of its arrays."""

import numpy as np
import pyarrow as pa
import pytest

from ray_app.errors import TouchstoneError
from ray_app.streams.stage import deserialize, serialize


def address_range(table):
    buffers = [chunk.buffers()[2] for chunk in table["buffers"].chunks if len(chunk)]
    return buffers[-1].address, buffers[-1].address + buffers[-1].size


def test_arrays_of_a_message_share_the_memory_of_its_block():
    pixels = np.random.default_rng(0).integers(0, 256, (4, 30, 20, 3), np.uint8)
    table = serialize({"name": "a.jpg", "pixels": [pixels, np.arange(5)]})
    message = deserialize(table)
    first, end = address_range(table)
    assert message["name"] == "a.jpg"
    for array, expected in zip(message["pixels"], [pixels, np.arange(5)], strict=True):
        np.testing.assert_array_equal(array, expected)
        assert first <= array.ctypes.data < end
        assert not array.flags.writeable


def test_message_in_a_slice_of_a_table_is_read():
    table = pa.concat_tables([serialize("first"), serialize(np.arange(9))])
    np.testing.assert_array_equal(deserialize(table.slice(1)), np.arange(9))
    assert deserialize(table.slice(0, 1)) == "first"
    with pytest.raises(TouchstoneError, match="has 2 rows"):
        deserialize(table)
