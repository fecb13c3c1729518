"""`in_pool`: an `archives.Each` for functions that read images, which runs them in a pool of processes."""

from collections.abc import Callable, Generator, Iterable
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


def in_pool(function: Callable[[T], R], items: Iterable[T], /) -> Generator[R, None, None]:
    """The results in the order of the items, from as many processes as the cluster has room for, also on nodes that come late.

    An item whose process died is worked on again, so `function` must bear that. Raises what `items` raised, the TouchstoneError that the
    function raised, any other exception as a TouchstoneError with its traceback, ClusterError where Ray gives up.
    """
    from ray_app.streams.pool import Pool, stream

    pool = Pool(Applier, (function,), min(length_hint(items, MOST_AT_ONCE) or 1, at_once()), MOST_AT_ONCE, TASK_CPUS, retries=_RETRIES)
    feed = Feed(items, most=lambda: IN_FLIGHT * at_once())
    with feed, closing(stream(feed.log.items, [pool], name=type(function).__name__, ordered=True)) as results:
        for result in results:
            feed.ended()
            yield result
    feed.has_more()
