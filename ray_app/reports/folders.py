"""Describe the folders that a listing could not list."""

import glob
import posixpath

from ray_app.reports.format import counted, visible


def describe_closed_folders(count: int, example: str) -> str:
    """Return a sentence on folders that could not be listed, or nothing if there are none."""
    if not count:
        return ""
    what = f"{counted(count, 'folder')} cannot be listed, e.g. {visible(example)}"
    rows = "its row shows the reason" if count == 1 else "their rows show the reasons"
    name = visible(glob.escape(posixpath.basename(example)))
    return f"{what}: {rows}; --exclude '**/{name}/**' leaves {'it' if count == 1 else 'that folder'} out"
