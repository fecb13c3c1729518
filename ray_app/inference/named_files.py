"""List and read the files that a user names on the command line of `touchstone check`.

Files are named by paths, folders, URLs, and `-` for standard input.
"""

import asyncio
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ray_app.archives.saved_datasets import refuse_saved_dataset
from ray_app.errors import ConfigError, InputError, SourceError, Status
from ray_app.images.provenance import attach_sidecar
from ray_app.storage import Fetcher, guarded_http
from ray_app.storage.errors import make_folder_error
from ray_app.storage.listing import make_missing_error
from ray_app.storage.local import walk_folder
from ray_app.storage.urls import get_scheme, local_path, local_uri, strip_secrets

STDIN = "-"


@dataclass(frozen=True)
class NamedFiles:
    """Files in the order in which the user named them: paths, URLs, and `-` for standard input.

    A folder is replaced by the files below it. Folders that cannot be listed are also in `names`,
    and their errors in `closed`.
    """

    names: Sequence[str]
    closed: Mapping[str, SourceError]

    def read(self, name: str, max_bytes: int) -> bytes:
        """Return the content of a file that the user named.

        A web URL must use https, and its host must have a public address. If a local file has a
        sidecar, a second file with statements on its origin, the content includes it. Raises
        InputError if the file cannot be read, or is larger than `max_bytes`.
        """
        if name in self.closed:
            raise self.closed[name]
        if name == STDIN:
            return _read_stdin(max_bytes)
        if get_scheme(name) in ("http", "https"):
            return asyncio.run(guarded_http.fetch_image(name, max_bytes))
        if get_scheme(name) != "file":
            return Fetcher(signed=[name]).fetch(name, "", max_bytes)
        _require_file(name)
        path = os.path.abspath(name)
        return attach_sidecar(Fetcher().fetch(local_uri(path), "", max_bytes), path)


def list_named_files(images: Sequence[str]) -> NamedFiles:
    """List the files that a user names. A folder is replaced by all files below it.

    Raises ConfigError if a path does not exist, or the folders contain no file.
    """
    if images.count(STDIN) > 1:
        raise ConfigError(
            "`-` stands for one image on stdin and is named more than once", hint="name `-` once"
        )
    names, closed = list[str](), dict[str, SourceError]()
    for image in images:
        if image == STDIN or get_scheme(image) != "file":
            names.append(image)
            continue
        path = local_path(image)
        if not os.path.lexists(path):
            raise make_missing_error(path)
        files = _list_folder(path, closed) if os.path.isdir(path) else [path]
        for file in files:
            refuse_saved_dataset(path, file)
            names.append(file)
    if not names:
        raise ConfigError(
            f"nothing to check: there is no file in {', '.join(images)}",
            hint="name images, or a folder with images",
        )
    return NamedFiles(names, closed)


def make_uri(name: str) -> str:
    """Return the URI, without secrets, that the result row of a file shows.

    `name` is the path or URL by which the user named the file, or `-` for standard input. A path
    becomes absolute.
    """
    if "://" in name or name == STDIN:
        return strip_secrets(name)
    return local_uri(os.path.abspath(name))


def _list_folder(folder: str, closed: dict[str, SourceError]) -> Iterator[str]:
    """Yield all files below a folder.

    Folders that cannot be listed are yielded, too, and added to `closed`.
    """
    try:
        for path, error in walk_folder(folder):
            if error is not None:
                closed[path] = make_folder_error(error)
            yield path
    except OSError as error:
        closed[folder] = make_folder_error(error)
        yield folder


def _read_stdin(max_bytes: int) -> bytes:
    data = sys.stdin.buffer.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise InputError(
            Status.IMAGE_TOO_LARGE,
            f"the image on stdin is over max_bytes ({max_bytes})",
            limit=max_bytes,
            observed=len(data),
        )
    return data


def _require_file(name: str) -> None:
    """Raise InputError unless a path is a regular file.

    A pipe would block its reader, and a link to a folder is not followed.
    """
    try:
        os.stat(name)
    except FileNotFoundError:
        raise SourceError(
            Status.SOURCE_MISSING,
            "dangling symbolic link" if os.path.islink(name) else "no such file",
        ) from None
    except OSError as error:
        raise SourceError(Status.SOURCE_DENIED, error.strerror or "cannot be read") from None
    if os.path.isdir(name):
        raise SourceError(Status.SOURCE_DENIED, "a link to a folder, which is not followed")
    if not os.path.isfile(name):
        raise InputError(Status.UNSUPPORTED_FORMAT, "not a regular file")
