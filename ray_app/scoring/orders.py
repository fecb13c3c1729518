"""Tell workers which blocks of images they may start, through one small file in the run directory.

The driver writes the file (`OrderWriter`), and a worker reads it before each block (`read_orders`).
The file contains the number of the driver's lease, its claim on the run directory. So workers
ignore the orders of an earlier command.
"""

import json
import threading
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace

from ray_app.storage import Store

ORDERS = "orders.json"


@dataclass(frozen=True)
class Orders:
    """The orders that tell workers which blocks of images they may start.

    Attributes:
        lease: The number of the command's claim on the run directory. Workers ignore orders of
            another lease.
        turn: The number of the turn, which is the list of blocks that one pipeline scores.
        released: The number of blocks of the turn that may start.
        is_stopped: Whether no further block may start.
        is_ended: Whether the turn ends after the blocks that are already listed.
        avoided: Ids of nodes that will be taken away. No block may start on them.
    """

    lease: int
    turn: int
    released: int
    is_stopped: bool = False
    is_ended: bool = False
    avoided: tuple[str, ...] = ()


def read_orders(store: Store, lease: int) -> Orders | None:
    """Read the orders of a command, which tell a worker which blocks of images it may start.

    Args:
        store: The run directory.
        lease: The number of the command's claim on the run directory.

    Returns:
        The orders; None if the command with this lease has written none.
    """
    try:
        fields = json.loads(store.read(ORDERS))
    except FileNotFoundError:
        return None
    if fields["lease"] != lease:
        return None
    return Orders(**fields | {"avoided": tuple(fields["avoided"])})


class OrderWriter:
    """Write the orders of a command to the run directory whenever they change.

    The orders tell workers which blocks of images they may start. Threads may share a writer.

    Args:
        store: The run directory.
        lease: The number of the command's claim on the run directory.
        window: The maximum number of blocks in progress. The caller may set the attribute `window`
            at any time, for example after nodes joined.
    """

    def __init__(self, store: Store, lease: int, window: int) -> None:
        self._store, self._orders, self.window = store, Orders(lease, 0, 0), window
        self._lock = threading.Lock()

    def begin_turn(self) -> int:
        """Start the next turn, and return its number.

        A turn is the list of blocks that one pipeline scores. Workers may start its first `window`
        blocks.
        """
        with self._lock:
            turn = self._orders.turn + 1
            self._write(replace(self._orders, turn=turn, released=self.window, is_ended=False))
        return turn

    def release(self, finished: int) -> None:
        """Let the workers start further blocks in place of finished ones.

        A block is released if workers may start it. Up to `window` released blocks are unfinished
        at a time. New orders are written only if they release at least a quarter of `window` more.

        Args:
            finished: The number of blocks that have finished since `begin_turn`.
        """
        with self._lock:
            released = finished + self.window
            if released - self._orders.released >= max(1, self.window // 4):
                self._write(replace(self._orders, released=released))

    def end_turn(self) -> None:
        """End the turn after the blocks that are already listed, without waiting for more.

        A turn is the list of blocks that one pipeline scores. A listing in progress adds blocks to
        it until the turn ends.
        """
        with self._lock:
            self._write(replace(self._orders, is_ended=True))

    def stop(self, is_stopped: bool, avoided: Iterable[str]) -> None:
        """Set on which nodes workers may start further blocks. Blocks in progress are not affected.

        Args:
            is_stopped: Whether no block may start on any node.
            avoided: Ids of nodes on which no block may start, because they will be taken away.
        """
        with self._lock:
            self._write(
                replace(self._orders, is_stopped=is_stopped, avoided=tuple(sorted(avoided)))
            )

    def _write(self, orders: Orders) -> None:
        if orders != self._orders:
            self._store.write(ORDERS, json.dumps(asdict(orders)).encode())
            self._orders = orders
