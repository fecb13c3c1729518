"""Slow reads done ahead of whoever uses them, told in order. Knows threads and a budget of bytes; knows nothing of what is read."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

K = TypeVar("K")
R = TypeVar("R")

# Tiny files would fill a budget of bytes with hundreds of thousands of requests; this many per thread keep it busy.
_AHEAD_PER_THREAD = 16


def read_ahead(jobs: Iterable[tuple[K, int, Callable[[threading.Event], R]]], *, depth_bytes: int, threads: int) -> Iterator[tuple[K, R]]:
    """Every job's key and result in order, up to `depth_bytes` in flight or waiting; a job is (key, bytes to reserve, what to call).

    One that is larger than `depth_bytes` still passes, alone. Leaving early sets the event that every job gets.
    """
    cancelled = threading.Event()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="fetch")
    waiting: deque[tuple[K, int, Future[R]]] = deque()
    in_flight = 0
    try:
        for key, size, job in jobs:
            while waiting and (in_flight + size > depth_bytes or len(waiting) >= threads * _AHEAD_PER_THREAD):
                done, freed, result = waiting.popleft()
                yield done, result.result()
                del result  # or it would live until the next one is wanted
                in_flight -= freed
            waiting.append((key, size, pool.submit(job, cancelled)))
            in_flight += size
        while waiting:
            done, _, result = waiting.popleft()
            yield done, result.result()
            del result
    finally:
        cancelled.set()
        pool.shutdown(wait=False, cancel_futures=True)
