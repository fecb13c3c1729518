"""Parse the names of files in `scores/` (`ScoreFile`): the blocks of manifests that each contains.

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
    """A published file in `scores/` of a run, which contains the rows of consecutive blocks.

    A block is a fixed range of files of a manifest, the list of files that one listing found.

    Attributes:
        manifest: The manifest of the first block.
        first: The first block.
        last: The last block.
        until: The manifest of the last block, if the file was merged from files of several
            manifests. -1 if all its blocks are from `manifest`.
    """

    manifest: int
    first: int
    last: int
    until: int = -1

    @property
    def is_merged(self) -> bool:
        """Whether the file was merged from other published files."""
        return self.until >= 0

    @property
    def start(self) -> BlockPlace:
        """The manifest and the number of the first block."""
        return self.manifest, self.first

    @property
    def end(self) -> BlockPlace:
        """The manifest and the number of the last block."""
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
        """Return whether the file contains the rows of a block."""
        return self.start <= (manifest, block) <= self.end

    def blocks_of(self, manifest: int, count: int) -> range:
        """Return the numbers of a manifest's blocks whose rows are in the file.

        `count` is the number of all blocks of the manifest.
        """
        if not self.manifest <= manifest <= self.end[0]:
            return range(0)
        first = self.first if manifest == self.manifest else 0
        return range(first, min(count, self.last + 1) if manifest == self.end[0] else count)

    def contains(self, other: "ScoreFile") -> bool:
        """Return whether the file contains all blocks of another file."""
        return self.start <= other.start and other.end <= self.end

    def manifests(self) -> range:
        """Return the numbers of the manifests whose rows may be in the file."""
        return range(self.manifest, self.end[0] + 1)


def manifest_of(path: str) -> int:
    """Return the manifest of the first rows of a file, from its path in `scores/` or `parts/`."""
    folder, _, name = path.rpartition("/")
    return int(name.split("-")[0] if folder == "scores" else folder.rpartition("/")[2])


def parse_names(names: Iterable[str]) -> list[ScoreFile]:
    """Parse names of files in `scores/`, and return the files in the order of their blocks.

    Names of another form are ignored.
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
    """Split published files into files to read, and files that a merged file replaces.

    A merged file replaces the files from which it was merged. The files must be in the order of
    `parse_names`.
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
