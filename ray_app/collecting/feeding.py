"""Which urls a worker has in hand: some of every host, so that a slow one holds nobody up. Knows hosts and counts; asks nobody."""

import hashlib
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable

from ray_app.collecting.wanted import Task

_MOST_IN_HAND = 1000
_PER_PLACE = 4  # urls in a worker's hands for each request that their host may have at once


def owner_of(host: str, workers: int) -> int:
    """The worker that asks a host, for the whole session: so its limit is one for all."""
    return int.from_bytes(hashlib.sha256(host.encode()).digest()[:4], "big") % workers


class Feeder:
    """The urls of one worker, host by host in turn."""

    def __init__(self, per_host: int, most: int = _MOST_IN_HAND) -> None:
        self._per_host, self._most = per_host * _PER_PLACE, most
        self._waiting: OrderedDict[str, deque[Task]] = OrderedDict()
        self._at: Counter[str] = Counter()
        self._in_hand: dict[str, Task] = {}
        self.uncommitted: dict[str, Task] = {}

    def add(self, tasks: Iterable[Task]) -> None:
        """More that waits."""
        for task in tasks:
            self._waiting.setdefault(task.host, deque()).append(task)

    def next(self) -> list[Task]:
        """What the worker is to be given now; it is in hand from here on."""
        chosen: list[Task] = []
        while len(self._in_hand) < self._most and (host := self._host_with_room()) is not None:
            task = self._waiting[host].popleft()
            if not self._waiting[host]:
                del self._waiting[host]
            else:
                self._waiting.move_to_end(host)
            self._at[host] += 1
            self._in_hand[task.id] = self.uncommitted[task.id] = task
            chosen.append(task)
        return chosen

    def ended(self, name: str) -> None:
        """One is out of hand."""
        task = self._in_hand.pop(name, None)
        if task is not None:
            self._at[task.host] -= 1

    def moved(self, name: str) -> None:
        """One is another host's now, and nothing of it is to be committed here."""
        self.ended(name)
        self.uncommitted.pop(name, None)

    def committed(self, names: Iterable[str]) -> None:
        """These outlive the worker."""
        for name in names:
            self.uncommitted.pop(name, None)

    def again(self) -> list[Task]:
        """What a worker that died had not committed, taken out of its hand."""
        lost = list(self.uncommitted.values())
        self._in_hand.clear()
        self._at.clear()
        self.uncommitted.clear()
        return lost

    @property
    def is_done(self) -> bool:
        """Whether nothing waits and nothing is in hand."""
        return not self._waiting and not self._in_hand

    def _host_with_room(self) -> str | None:
        return next((host for host in self._waiting if self._at[host] < self._per_host), None)
