"""Files that hold many members: one module per format. Each says which members there are and where, and reads them from there.

Members are streamed, never unpacked to a disk; their names are labels, never paths.
"""

from collections.abc import Mapping

from ray_app.archives.containers import parquet, tar, tar_gz, zips
from ray_app.archives.containers.container import Columns, Container, ContainerLimits, Format, Reader, Unopened

CONTAINERS: Mapping[str, Format] = {"parquet": parquet, "tar": tar, "tar.gz": tar_gz, "zip": zips}

# Longest first: `.tar.gz` is not a `.gz` of something.
_ENDINGS = {".tar.gz": "tar.gz", ".tgz": "tar.gz", ".tar": "tar", ".zip": "zip", ".parquet": "parquet"}


def kind_of(name: str) -> str | None:
    """The container format that a file's name announces, in whatever case; None for every other name."""
    return next((kind for ending, kind in _ENDINGS.items() if name.lower().endswith(ending)), None)


__all__ = ["CONTAINERS", "Columns", "Container", "ContainerLimits", "Format", "Reader", "Unopened", "kind_of"]
