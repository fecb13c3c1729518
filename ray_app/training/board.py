"""The one place where workers tell the driver how far they are and hear whether to stop: a small actor on the driver's node.

A worker tells without waiting; the driver asks twice a second. Nothing that a result depends on goes through here.
"""

import pickle
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.actor import ActorHandle

from ray_app.errors import TouchstoneError
from ray_app.scoring.cluster import own_node

_NODE = "ray.io/node-id"  # the label that every node has


@dataclass(frozen=True)
class Told:
    """What the driver reads: the last figures of rank 0, how many steps this session has made, how often judging said that it goes on,
    and what ended it all, if anything did.
    """

    figures: dict[str, Any]
    steps: int = 0
    beats: int = 0
    failure: bytes | None = None

    def error(self) -> TouchstoneError | None:
        """What a worker said no repetition would help."""
        return None if self.failure is None else pickle.loads(self.failure)  # noqa: S301  (made by a worker of this session)


class Board:
    """The actor itself; `tell` answers whether training is asked to save and stop."""

    def __init__(self) -> None:
        self._told = Told({})
        self._stop = False
        self._controller: Any = None

    def tell(self, figures: dict[str, Any], steps: int) -> bool:
        """Rank 0's figures, and how many steps it made since it last told."""
        self._told = replace(self._told, figures=figures, steps=self._told.steps + steps)
        return self._stop

    def fail(self, failure: bytes, *, only_before_steps: bool = False) -> None:
        """A worker met what would happen again; with `only_before_steps`, that is so only while no step of this session was made."""
        if self._told.failure is None and not (only_before_steps and self._told.steps):
            self._told = replace(self._told, failure=failure)

    def beat(self) -> None:
        """A checkpoint is still being judged."""
        self._told = replace(self._told, beats=self._told.beats + 1)

    def introduce(self, controller: Any) -> None:
        """The controller of Ray Train says who it is."""
        self._controller = controller

    def controller(self) -> Any:
        """Ray Train's controller; None until it has begun."""
        return self._controller

    def stop(self) -> None:
        """Ask the workers to save and stop."""
        self._stop = True

    def read(self) -> Told:
        """All that was told."""
        return self._told


def put_up() -> ActorHandle[Board]:
    """A new board on this node; it costs no CPU of Ray's books."""
    board: ActorHandle[Board] = ray.remote(num_cpus=0, label_selector={_NODE: own_node()})(Board).remote()  # type: ignore[assignment]
    return board
