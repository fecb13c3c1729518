"""Archives whose members a test makes up, and the plain account of what a listing of them must
give.
"""

import hashlib
import pickle
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pytest

from ray_app.archives import Archive, ListedMember, read_block, read_blocks, rows_to_members
from ray_app.archives.members import identity_digest
from ray_app.errors import SourceError, Status
from ray_app.storage import Fetcher, Store

# How many examples of hypothesis a default run takes, and how many all of `make test-memory`.
SWEEPS = [8, pytest.param(60, marks=pytest.mark.slow)]


@dataclass(frozen=True)
class Items:
    """A section with these members; it is an error to ask for more."""

    items: Iterable[ListedMember]

    def list_entries(self, fetcher):
        for item in self.items:
            yield item.uri, item


class Given(Archive):
    """An archive of given sections."""

    def __init__(self, *sections, **settings):
        super().__init__(["given"], **settings)
        self._given = [
            section if hasattr(section, "list_entries") else Items(tuple(section))
            for section in sections
        ]

    def numbered_sections(self):
        for ordinal, section in enumerate(self._given):
            yield 0, ordinal, section


def listed(number: int, version: int = 0) -> ListedMember:
    return ListedMember(f"s3://bucket/{number:07}.jpg", None, 0, f"v{version}", number)


def narrow(bits: int) -> Callable[[ListedMember, int], bytes]:
    """A digest whose ids collide, while its second part still tells members apart."""
    return _Narrow(bits)


@dataclass(frozen=True)
class _Narrow:
    bits: int

    def __call__(self, item, counter):
        first = int.from_bytes(identity_digest(item, counter)[:8], "big") % (1 << self.bits)
        spread = first << (64 - self.bits)  # over all partitions
        return spread.to_bytes(8, "big") + hashlib.sha256(identity_digest(item)).digest()[:24]


def backwards(function, items):
    """Runs pickled copies, the last item first, as tasks on other machines might."""
    items = list(items)
    results = [
        pickle.loads(pickle.dumps(function))(pickle.loads(pickle.dumps(item)))
        for item in reversed(items)
    ]
    yield from results[::-1]


def all_members(store, number=0, portion=None):
    return [
        member
        for ref in read_blocks(store, number, portion)
        for member in rows_to_members(read_block(store, ref))
    ]


def files_below(store, folder="manifest"):
    """Every file of a store by path, with its bytes."""
    found = {f"{folder}/{name}": store.read(f"{folder}/{name}") for name in store.names(folder)}
    for name in store.folders(folder):
        found |= files_below(store, f"{folder}/{name}")
    return found


class Dying(Store):
    """A store whose process dies at a change of anything: so many more happen, and one further
    where it dies only `after` that one.
    """

    def __init__(self, url, lives, *, after=False):
        super().__init__(url)
        self.lives, self.after = [lives], after  # a list, which the stores below share

    def __reduce__(self):
        return (_same, (_remembered(self),))  # the same store, so that all lives are counted

    def below(self, folder):
        found = Dying(f"{self.url}/{folder}", 0, after=self.after)
        found.lives = self.lives
        return found

    def write(self, path, data):
        return self._change(super().write, path, data)

    def create(self, path, data):
        return self._change(super().create, path, data)

    def delete(self, path):
        return self._change(super().delete, path)

    def _change(self, change, *given):
        self.lives[0] -= 1
        if self.lives[0] < -self.after:
            raise KeyboardInterrupt
        done = change(*given)
        if self.lives[0] < 0:
            raise KeyboardInterrupt
        return done


_dying: list[Dying] = []


def _remembered(store: Dying) -> int:
    _dying.append(store)
    return len(_dying) - 1


def _same(index: int) -> Dying:
    return _dying[index]


class Failing(Fetcher):
    """Reads small windows; the request with the number `fails` is throttled for good."""

    def __init__(self, fails, status=Status.SOURCE_THROTTLED):
        super().__init__()
        self.fails, self.status, self.asked = fails, status, 0

    def fetch_range(self, *where):
        self.asked += 1
        if self.asked == self.fails:
            raise SourceError(self.status, "slow down")
        return super().fetch_range(*where)

    def open(self, uri, version, size_bytes=-1, *, window=0):
        return super().open(uri, version, size_bytes, window=256)
