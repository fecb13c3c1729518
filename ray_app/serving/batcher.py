"""`Batcher` cuts a batch when it can start: whatever came meanwhile is in it.

Ray Serve's own `@serve.batch` cuts it when its wait is over; clients that wait for their answers then come back one by one (measured: 117
batches for 118 images of 16 clients).
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")
Done = TypeVar("Done")


@dataclass(frozen=True)
class _Waiting(Generic[Item, Done]):
    item: Item
    since: float
    answer: "asyncio.Future[Done]"


class Batcher(Generic[Item, Done]):
    """Hands items to `work` in order of arrival, at most `slots` at once, one batch after another, in a thread of its own.

    A batch that is not full waits for company `wait_s` after its first item came, and not at all if that came while another was at work
    for longer. `noted(size, seconds)` is called for every batch and how long its first item waited.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Item]], Sequence[Done]],
        *,
        slots: int = 1,
        wait_s: float = 0.0,
        noted: Callable[[int, float], None] = lambda size, seconds: None,
    ) -> None:
        self.slots, self.wait_s = slots, wait_s
        self._work, self._noted = work, noted
        self._waiting: deque[_Waiting[Item, Done]] = deque()
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batch")
        self._running: asyncio.Task[None] | None = None

    async def __call__(self, item: Item) -> Done:
        """What `work` makes of the item; raises what it raised. An item whose caller left before its batch began is left out."""
        answer: asyncio.Future[Done] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(item, time.monotonic(), answer))
        if self._running is None or self._running.done():
            self._arrived = asyncio.Event()  # of this event loop
            self._running = asyncio.create_task(self._run())
        self._arrived.set()
        return await answer

    async def _run(self) -> None:
        while self._waiting:
            await self._gather_company()
            batch = [self._waiting.popleft() for _ in range(min(self.slots, len(self._waiting)))]
            await self._work_on([one for one in batch if not one.answer.done()])

    async def _gather_company(self) -> None:
        until = self._waiting[0].since + self.wait_s
        while len(self._waiting) < self.slots and (left := until - time.monotonic()) > 0:
            self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), left)
            except TimeoutError:
                return

    async def _work_on(self, batch: Sequence[_Waiting[Item, Done]]) -> None:
        if not batch:
            return
        try:
            self._noted(len(batch), time.monotonic() - batch[0].since)
            answers = await asyncio.get_running_loop().run_in_executor(self._thread, self._work, [one.item for one in batch])
            for one, answer in zip(batch, answers, strict=True):
                if not one.answer.done():
                    one.answer.set_result(answer)
        except Exception as error:  # nobody of this batch may wait for ever, and the next one goes on
            for one in batch:
                if not one.answer.done():
                    one.answer.set_exception(error)
