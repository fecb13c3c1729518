"""Plain tar files: members listed by passing over their data, read from where they lie. Knows no compression."""

from collections.abc import Callable, Iterator

from ray_app.archives.containers.container import Container
from ray_app.archives.containers.entries import Entry, members_of, size_of
from ray_app.archives.containers.sidecars import as_text, sidecar_column
from ray_app.archives.containers.tar_headers import Header, Stream, read_headers
from ray_app.archives.containers.windows import WindowReader
from ray_app.archives.members import Listed, Place, Refused
from ray_app.errors import Status
from ray_app.storage import Fetcher


def index(container: Container, fetcher: Fetcher) -> Iterator[Listed]:
    """Every member; only headers, and what lies between them in a window of the file, are read."""
    return members_of(container, _entries(container, fetcher))


def reader(fetcher: Fetcher, max_bytes: int) -> WindowReader:
    """Reads runs of neighbouring members with one request."""
    return WindowReader(fetcher, max_bytes)


def _entries(container: Container, fetcher: Fetcher) -> Iterator[Entry]:
    size = size_of(container, fetcher)
    file = fetcher.open(container.uri, container.version, size)
    yield from entries_of(file, "tar", lambda header: min(header.stored, max(0, size - header.offset)))


def entries_of(stream: Stream, kind: str, there: Callable[[Header], int]) -> Iterator[Entry]:
    """The files of a tar; `there` says how many bytes of a member's data there are, and may pass over them.

    Raises InputError where the archive breaks off.
    """
    for header in read_headers(stream):
        if header.is_folder:
            continue
        text: str | None = None
        if header.unsafe is None and sidecar_column(header.name, header.stored):
            text = as_text(stream.read(header.stored))
        found = there(header)
        place = Place(kind, header.offset, header.stored)
        if header.unsafe is not None:
            yield Entry(header.name, header.stored, None, Refused(Status.UNSAFE_MEMBER, header.unsafe))
        elif found < header.stored:
            reason = f"the archive ends after {found} of its {header.stored} bytes"
            yield Entry(header.name, header.stored, None, Refused(Status.TRUNCATED_IMAGE, reason))
            return  # what may have come behind it is not known
        else:
            yield Entry(header.name, header.stored, place, text=text)
