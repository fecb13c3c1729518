"""Which blocks a turn gives the pipeline, and when; no Ray."""

import threading

import pytest

from ray_app.archives import finish_manifest, list_portions, open_source, read_blocks
from ray_app.scoring.orders import OrderWriter, read_orders
from ray_app.scoring.turns import Turn
from tests.runs.small_run import PLAN, new_run, relist, write_files

LEASE = 7


@pytest.fixture
def run(tmp_path):
    """A run of one listing."""
    run = new_run(tmp_path / "run")
    write_files(tmp_path / "archive", [f"{number:02}.jpg" for number in range(30)])
    relist(run, tmp_path / "archive")
    return run


def places(blocks):
    return [ref.place for ref in blocks]


def test_a_turn_gives_the_blocks_that_are_released(run):
    blocks, orders = read_blocks(run.store, 0), OrderWriter(run.store, LEASE, 2)
    turn = Turn(run, LEASE, orders.begin_turn(), blocks)
    given = []
    reading = threading.Thread(target=lambda: given.extend(map(_placed, turn())))
    reading.start()
    released = iter(turn())
    assert [next(released).place for _ in range(2)] == places(blocks[:2])
    orders.release(len(blocks))
    reading.join(30)
    assert given == places(blocks)


def _placed(ref):
    return ref.place


def test_repeated_read_gives_the_same_blocks_of_later_portions(run, tmp_path):
    first, orders = read_blocks(run.store, 0), OrderWriter(run.store, LEASE, 1000)
    turn = Turn(run, LEASE, orders.begin_turn(), first[2:], following=(1, 0))
    given = []
    reading = threading.Thread(target=lambda: given.extend(map(_placed, turn())))
    reading.start()
    for name in ("more", "last"):
        write_files(tmp_path / "archive", [f"{name}-{number}.jpg" for number in range(12)])
        list(list_portions(run.store, open_source([str(tmp_path / "archive")]), PLAN))
    finish_manifest(run.store)
    expected = places(first[2:]) + places(read_blocks(run.store, 1))
    orders.end_turn()
    reading.join(30)
    assert given == expected
    assert places(turn()) == expected


def test_a_turn_ends_with_a_stop_and_without_orders(run):
    blocks, orders = read_blocks(run.store, 0), OrderWriter(run.store, LEASE, 2)
    turn = Turn(run, LEASE, orders.begin_turn(), blocks, following=(1, 0))
    orders.stop(True, ())
    assert places(turn()) == []
    other = Turn(run, LEASE + 1, 1, blocks)
    assert read_orders(run.store, LEASE + 1) is None
    assert places(other()) == [], "orders of another command"
