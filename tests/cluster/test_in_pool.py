"""Functions in a pool of processes: results in order, exceptions whole, a process that dies, one
that stands still.
"""

import os
import random
import signal
import time
from functools import partial
from itertools import count

import pytest

from ray_app.errors import ClusterError, ConfigError, TouchstoneError
from ray_app.streams.worker_pool import map_in_pool
from tests.make.waiting import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def _square(number):
    time.sleep(random.Random(number).random() / 20)
    return number**2, os.getpid()


def _reciprocal(number):
    if number == 3:
        raise ConfigError("column 'x' of the source holds both", hint="make its values of one type")
    return 1 // number


def _dies(folder, number, *, always):
    """As the system's killer of processes ends one, at the fifth item."""
    if number == 5 and (always or not (folder / "died").exists()):
        (folder / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def _is_gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_pool_returns_results_in_order_and_ends_when_closed(ray_cluster):
    unending = map_in_pool(_square, count())
    results = [next(unending) for _ in range(60)]
    unending.close()
    assert [result for result, _ in results] == [number**2 for number in range(60)]
    pids = {pid for _, pid in results}
    assert len(pids - {os.getpid()}) > 1
    wait_until(lambda: all(map(_is_gone, pids)), 30)


def test_pool_raises_errors_of_function_and_items_unchanged(ray_cluster):
    results = map_in_pool(_reciprocal, range(1, 100))
    assert [next(results) for _ in range(2)] == [1, 0]
    with pytest.raises(ConfigError, match="column 'x'") as caught:
        next(results)
    assert caught.value.hint == "make its values of one type"

    def items():
        yield 1
        raise ConfigError("the listing ends here")

    results = map_in_pool(_reciprocal, items())
    assert next(results) == 1
    with pytest.raises(ConfigError, match="the listing ends here"):
        next(results)


def test_pool_repeats_items_of_dead_processes_a_few_times(ray_cluster, tmp_path):
    assert list(map_in_pool(partial(_dies, tmp_path, always=False), range(20))) == list(range(20))
    with pytest.raises(ClusterError, match="item 5 was given up: 4 workers died") as caught:
        list(map_in_pool(partial(_dies, tmp_path, always=True), range(20)))
    assert "cluster.workers" in caught.value.hint
    (tmp_path / "died").unlink()
    with pytest.raises(ClusterError, match="item 5 was given up: 1 worker died"):
        list(map_in_pool(partial(_dies, tmp_path, always=False), range(20), retries=0))
    with pytest.raises(TouchstoneError, match=r"(?s)Traceback.*ZeroDivisionError"):
        list(map_in_pool(_reciprocal, [1, 0]))
    assert list(map_in_pool(_reciprocal, [])) == []


def test_pool_without_a_node_fails_after_stall_s(ray_cluster):
    nowhere = map_in_pool(_square, range(3), labels={"workload": "nowhere"}, stall_s=3.0)
    with pytest.raises(ClusterError, match="the workers finished nothing in 3 s") as caught:
        list(nowhere)
    assert "cluster.stall_timeout_s" in caught.value.hint
