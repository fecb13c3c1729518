"""Messages between the stages of a stream: none is lost if Ray Data joins blocks, and a caller's
own pipelines keep their settings.
"""

import copy
import warnings
from functools import partial

import numpy as np
import pyarrow as pa
import pytest
from ray.data import DataContext
from ray.util.annotations import RayDeprecationWarning

from ray_app.errors import TouchstoneError
from ray_app.streams.pool import Pool, dataset, messages, stream, through
from ray_app.streams.stage import Stage, packed, unpacked

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


def checked(results):
    """The numbers of results whose arrays fit them."""
    results = list(results)
    assert all((array == number).all() for number, array in results)
    return sorted(number for number, _ in results)


@pytest.mark.ray
@pytest.mark.parametrize("joined", ["between", "last"])
def test_joined_blocks_between_stages_keep_all_messages(ray_cluster, joined):
    doubled = dataset(numbers, [pool()])
    quadrupled = (
        through(doubled.repartition(1), [pool()])
        if joined == "between"
        else through(doubled, [pool()]).repartition(1)
    )
    assert checked(messages(quadrupled)) == [4 * number for number in range(COUNT)]


def test_a_batch_of_several_rows_is_refused():
    both = pa.concat_tables([packed("first"), packed("second")])
    assert [unpacked(both.slice(number, 1)) for number in (0, 1)] == ["first", "second"]
    with pytest.raises(TouchstoneError, match="has 2 rows, expected 1"):
        unpacked(both)


@pytest.mark.ray
def test_a_stream_uses_no_deprecated_option_of_ray_data(ray_cluster):
    with warnings.catch_warnings():
        warnings.simplefilter("error", RayDeprecationWarning)
        assert checked(stream(numbers, [pool()], name="test")) == [
            2 * number for number in range(COUNT)
        ]


@pytest.mark.ray
def test_a_stream_leaves_the_callers_data_context_alone(ray_cluster):
    context = DataContext.get_current()
    before = copy.deepcopy(vars(context))
    results = stream(partial(numbers), [pool()], name="test", ordered=True, stall_s=600)
    next(results)
    for _ in ("during", "after"):
        assert DataContext.get_current() is context
        assert {name: value for name, value in vars(context).items() if value != before[name]} == {}
        assert len(list(results)) in (COUNT - 1, 0)
