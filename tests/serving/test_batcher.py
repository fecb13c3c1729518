"""Batches are cut when they can start, keep the order, and lose nothing."""

import asyncio
import threading

import pytest

from ray_app.serving.replica import Batcher


class Work:
    """Remembers its batches; while `gate` is closed, a batch does not end."""

    def __init__(self):
        self.batches, self.gate, self.started = [], threading.Event(), threading.Semaphore(0)
        self.gate.set()

    def __call__(self, items):
        self.batches.append(list(items))
        self.started.release()
        assert self.gate.wait(10)
        if "bad" in items:
            raise ValueError("bad")
        return [item * 2 for item in items]


async def begun(work):
    await asyncio.to_thread(work.started.acquire)


async def busy_batcher():
    """A batcher of fours whose work holds the item 0 until its gate is opened, and the task that
    waits for that.
    """
    work = Work()
    batcher = Batcher(work, slots=4)
    work.gate.clear()
    first = asyncio.create_task(batcher(0))
    await begun(work)
    return work, batcher, first


async def test_what_comes_while_a_batch_is_at_work_goes_together():
    work, batcher, first = await busy_batcher()
    rest = [asyncio.create_task(batcher(number)) for number in range(1, 8)]
    await asyncio.sleep(0)
    work.gate.set()
    assert await asyncio.gather(first, *rest) == [0, 2, 4, 6, 8, 10, 12, 14]
    assert work.batches == [[0], [1, 2, 3, 4], [5, 6, 7]]


async def test_a_full_batch_does_not_wait_and_a_lone_item_as_long_as_asked():
    async with asyncio.timeout(30):
        batcher = Batcher(Work(), slots=2, wait_s=60)
        assert await asyncio.gather(batcher(1), batcher(2)) == [2, 4]
        noted = []
        await Batcher(
            Work(),
            slots=4,
            wait_s=0.05,
            noted=lambda size, seconds: noted.append((size, seconds >= 0.04)),
        )(1)
        assert noted == [(1, True)]


async def test_an_error_reaches_those_of_its_batch_alone():
    batcher = Batcher(Work(), slots=2, wait_s=0.01)
    answers = await asyncio.gather(batcher("a"), batcher("bad"), return_exceptions=True)
    assert [type(answer) for answer in answers] == [ValueError, ValueError]
    assert await batcher("b") == "bb"


async def test_who_left_is_left_out():
    work, batcher, first = await busy_batcher()
    leaving, staying = asyncio.create_task(batcher(1)), asyncio.create_task(batcher(2))
    await asyncio.sleep(0)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    work.gate.set()
    assert await asyncio.gather(first, staying) == [0, 4]
    assert work.batches == [[0], [2]]
