"""The files of `scores/` by their names (`Published`): which blocks of which manifests each holds.

    scores/00003-00000000-00000011.parquet           blocks 0 … 11 of manifest 3
    scores/00003-00000000--00027-00000001.parquet    block 0 of manifest 3 up to block 1 of manifest 27

Only versions 0.20 to 0.24 wrote files of the second form, merged from smaller ones. A merged file is
read in place of those that it was merged from, if an interrupted merge left both.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_NAME = re.compile(r"(\d+)-(\d+)-(?:-(\d+)-)?(\d+)\.parquet")

Place = tuple[int, int]  # a manifest and a block of it


@dataclass(frozen=True, order=True)
class Published:
    """One file of `scores/`: the rows from block `first` of `manifest` to block `last` of
    `manifest`, or of `until` where it is merged.
    """

    manifest: int
    first: int
    last: int
    until: int = -1

    @property
    def is_merged(self) -> bool:
        """Whether it was made of other published files."""
        return self.until >= 0

    @property
    def start(self) -> Place:
        """Where it begins."""
        return self.manifest, self.first

    @property
    def end(self) -> Place:
        """The last block in it."""
        return (self.until if self.is_merged else self.manifest), self.last

    @property
    def name(self) -> str:
        """Its name in `scores/`."""
        middle = f"-{self.until:05d}-" if self.is_merged else ""
        return f"{self.manifest:05d}-{self.first:08d}-{middle}{self.last:08d}.parquet"

    @property
    def path(self) -> str:
        """Where it lies, relative to the run."""
        return f"scores/{self.name}"

    def holds(self, manifest: int, block: int) -> bool:
        """Whether a block is in it."""
        return self.start <= (manifest, block) <= self.end

    def blocks_of(self, manifest: int, count: int) -> range:
        """Which of a manifest's `count` blocks are in it."""
        if not self.manifest <= manifest <= self.end[0]:
            return range(0)
        first = self.first if manifest == self.manifest else 0
        return range(first, min(count, self.last + 1) if manifest == self.end[0] else count)

    def contains(self, other: "Published") -> bool:
        """Whether all blocks of another file are in this one."""
        return self.start <= other.start and other.end <= self.end

    def manifests(self) -> range:
        """The manifests from which it may have blocks."""
        return range(self.manifest, self.end[0] + 1)


def manifest_of(path: str) -> int:
    """Return the manifest whose rows begin a file, from its path in `scores/` or `parts/`."""
    folder, _, name = path.rpartition("/")
    return int(name.split("-")[0] if folder == "scores" else folder.rpartition("/")[2])


def named(names: Iterable[str]) -> list[Published]:
    """The files of these names, in the order of their blocks; other names are passed over."""
    matches = (_NAME.fullmatch(name) for name in names)
    found = (
        Published(int(m[1]), int(m[2]), int(m[4]), int(m[3]) if m[3] else -1) for m in matches if m
    )
    return sorted(
        found, key=lambda file: (file.start, [-number for number in file.end], not file.is_merged)
    )


def split_off(files: Sequence[Published]) -> tuple[list[Published], list[Published]]:
    """Files as `named` orders them: those to be read, and those in whose place a merged one stands."""
    read: list[Published] = []
    replaced: list[Published] = []
    outer: Published | None = None
    for file in files:
        if outer is not None and outer.contains(file):
            replaced.append(file)
            continue
        read.append(file)
        outer = file if file.is_merged else outer
    return read, replaced
