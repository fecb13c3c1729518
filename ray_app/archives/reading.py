"""Members → their encoded bytes, wherever each lies: in a file of its own or in a container. Knows no format and no pixels."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from itertools import groupby

from ray_app.archives.containers import CONTAINERS, Reader
from ray_app.archives.members import Member
from ray_app.errors import InputError
from ray_app.storage import Fetcher

_AHEAD_BYTES = 64 * 2**20


class MemberReader:
    """Reads members, ahead of whoever uses them. One per process: what a format keeps open serves the next block of the same container."""

    def __init__(self, fetcher: Fetcher, *, max_bytes: int, depth_bytes: int = _AHEAD_BYTES) -> None:
        self._fetcher, self._max_bytes, self._depth_bytes = fetcher, max_bytes, depth_bytes
        self._readers: dict[str, Reader] = {}

    def read(self, members: Sequence[Member]) -> Iterator[tuple[Member, bytes | InputError]]:
        """Every member in order with its bytes, or the reason why there are none; one that was refused when it was listed is not read."""
        with closing(self._arriving([member for member in members if member.refused is None])) as arriving:
            for member in members:
                yield member, next(arriving) if member.refused is None else member.refused.error()

    def _arriving(self, members: Sequence[Member]) -> Generator[bytes | InputError]:
        for kind, run in groupby(members, key=_container):
            if kind is None:
                for _, data in self._fetcher.prefetch(run, depth_bytes=self._depth_bytes, max_bytes=self._max_bytes):
                    yield data
            else:
                yield from self._reader(kind[0]).read(list(run))

    def _reader(self, kind: str) -> Reader:
        if kind not in self._readers:
            self._readers[kind] = CONTAINERS[kind].reader(self._fetcher, self._max_bytes)
        return self._readers[kind]


def _container(member: Member) -> tuple[str, str, str] | None:
    return None if member.place is None else (member.place.kind, member.uri, member.version)
