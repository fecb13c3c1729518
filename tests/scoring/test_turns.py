"""Which blocks a turn gives the pipeline, and when; no Ray."""

import threading
from contextlib import contextmanager

import pytest

from ray_app.archives import finish_manifest, list_portions, open_source, read_blocks
from ray_app.scoring.control import Control
from ray_app.scoring.turns import Turn
from tests.make.small_run import PLAN, new_run, relist, write_files


@pytest.fixture
def run(tmp_path):
    """A run of one listing."""
    run = new_run(tmp_path / "run")
    write_files(tmp_path / "archive", [f"{number:02}.jpg" for number in range(30)])
    relist(run, tmp_path / "archive")
    return run


def places(blocks):
    return [ref.place for ref in blocks]


@contextmanager
def reading(turn):
    """The places that another thread gets of a turn, complete once the block ends."""
    given = []
    thread = threading.Thread(target=lambda: given.extend(ref.place for ref in turn()))
    thread.start()
    yield given
    thread.join(30)


def test_turn_gives_the_blocks_that_are_released(run):
    blocks, control = read_blocks(run.store, 0), Control(2)
    turn = Turn(run, control, control.begin_turn(), blocks)
    with reading(turn) as given:
        released = iter(turn())
        assert [next(released).place for _ in range(2)] == places(blocks[:2])
        control.release(len(blocks))
    assert given == places(blocks)


def test_turn_read_again_gives_the_same_later_blocks(run, tmp_path):
    first, control = read_blocks(run.store, 0), Control(1000)
    turn = Turn(run, control, control.begin_turn(), first[2:], following=(1, 0))
    with reading(turn) as given:
        for name in ("more", "last"):
            write_files(tmp_path / "archive", [f"{name}-{number}.jpg" for number in range(12)])
            list(list_portions(run.store, open_source([str(tmp_path / "archive")]), PLAN))
        finish_manifest(run.store)
        expected = places(first[2:]) + places(read_blocks(run.store, 1))
        control.end_turn()
    assert given == expected
    assert places(turn()) == expected


def test_turn_ends_with_a_stop_or_the_next_turn(run):
    blocks, control = read_blocks(run.store, 0), Control(2)
    turn = Turn(run, control, control.begin_turn(), blocks, following=(1, 0))
    with reading(turn) as given:
        control.stop(True, ())
    assert given == places(blocks[: len(given)])
    assert len(given) <= 2
    control.stop(False, ())
    control.begin_turn()
    assert places(turn()) == []
