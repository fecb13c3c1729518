"""Messages between the stages of a stream: none is lost if Ray Data joins blocks, and a caller's
own pipelines keep their settings.
"""

import copy
from functools import partial

import numpy as np
import pyarrow as pa
import pytest
from ray.data import DataContext

from ray_app.errors import TouchstoneError
from ray_app.streams.pool import Pool, add_pools, dataset, messages, stream
from ray_app.streams.stage import Stage, deserialize, serialize

COUNT = 12


class Doubler(Stage):
    """A number and its array in, twice of both out."""

    def work(self, message):
        number, array = message
        return 2 * number, 2 * array


def numbers():
    return ((number, np.full(1000, number)) for number in range(COUNT))


def pool():
    return Pool(Doubler, (), 1, 1, 0.5)


@pytest.mark.ray
def test_joined_blocks_keep_all_messages(ray_cluster):
    """Blocks are joined between two stages and after the last."""
    doubled = dataset(numbers, [pool()]).repartition(1)
    results = list(messages(add_pools(doubled, [pool()]).repartition(1)))
    assert all((array == number).all() for number, array in results)
    assert sorted(number for number, _ in results) == [4 * number for number in range(COUNT)]


def test_batch_of_several_rows_is_refused():
    both = pa.concat_tables([serialize("first"), serialize("second")])
    assert [deserialize(both.slice(number, 1)) for number in (0, 1)] == ["first", "second"]
    with pytest.raises(TouchstoneError, match="has 2 rows, expected 1"):
        deserialize(both)


@pytest.mark.ray
def test_stream_keeps_the_data_context_of_its_caller(ray_cluster):
    """Ray's deprecation warnings are errors in each test that starts a Ray (tests/conftest.py)."""
    context = DataContext.get_current()
    before = copy.deepcopy(vars(context))
    results = stream(partial(numbers), [pool()], name="test", ordered=True, stall_s=600)
    found = [next(results)[0]]
    for _ in ("during", "after"):
        assert DataContext.get_current() is context
        assert {name: value for name, value in vars(context).items() if value != before[name]} == {}
        found += [number for number, _ in results]
    assert found == [2 * number for number in range(COUNT)]
