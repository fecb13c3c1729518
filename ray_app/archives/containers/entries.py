"""What an archive's own listing says → members: names checked, equal ones counted, limits kept, sidecars joined. Knows no format."""

from collections.abc import Iterator
from dataclasses import dataclass

from ray_app.archives.containers.container import Container
from ray_app.archives.containers.names import Occurrences, printable, why_unsafe
from ray_app.archives.containers.sidecars import join_sidecars
from ray_app.archives.members import Listed, Place, Refused
from ray_app.errors import InputError, Status, StorageError
from ray_app.storage import Fetcher


@dataclass(frozen=True, slots=True)
class Entry:
    """One file that a container names. `text`: what it says, where it may be a sidecar."""

    name: str
    size_bytes: int
    place: Place | None
    refused: Refused | None = None
    text: str | None = None


def why_closed(container: Container, error: InputError) -> Refused:
    """What an archive's own row says when listing its members ends with `error`.

    Raises StorageError where the store gave no answer: members that are there would be missing from the manifest.
    """
    if error.status in (Status.SOURCE_THROTTLED, Status.SOURCE_TIMEOUT):
        raise StorageError(f"cannot list {container.uri}: {error.detail}", hint="the same command lists again") from error
    return Refused(error.status, error.detail)


def size_of(container: Container, fetcher: Fetcher) -> int:
    """The archive's bytes, asked of its store where the listing did not say. Raises InputError for an empty one."""
    size = container.size_bytes if container.size_bytes >= 0 else fetcher.size(container.uri, container.version)
    if not size:
        raise InputError(Status.EMPTY_FILE, "an archive without a byte")
    return size


def members_of(container: Container, entries: Iterator[Entry]) -> Iterator[Listed]:
    """The entries as members, in order. An InputError of `entries`, or one member too many, ends them: a row of the container says why.

    Raises StorageError where the store gave no answer.
    """
    ended: list[Refused] = []
    yield from join_sidecars(_counted(container, entries, ended))
    for reason in ended:
        yield container.itself(reason)


def _counted(container: Container, entries: Iterator[Entry], ended: list[Refused]) -> Iterator[tuple[Listed, str | None]]:
    occurrences = Occurrences()
    try:
        for number, entry in enumerate(entries):
            if number >= container.limits.max_members:
                raise InputError(Status.UNSAFE_MEMBER, f"more than {container.limits.max_members} members; the further ones are not listed")
            yield _listed(container, entry, occurrences)
    except InputError as error:
        ended.append(why_closed(container, error))


def _listed(container: Container, entry: Entry, occurrences: Occurrences) -> tuple[Listed, str | None]:
    name, refused = printable(entry.name), entry.refused
    if reason := why_unsafe(entry.name):
        refused = Refused(Status.UNSAFE_MEMBER, reason)
    item = Listed(
        container.uri,
        name,
        occurrences.count(name),
        container.version,
        entry.size_bytes,
        place=None if refused else entry.place,
        refused=refused,
    )
    return item, None if refused else entry.text
