"""`in_pool`: an `archives.Each` for functions that read images, which runs them in a pool of processes."""

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import closing
from operator import length_hint
from typing import Any, TypeVar

from ray_app.cluster.ray_cluster import MOST_AT_ONCE, TASK_CPUS, at_once
from ray_app.streams.feed import Feed
from ray_app.streams.stage import IN_FLIGHT, Stage

T = TypeVar("T")
R = TypeVar("R")
_RETRIES = 3  # of an item whose process died


class Applier(Stage):
    """An item in, what a function makes of it out."""

    def start(self, *given: Any) -> None:
        """`given`: the function."""
        (self._function,) = given

    def work(self, message: Any) -> Any:
        """Call it."""
        return self._function(message)


def in_pool(
    function: Callable[[T], R],
    items: Iterable[T],
    /,
    *,
    size: int | None = None,
    cpus: float = TASK_CPUS,
    gpus: float = 0.0,
    labels: Mapping[str, str] | None = None,
    retries: int = _RETRIES,
    ordered: bool = True,
    stall_s: float | None = None,
    leaves: Callable[[], None] = lambda: None,
) -> Generator[R, None, None]:
    """The results, in the order of the items where `ordered`, from `size` processes; None = as many as the cluster has room for, also on
    nodes that come late. `cpus`, `gpus`, `labels`: of each process and its node; `stall_s`: ends where no result comes for so long;
    `leaves`: called when the reader leaves before the items end, so that what makes them stops waiting.

    An item whose process died is worked on again, up to `retries` times, so `function` must bear that. Raises what `items` raised, the
    TouchstoneError that the function raised, any other exception as a TouchstoneError with its traceback, ClusterError where Ray gives up.
    """
    from ray_app.streams.pool import Pool, stream

    begin = min(length_hint(items, MOST_AT_ONCE) or 1, size or at_once())
    pool = Pool(Applier, (function,), begin, begin if size else MOST_AT_ONCE, cpus, gpus, labels or {}, retries)
    feed = Feed(items, most=lambda: IN_FLIGHT * (size or at_once()), leaves=leaves)
    name = type(function).__name__
    with feed, closing(stream(feed.log.items, [pool], name=name, ordered=ordered, stall_s=stall_s)) as results:
        for result in results:
            feed.ended()
            yield result
    feed.has_more()
