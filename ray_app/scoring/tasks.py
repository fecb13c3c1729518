"""Applying a function to many items as Ray tasks: listing, compaction and checks run so, away from the driver. Knows not what they do."""

import pickle
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from ray_app.errors import ClusterError, TouchstoneError, said

T = TypeVar("T")
R = TypeVar("R")

# Small, so that tasks find room beside scoring processes however small the machine is.
TASK_CPUS = 0.5
MOST_AT_ONCE = 256


def on_ray(function: Callable[[T], R], items: Iterable[T], /) -> Iterator[R]:
    """The results in the order of the items; as many tasks at once as the cluster has room for, and results wait for their turn.

    A task that dies with its machine runs again, so `function` must bear that. When results are no longer asked for, the tasks that run
    end by themselves: `ray.cancel` of a task that is just ending aborts the driver (Ray 2.60, "Tried to complete task that was not
    pending"). Raises the TouchstoneError that a task raised, any other exception as a TouchstoneError with its traceback, ClusterError
    when Ray gives a task up.
    """
    rest = iter(items)
    first = next(rest, rest)
    if first is rest:
        return
    import ray

    task = ray.remote(num_cpus=TASK_CPUS, max_retries=3)(_called)
    shared = ray.put(function)
    running: deque[Any] = deque([task.remote(shared, first)])
    while running:
        while len(running) < _at_once() and (item := next(rest, rest)) is not rest:
            running.append(task.remote(shared, item))
        yield _result(running.popleft())


def _called(function: Callable[[Any], Any], item: Any) -> tuple[Any, bytes | None]:
    # Ray keeps only the text of an exception; as a value it arrives whole.
    try:
        return function(item), None
    except TouchstoneError as error:
        return None, pickle.dumps(error)
    except Exception:
        told = TouchstoneError(f"{type(function).__name__} failed:\n{traceback.format_exc()}", hint="this looks like a bug")
        return None, pickle.dumps(told)


def _result(task: Any) -> Any:
    import ray

    try:
        value, error = ray.get(task)
    except ray.exceptions.RayError as lost:
        raise ClusterError(f"a task was lost: {said(lost)}", hint="the same command goes on") from lost
    if error is not None:
        raise pickle.loads(error)  # noqa: S301  (made by a task of this run)
    return value


def _at_once() -> int:
    import ray

    cpus = ray.cluster_resources().get("CPU", 1.0)  # type: ignore[no-untyped-call]
    return max(2, min(MOST_AT_ONCE, int(cpus / TASK_CPUS)))
