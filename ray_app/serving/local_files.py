"""Find the local files that `touchstone score --endpoint` sends (`find_local_files`)."""

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from ray_app.archives.saved_datasets import refuse_saved_dataset
from ray_app.errors import ConfigError
from ray_app.serving.client import Source
from ray_app.storage.errors import make_folder_error, make_unreachable_error
from ray_app.storage.listing import make_missing_error
from ray_app.storage.local import walk_folder
from ray_app.storage.urls import get_scheme, local_path


def find_local_files(sources: Sequence[str]) -> Iterator[Source]:
    """Yield the files to send to an endpoint: the given files, and the regular files below folders.

    A file is yielded as its path. A subfolder that cannot be listed is yielded as (path, error), so
    that it appears in the results. Raises ConfigError if a source is not local or does not exist,
    or no file exists, and StorageError if a folder among the sources cannot be listed.
    """
    if not sources:
        raise ConfigError(
            "no files to score are named", hint="run touchstone score --endpoint URL FILE…"
        )
    is_empty = True
    for source in sources:
        if get_scheme(source) != "file":
            raise ConfigError(
                f"{source}: --endpoint takes local files and folders only",
                hint="omit --endpoint to score any other source",
            )
        path = local_path(source)
        if not os.path.lexists(path):
            raise make_missing_error(path)
        refuse_saved_dataset(path, path)
        for file in _list_folder(path) if os.path.isdir(path) else [Path(path)]:
            is_empty = False
            yield file
    if is_empty:
        raise ConfigError(
            f"nothing to score: no file in {', '.join(sources)}",
            hint="name images, or a folder with images",
        )


def _list_folder(folder: str) -> Iterator[Source]:
    try:
        for path, error in walk_folder(folder):
            refuse_saved_dataset(folder, path)
            if error is not None:
                yield path, make_folder_error(error)
            elif _may_be_regular(path):
                yield Path(path)
    except OSError as error:
        raise make_unreachable_error(error, folder, "list") from error


def _may_be_regular(path: str) -> bool:
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError:  # Reading the file then reports the reason.
        return True
