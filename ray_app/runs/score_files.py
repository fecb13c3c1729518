"""Parse the names of the Parquet files in `scores/` of a run (`ScoreFile`).

A manifest is a list of files to score. It is cut into blocks, fixed ranges of files. The name of a
Parquet file shows the blocks whose result rows it contains:

    scores/00003-00000000-00000011.parquet           blocks 0 … 11 of manifest 3
    scores/00003-00000000--00027-00000001.parquet    block 0 of manifest 3 up to block 1 of manifest 27

Only versions 0.20 to 0.24 wrote files of the second form, merged from smaller files. If an interrupted
merge left the merged file and its sources, only the merged file is read.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_NAME = re.compile(r"(\d+)-(\d+)-(?:-(\d+)-)?(\d+)\.parquet")

BlockPlace = tuple[int, int]  # A manifest and a block of it.


@dataclass(frozen=True, order=True)
class ScoreFile:
    """A published file: a Parquet file in `scores/` of a run, with the rows of consecutive blocks.

    A block is a fixed range of files of a manifest, a list of files to score.

    Attributes:
        manifest: The number of the manifest of the first block.
        first: The number of the first block in its manifest.
        last: The number of the last block in its manifest.
        until: The manifest of the last block, if the file was merged from files of several
            manifests. -1 if all its blocks are from `manifest`.
    """

    manifest: int
    first: int
    last: int
    until: int = -1

    @property
    def is_merged(self) -> bool:
        """Whether a version before 0.25 merged the file from other files in `scores/`."""
        return self.until >= 0

    @property
    def start(self) -> BlockPlace:
        """The first block whose rows are in the file: (number of its manifest, number in it)."""
        return self.manifest, self.first

    @property
    def end(self) -> BlockPlace:
        """The last block whose rows are in the file: (number of its manifest, number in it)."""
        return (self.until if self.is_merged else self.manifest), self.last

    @property
    def name(self) -> str:
        """The name of the file in `scores/`."""
        middle = f"-{self.until:05d}-" if self.is_merged else ""
        return f"{self.manifest:05d}-{self.first:08d}-{middle}{self.last:08d}.parquet"

    @property
    def path(self) -> str:
        """The path of the file, relative to the run."""
        return f"scores/{self.name}"

    def has_block(self, manifest: int, block: int) -> bool:
        """Return whether the file contains the rows of a block, a fixed range of files to score.

        `manifest` is the number of the block's manifest, a list of files to score. `block` is the
        number of the block in this manifest.
        """
        return self.start <= (manifest, block) <= self.end

    def blocks_of(self, manifest: int, count: int) -> range:
        """Return which blocks of a manifest have their rows in this Parquet file.

        A manifest is a list of files to score, and a block is a fixed range of these files.

        Args:
            manifest: The number of the manifest.
            count: The number of all blocks of the manifest.

        Returns:
            The numbers of the blocks, which are consecutive. Empty if there are none.
        """
        if not self.manifest <= manifest <= self.end[0]:
            return range(0)
        first = self.first if manifest == self.manifest else 0
        return range(first, min(count, self.last + 1) if manifest == self.end[0] else count)

    def contains(self, other: "ScoreFile") -> bool:
        """Return whether the file contains the rows of all blocks of another file."""
        return self.start <= other.start and other.end <= self.end

    def manifests(self) -> range:
        """Return the numbers of the manifests, lists of files to score, with rows in the file.

        In a file of several manifests, those between the first and the last may have no rows.
        """
        return range(self.manifest, self.end[0] + 1)


def manifest_of(path: str) -> int:
    """Return the number of a Parquet file's manifest, which is part of the path.

    A manifest is a list of files to score. `path` is a Parquet file in `scores/` or `parts/` of a
    run. If the file has rows of several manifests, the result is the first.
    """
    folder, _, name = path.rpartition("/")
    return int(name.split("-")[0] if folder == "scores" else folder.rpartition("/")[2])


def parse_names(names: Iterable[str]) -> list[ScoreFile]:
    """Parse the names of files in `scores/` of a run.

    Args:
        names: The names. Names of another form are ignored.

    Returns:
        The files in the order of their manifests and blocks.
    """
    matches = (_NAME.fullmatch(name) for name in names)
    files = (
        ScoreFile(int(m[1]), int(m[2]), int(m[4]), int(m[3]) if m[3] else -1) for m in matches if m
    )
    return sorted(
        files, key=lambda file: (file.start, [-number for number in file.end], not file.is_merged)
    )


def split_replaced(
    files: Sequence[ScoreFile],
) -> tuple[list[ScoreFile], list[ScoreFile]]:
    """Split the Parquet files in `scores/` into files to read, and files that have been replaced.

    A merged file replaces the files from which it was merged. Both can exist if the merge was
    interrupted.

    Args:
        files: The files in the order of `parse_names`.

    Returns:
        The files to read, and the replaced files.
    """
    read: list[ScoreFile] = []
    replaced: list[ScoreFile] = []
    outer: ScoreFile | None = None
    for file in files:
        if outer is not None and outer.contains(file):
            replaced.append(file)
            continue
        read.append(file)
        outer = file if file.is_merged else outer
    return read, replaced
