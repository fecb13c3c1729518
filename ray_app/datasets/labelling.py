"""Label the files of an archive for an index (`Labeller`).

A block, a part of the archive's list of files, is labelled in one task. A layout reads the labels.
Hashes of the images are computed if they are requested.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import pyarrow as pa

from ray_app.archives import (
    BlockRef,
    ListedMember,
    ManifestMember,
    MemberReader,
    read_block,
    rows_to_members,
    to_listed_member,
)
from ray_app.archives.containers import detect_kind
from ray_app.archives.members import is_unreadable_folder
from ray_app.datasets.known_faults import KnownFault, drop_faulty_labels
from ray_app.datasets.labels import INPUT, Labels
from ray_app.datasets.layouts.base import DatasetLayout, get_path
from ray_app.errors import ConfigError, InputError
from ray_app.images import ImageLimits, decode_image, facts
from ray_app.storage import Fetcher, Store

Hash = Literal["sha256", "phash"]

SPOILED = "spoiled by a documented fault of the data"


@dataclass
class SkippedMembers:
    """Counts of files that an index leaves out, or that could not be read, by reason.

    Attributes:
        counts: Number of files by reason.
        examples: The path of one file by reason.
    """

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, path: str, count: int = 1) -> None:
        """Count files that were skipped for a reason.

        Args:
            reason: The reason, as text.
            path: The path of one of the files.
            count: Number of files.
        """
        self.counts[reason] += count
        self.examples.setdefault(reason, path)

    def merge(self, other: "SkippedMembers") -> None:
        """Add the counts of another `SkippedMembers` to this object."""
        for reason, count in other.counts.items():
            self.add(reason, other.examples[reason], count)

    def to_json(self) -> list[dict[str, object]]:
        """Return an object per reason, the most frequent first, for index.json.

        Its keys are `why` (the reason), `files` (the number of files), and `example` (a path).
        """
        return [
            {"why": reason, "files": count, "example": self.examples[reason]}
            for reason, count in self.counts.most_common()
        ]


@dataclass
class LabelledBlock:
    """The result of a `Labeller` for one block, a part of the archive's list of files.

    Attributes:
        rows: One row per labelled image, with the labels in the column `input` (INPUT).
        subsets: Number of rows per subset of the data set, such as a split.
        left_out: Counts of files that are not in `rows`, such as tables and masks.
        unreadable: Counts of rows whose image cannot be read.
    """

    rows: pa.Table
    subsets: Counter[str]
    left_out: SkippedMembers
    unreadable: SkippedMembers


@dataclass(frozen=True)
class Labeller:
    """Labels the files of one block, a part of the archive's list of files.

    Call the object with a `BlockRef`, which `archives.read_blocks` returns for each block. It
    returns a `LabelledBlock`. The object is picklable, because Ray tasks use it.

    Attributes:
        store: The folder of the list of files.
        layout: The layout that reads the labels.
        hashes: Names of the hashes to compute. Empty for none; then no image is read.
        limits: Limits on the images that are hashed.
        fetcher: Reads the images that are hashed.
        spoiling: Documented faults of the data set. Images and prompts with them are left out.
    """

    store: Store
    layout: DatasetLayout
    hashes: Sequence[Hash]
    limits: ImageLimits
    fetcher: Fetcher
    spoiling: Sequence[KnownFault] = ()

    def __call__(self, ref: BlockRef) -> LabelledBlock:
        """Label the members of a block. Raise ConfigError if the layout cannot label a member."""
        table = read_block(self.store, ref)
        members = rows_to_members(table)
        left_out, subsets = SkippedMembers(), Counter[str]()
        indices: list[int] = []
        all_labels: list[Labels] = []
        for index, member in enumerate(members):
            item = to_listed_member(member)
            layout_labels = label_member(item, self.layout)
            labels = layout_labels and drop_faulty_labels(layout_labels, self.spoiling)
            if labels is None:
                left_out.add(_reason(item) if layout_labels is None else SPOILED, get_path(item))
                continue
            indices.append(index)
            all_labels.append(labels)
            subsets[self.layout.subset(item, labels)] += 1
        hashes, unreadable = self._compute_hashes([members[index] for index in indices])
        columns = [
            [getattr(row_labels, name) for row_labels in all_labels]
            if name in Labels.__slots__
            else hashes[name]
            for name in INPUT.names
        ]
        inputs = pa.StructArray.from_arrays(
            [pa.array(values, pa.string()) for values in columns], fields=list(INPUT)
        )
        rows = table.drop_columns([name for name in ("input",) if name in table.schema.names]).take(
            pa.array(indices, pa.int64())
        )
        return LabelledBlock(rows.append_column("input", inputs), subsets, left_out, unreadable)

    def _compute_hashes(
        self, members: Sequence[ManifestMember]
    ) -> tuple[dict[str, list[str | None]], SkippedMembers]:
        """Return the columns of hashes, and the members that cannot be read, by reason.

        A hash is null if its member cannot be read. Without hashes no member is read.
        """
        hashes: dict[str, list[str | None]] = {
            name: [None] * len(members) for name in ("sha256", "phash")
        }
        unreadable = SkippedMembers()
        members_to_read = (
            members if self.hashes else [member for member in members if member.refused is not None]
        )
        reader = MemberReader(self.fetcher, max_bytes=self.limits.max_bytes)
        for index, (member, data) in enumerate(reader.read(members_to_read)):
            try:
                if isinstance(data, InputError):
                    raise data
                if "sha256" in self.hashes:
                    hashes["sha256"][index] = hashlib.sha256(data).hexdigest()
                if "phash" in self.hashes:
                    hashes["phash"][index] = facts.perceptual_hash(
                        decode_image(data, self.limits).pixels
                    )
            except InputError as error:
                unreadable.add(
                    error.status, f"{get_path(to_listed_member(member))}: {error.detail}"
                )
        return hashes, unreadable


def label_member(item: ListedMember, layout: DatasetLayout) -> Labels | None:
    """Return the labels that a layout reads for a member, one listed file of an archive.

    Returns:
        The labels. None if the member is not an image of the data set, or if it stands for a
        folder or container (zip, tar, or Parquet file) that could not be listed.

    Raises:
        ConfigError: A label is unknown or contradictory.
    """
    is_closed = (
        item.refused is not None and item.place is None and detect_kind(item.uri) is not None
    )
    return None if is_closed or is_unreadable_folder(item) else layout.labels(item)


def check_hashes(hashes: Sequence[Hash]) -> None:
    """Raise ConfigError for a hash that is unknown or that this installation cannot compute."""
    if unknown := set(hashes) - {"sha256", "phash"}:
        raise ConfigError(f"unknown hash {', '.join(sorted(unknown))}", hint="use sha256 or phash")
    if "phash" in hashes:
        facts.require_perceptual_hash()


def _reason(item: ListedMember) -> str:
    if item.refused is not None:
        return f"{item.refused.status}: {item.refused.detail}"
    name = get_path(item).rpartition("/")[2]
    return f"no labelled image ({'.' + name.rpartition('.')[2].lower() if '.' in name else 'no ending'})"
