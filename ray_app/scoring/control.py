"""Tell workers which blocks of images they may start, and count how often they started them.

`Control` has the state of one command. The driver changes it, and workers ask it before each block.
`start_control` runs it as a Ray actor on the driver's node. No file or object of the run directory
is read or written, so a block costs the same on a local disk and on S3.
"""

import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from typing_extensions import override

from ray_app.archives import BlockRef
from ray_app.cluster.ray_cluster import current_node_id, select_current_node
from ray_app.errors import ClusterError, describe_error, is_out_of_memory
from ray_app.streams.stage import OUT_OF_MEMORY_HINT

MAX_DEATHS = 3
_THREADS = 8  # The source waits in one of them.


class Start(NamedTuple):
    """The answer to a worker that is about to start a block.

    Attributes:
        is_allowed: Whether the block may start on the worker's node.
        deaths: The number of workers that died while they worked on the block.
    """

    is_allowed: bool
    deaths: int = 0


class Control:
    """The state of one command, in the process that creates it. Threads may share it.

    Args:
        window: The maximum number of blocks in progress.
    """

    def __init__(self, window: int) -> None:
        self._window = window
        self._turn = self._finished = 0
        self._is_stopped = self._is_ended = False
        self._avoided = frozenset[str]()
        self._attempts = Counter[tuple[str, tuple[int, int]]]()
        self._changed = threading.Condition()

    def begin_turn(self) -> int:
        """Start the next turn, the list of blocks that one pipeline scores; return its number."""
        with self._changed:
            self._turn, self._finished, self._is_ended = self._turn + 1, 0, False
            self._changed.notify_all()
            return self._turn

    def set_window(self, window: int) -> None:
        """Set the maximum number of blocks in progress, for example after nodes joined."""
        with self._changed:
            self._window = window
            self._changed.notify_all()

    def release(self, finished: int) -> None:
        """Let further blocks start in place of those that finished since `begin_turn`."""
        with self._changed:
            self._finished = max(self._finished, finished)  # Calls may arrive in another order.
            self._changed.notify_all()

    def end_turn(self) -> None:
        """End the turn after the blocks that are already listed, without waiting for more."""
        with self._changed:
            self._is_ended = True

    def stop(self, is_stopped: bool, avoided: Collection[str]) -> None:
        """Set that no block may start, or none on some nodes. Blocks in progress are not affected."""
        with self._changed:
            self._is_stopped, self._avoided = is_stopped, frozenset(avoided)
            self._changed.notify_all()

    def await_release(self, turn: int, position: int) -> int | None:
        """Wait until a block of a turn may start.

        The result is the number of blocks that may start, which is over `position`. It is None if
        the turn was stopped, or another one began.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: self._is_over(turn) or self._finished + self._window > position
            )
            return None if self._is_over(turn) else self._finished + self._window

    def is_listing(self, turn: int) -> bool:
        """Return whether a turn waits for files that are listed later."""
        with self._changed:
            return not (self._is_over(turn) or self._is_ended)

    def begin(
        self, stage: str, place: tuple[int, int], *, is_first: bool, node_id: str = ""
    ) -> Start:
        """Record that a worker starts a block, unless the block may not start on its node.

        Only the first stage of a block is refused. Later stages complete its work.
        """
        with self._changed:
            if is_first and (self._is_stopped or node_id in self._avoided):
                return Start(False)
            deaths = self._attempts[stage, place]
            if deaths < MAX_DEATHS:
                self._attempts[stage, place] += 1
            return Start(True, deaths)

    def end(self, stage: str, place: tuple[int, int]) -> None:
        """Record that a worker finished its attempt at a block, even if it failed."""
        with self._changed:
            self._attempts[stage, place] -= 1
            if not self._attempts[stage, place]:
                del self._attempts[stage, place]

    def _is_over(self, turn: int) -> bool:
        return self._is_stopped or self._turn != turn


class ControlActor(Control):
    """The handle of a `Control` in a Ray actor, which the driver and the workers have."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    @override
    def begin_turn(self) -> int:
        return int(self._ask("begin_turn"))

    @override
    def set_window(self, window: int) -> None:
        self._actor.set_window.remote(window)

    @override
    def release(self, finished: int) -> None:
        self._actor.release.remote(finished)

    @override
    def end_turn(self) -> None:
        self._actor.end_turn.remote()

    @override
    def stop(self, is_stopped: bool, avoided: Collection[str]) -> None:
        self._actor.stop.remote(is_stopped, avoided)

    @override
    def await_release(self, turn: int, position: int) -> int | None:
        released: int | None = self._ask("await_release", turn, position)
        return released

    @override
    def is_listing(self, turn: int) -> bool:
        return bool(self._ask("is_listing", turn))

    @override
    def begin(
        self, stage: str, place: tuple[int, int], *, is_first: bool, node_id: str = ""
    ) -> Start:
        node_id = current_node_id() if is_first else ""
        start: Start = self._ask("begin", stage, place, is_first=is_first, node_id=node_id)
        return start

    @override
    def end(self, stage: str, place: tuple[int, int]) -> None:
        self._actor.end.remote(stage, place)

    def _ask(self, method: str, *arguments: Any, **named: Any) -> Any:
        import ray
        from ray.exceptions import RayActorError

        try:
            return ray.get(getattr(self._actor, method).remote(*arguments, **named))
        except RayActorError as error:
            raise ClusterError(
                f"the control actor of this command ended: {describe_error(error)}",
                hint="run the same command again to resume",
            ) from error


@contextmanager
def start_control(window: int) -> Iterator[Control]:
    """Run a `Control` as an actor on the driver's node during the `with` block."""
    import ray

    actor: Any = (
        ray.remote(Control)
        .options(num_cpus=0, max_concurrency=_THREADS, label_selector=select_current_node())
        .remote(window)
    )
    try:
        yield ControlActor(actor)
    finally:
        ray.kill(actor)


@contextmanager
def attempt_block(
    control: Control | None,
    stage: str,
    ref: BlockRef,
    first_uri: Callable[[], str],
    *,
    is_first: bool = False,
) -> Iterator[bool]:
    """Record an attempt at a block while the `with` block runs.

    Ray restarts a worker that died, and repeats its block without a limit. So an attempt that never
    ends counts as the death of a worker.

    Args:
        control: Counts the attempts. None lets every block start, and counts nothing.
        stage: The name of the stage.
        ref: The block.
        first_uri: Returns the URI of the block's first file, for error messages.
        is_first: Whether the stage is the first one of a block.

    Yields:
        Whether the block may start. If not, no attempt is recorded.

    Raises:
        ClusterError: Before the `with` block, if `MAX_DEATHS` workers already died while they
            worked on this block of images. From the `with` block, if the attempt ran out of memory.
    """
    if control is None:
        yield True
        return
    start = control.begin(stage, ref.place, is_first=is_first)
    if not start.is_allowed:
        yield False
        return
    if start.deaths >= MAX_DEATHS:
        raise ClusterError(
            f"{_describe(ref, first_uri())}: {start.deaths} workers died while they processed this block, most likely because memory ran out",
            hint=OUT_OF_MEMORY_HINT,
        )
    try:
        yield True
    except Exception as error:
        if is_out_of_memory(error):
            raise ClusterError(
                f"{_describe(ref, first_uri())}: out of memory ({describe_error(error)})",
                hint=OUT_OF_MEMORY_HINT,
            ) from error
        raise
    finally:
        control.end(stage, ref.place)


def _describe(ref: BlockRef, first_uri: str) -> str:
    return f"block {ref.block} of manifest {ref.manifest} ({ref.members} files from {first_uri} on)"
