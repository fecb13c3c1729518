"""What a member is, and the number that names it for ever. Knows names and hashes; reads nothing."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]

_BATCH = 8192
_NONE = b"\xff" * 8  # in a length's place: no text, which is not the empty text


@dataclass(frozen=True, slots=True)
class Listed:
    """One encoded file as a source lists it; `member` and `occurrence` (0, 1, … of equal names) tell it from others in one container."""

    uri: str
    member: str | None
    occurrence: int
    version: str
    size_bytes: int
    input: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Member:
    """One row of a manifest: a listed file with its id and its fixed place, `slot` counting inside `block`. Size -1 = unknown."""

    image_id: int
    uri: str
    member: str | None
    occurrence: int
    version: str
    size_bytes: int
    block: int
    slot: int
    input: dict[str, Any]


def identity_digest(item: Listed, counter: int = 0) -> bytes:
    """SHA-256 over (uri, member, occurrence, version), each text after its length, so that no two members share an encoding.

    A `counter` above 0 joins the hash where a member before had the same id.
    """
    parts = [_encode(item.uri), _encode(item.member), item.occurrence.to_bytes(8, "little"), _encode(item.version)]
    if counter:
        parts.append(counter.to_bytes(8, "little"))
    return hashlib.sha256(b"".join(parts)).digest()


def image_id(item: Listed, counter: int = 0) -> int:
    """The first 8 bytes of the digest, as a signed 64-bit integer."""
    return _first(identity_digest(item, counter))


def identify(listed: Iterable[Listed], digest: Callable[[Listed, int], bytes] = identity_digest) -> Iterator[tuple[Ids, list[Listed]]]:
    """Batches of members with their ids, in order, each member once: what overlapping sources list again is dropped.

    Two members with one id are told apart by the rest of the digest; the later one is hashed again with a counter.
    """
    seen = _SeenIds()
    rest = iter(listed)
    while batch := list(islice(rest, _BATCH)):
        words = np.frombuffer(b"".join([digest(item, 0) for item in batch]), ">i8").reshape(len(batch), -1)
        ids, checks = words[:, 0].tolist(), words[:, 1].tolist()
        fresh: dict[int, int] = {}
        kept: list[Listed] = []
        for item, number, check, state in zip(batch, ids, checks, seen.compare(ids, checks), strict=True):
            counter = 0
            while state == _OTHER or fresh.get(number, check) != check:
                counter += 1
                number = _first(digest(item, counter))
                state = seen.compare([number], [check])[0]
            if state == _NEW and number not in fresh:
                fresh[number] = check
                kept.append(item)
        seen.add(fresh)
        yield np.fromiter(fresh, np.int64, len(fresh)), kept


def _encode(text: str | None) -> bytes:
    if text is None:
        return _NONE
    data = text.encode("utf-8", "surrogateescape")
    return len(data).to_bytes(8, "little") + data


def _first(digest: bytes) -> int:
    return int.from_bytes(digest[:8], "big", signed=True)


_NEW, _SAME, _OTHER = 0, 1, 2


class _SeenIds:
    """A set of ids, each with the next 8 bytes of its digest, as a few sorted arrays: 16 bytes per member."""

    def __init__(self) -> None:
        self._levels: list[tuple[Ids, Ids]] = []

    def compare(self, ids: list[int], checks: list[int]) -> list[int]:
        """For each: not seen, seen as the same member, or its id seen as another's."""
        wanted, sure = np.array(ids, np.int64), np.array(checks, np.int64)
        states = np.full(len(ids), _NEW)
        for level, level_checks in self._levels:
            places = np.minimum(np.searchsorted(level, wanted), len(level) - 1)
            hits = level[places] == wanted
            states[hits] = np.where(level_checks[places[hits]] == sure[hits], _SAME, _OTHER)
        return [int(state) for state in states]

    def add(self, fresh: dict[int, int]) -> None:
        """Remember ids that are not in the set; levels double in size, so that each id is sorted again only a few times."""
        if not fresh:
            return
        ids, checks = np.fromiter(fresh, np.int64, len(fresh)), np.fromiter(fresh.values(), np.int64, len(fresh))
        while self._levels and len(self._levels[-1][0]) <= 2 * len(ids):
            more_ids, more_checks = self._levels.pop()
            ids, checks = np.concatenate([more_ids, ids]), np.concatenate([more_checks, checks])
        order = np.argsort(ids, kind="stable")
        self._levels.append((ids[order], checks[order]))
