"""Describe the folders of an archive that could not be listed."""

from ray_app.reports.format import escape_invisible, pluralize
from ray_app.storage import urls


def describe_closed_folders(count: int, example: str) -> str:
    """Return a sentence on folders of an archive that could not be listed.

    The sentence names the option `--exclude` with which the next run leaves such a folder out.

    Args:
        count: Number of these folders.
        example: URL of one of the folders.

    Returns:
        The sentence; "" if `count` is 0.
    """
    if not count:
        return ""
    problem = f"{pluralize(count, 'folder')} cannot be listed, e.g. {escape_invisible(example)}"
    rows = "its row shows the reason" if count == 1 else "their rows show the reasons"
    return f"{problem}: {rows}; --exclude '{escape_invisible(urls.make_folder_pattern(example))}' leaves {'it' if count == 1 else 'that folder'} out"
