"""Functions as Ray tasks: results in order, exceptions whole. What is asked of an autoscaler, and taken back."""

import json
import os
import random
import time

import pytest
from ray._private.ray_constants import AUTOSCALER_RESOURCE_REQUEST_CHANNEL
from ray.autoscaler.sdk import request_resources
from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_list, _internal_kv_put

from ray_app.archives import BlockPlan, Portions, in_turn, list_members, open_source
from ray_app.cluster import demand
from ray_app.cluster.config import ClusterConfig
from ray_app.cluster.ray_cluster import cluster, on_ray, resources
from ray_app.errors import ConfigError, TouchstoneError
from ray_app.storage import Store
from tests.archives.given import files_below

pytestmark = pytest.mark.ray


def test_results_come_in_the_order_of_the_items_from_other_processes(ray_cluster):
    def square(number):
        time.sleep(random.Random(number).random() / 50)
        return number**2, os.getpid()

    results = list(on_ray(square, iter(range(40))))
    assert [result for result, _ in results] == [number**2 for number in range(40)]
    assert os.getpid() not in {pid for _, pid in results}
    assert list(on_ray(square, [])) == []


def test_workers_yield_to_others_no_more_than_their_driver(ray_cluster):
    """Ray's own default would start them at niceness 15."""
    assert list(on_ray(os.nice, [0])) == [os.nice(0)]


def test_no_more_items_are_taken_than_tasks_may_run(ray_cluster):
    taken = []
    results = on_ray(str, (taken.append(number) or number for number in range(1000)))
    assert next(results) == "0"
    assert len(taken) < 10
    results.close()


def test_an_error_arrives_as_it_was(ray_cluster):
    def fails(number):
        if number == 3:
            raise ConfigError("column 'x' of the source holds both", hint="make its values of one type")
        return number

    results = on_ray(fails, range(100))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ConfigError, match="column 'x'") as caught:
        next(results)
    assert caught.value.hint == "make its values of one type"


def test_leaving_early_is_safe_however_often(ray_cluster):
    # `ray.cancel` here aborted the driver within fifty rounds: a cancelled task that was just ending.
    for _ in range(50):
        results = on_ray(str, range(1000))
        assert next(results) == "0"
        results.close()
    assert list(on_ray(str, range(20))) == [str(number) for number in range(20)]


def test_a_bug_arrives_with_its_traceback(ray_cluster):
    with pytest.raises(TouchstoneError, match=r"(?s)Traceback.*ZeroDivisionError"):
        list(on_ray(lambda number: 1 // number, [1, 0]))


def test_a_listing_by_tasks_writes_the_files_of_one_in_turn(ray_cluster, tmp_path):
    sources = [tmp_path / name for name in "ab"]
    for folder in sources:
        folder.mkdir()
        for number in range(150):
            (folder / f"{number:03}.jpg").write_bytes(bytes(number))
    archive = open_source([str(folder) for folder in sources])
    portions = Portions(raw_rows=40, id_rows=40, run_rows=100, few=0)
    written = []
    for each in (in_turn, on_ray):
        store = Store.open(str(tmp_path / each.__name__))
        list_members(store, archive, BlockPlan(batch_slots=4, max_block_members=32), each=each, portions=portions, clock=lambda: 0.0)
        written.append(files_below(store))
    assert written[0] == written[1]
    assert len(written[0]) > 10


def requested():
    """What Ray's autoscaler was asked for last."""
    return json.loads(_internal_kv_get(AUTOSCALER_RESOURCE_REQUEST_CHANNEL))


def test_what_a_run_asked_for_is_taken_back_by_its_end_also_after_an_error(ray_cluster):
    with cluster(ClusterConfig()):
        assert resources(ClusterConfig(cpus=64))[0] == 64
        assert requested() == [{"CPU": 1}] * 64
        resources(ClusterConfig(cpus=3, gpus=2))
        assert requested() == [{"CPU": 1}] * 3 + [{"GPU": 1}] * 2
    assert requested() == []

    def fails():
        with cluster(ClusterConfig()):
            return resources(ClusterConfig(cpus=64))[0] / len(requested()) / 0

    with pytest.raises(ZeroDivisionError):
        fails()
    assert requested() == []


def test_what_is_there_is_not_asked_for_and_what_others_asked_ray_for_stays(ray_cluster):
    request_resources(num_cpus=5)
    with cluster(ClusterConfig()):
        resources(ClusterConfig(cpus=2))
        assert requested() == [{"CPU": 1}] * 5
    assert requested() == [{"CPU": 1}] * 5
    request_resources(bundles=[])


def test_the_notes_of_drivers_that_are_gone_count_for_nothing(ray_cluster):
    _internal_kv_put(b"00ff0000", json.dumps((7, 0, {})).encode(), namespace=demand._NOTES)
    demand.ask(4, 0, {"market": "spot"})
    assert requested() == [{"CPU": 1}] * 4
    demand.withdraw()
    assert requested() == []
    assert _internal_kv_list(b"", namespace=demand._NOTES) == []


def test_an_end_without_a_head_is_no_error(ray_cluster, monkeypatch, capsys):
    demand.ask(4, 0, {})
    with monkeypatch.context() as patch:
        patch.setattr(demand, "_request", lambda: 1 // 0)
        demand.withdraw()
    assert "were not given back: ZeroDivisionError" in capsys.readouterr().err
    demand.ask(0, 0, {})
    demand.withdraw()
