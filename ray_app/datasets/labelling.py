"""Listed members → rows of an index, one block at a time: labels by a layout and, on request,
hashes of the images (`Labeller`).
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
    as_listed,
    member_rows,
    read_block,
)
from ray_app.archives.containers import kind_of
from ray_app.archives.members import is_unreadable_folder
from ray_app.datasets.known_faults import KnownFault, spared
from ray_app.datasets.labels import INPUT, Labels
from ray_app.datasets.layouts.base import DatasetLayout, place_of
from ray_app.errors import ConfigError, InputError
from ray_app.images import ImageLimits, decode_image, facts
from ray_app.storage import Fetcher, Store

Hash = Literal["sha256", "phash"]

SPOILED = "spoiled by a documented fault of the data"


@dataclass
class SkippedMembers:
    """Members that are reported in numbers: how many for each reason, and one of them by name."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, why: str, place: str, count: int = 1) -> None:
        """Count one more, or more of them."""
        self.counts[why] += count
        self.examples.setdefault(why, place)

    def merge(self, other: "SkippedMembers") -> None:
        """Add what another counted."""
        for why, count in other.counts.items():
            self.add(why, other.examples[why], count)

    def counted(self) -> list[dict[str, object]]:
        """As JSON, the most frequent first."""
        return [
            {"why": why, "files": count, "example": self.examples[why]}
            for why, count in self.counts.most_common()
        ]


@dataclass
class LabelledBlock:
    """`rows`: manifest rows with INPUT; `left_out`: members that are no labelled image;
    `unreadable`: rows that have no image.
    """

    rows: pa.Table
    subsets: Counter[str]
    left_out: SkippedMembers
    unreadable: SkippedMembers


@dataclass(frozen=True)
class Labeller:
    """Labels the members of one block, without what the faults `spoiling` spoil; picklable, as
    tasks need it.
    """

    store: Store
    layout: DatasetLayout
    hashes: Sequence[Hash]
    limits: ImageLimits
    fetcher: Fetcher
    spoiling: Sequence[KnownFault] = ()

    def __call__(self, ref: BlockRef) -> LabelledBlock:
        """Raises ConfigError for a member that the layout cannot label."""
        table = read_block(self.store, ref)
        members = member_rows(table)
        left_out, subsets = SkippedMembers(), Counter[str]()
        kept: list[int] = []
        labelled: list[Labels] = []
        for place, member in enumerate(members):
            item = as_listed(member)
            found = labels_of(item, self.layout)
            labels = found and spared(found, self.spoiling)
            if labels is None:
                left_out.add(_reason(item) if found is None else SPOILED, place_of(item))
                continue
            kept.append(place)
            labelled.append(labels)
            subsets[self.layout.subset(item, labels)] += 1
        hashes, unreadable = self._hashed([members[place] for place in kept])
        columns = [
            [getattr(one, name) for one in labelled] if name in Labels.__slots__ else hashes[name]
            for name in INPUT.names
        ]
        inputs = pa.StructArray.from_arrays(
            [pa.array(values, pa.string()) for values in columns], fields=list(INPUT)
        )
        rows = table.drop_columns([name for name in ("input",) if name in table.schema.names]).take(
            pa.array(kept, pa.int64())
        )
        return LabelledBlock(rows.append_column("input", inputs), subsets, left_out, unreadable)

    def _hashed(
        self, members: Sequence[ManifestMember]
    ) -> tuple[dict[str, list[str | None]], SkippedMembers]:
        """The columns of hashes, null where a member is not readable, and such members by reason;
        without hashes none is read.
        """
        hashes: dict[str, list[str | None]] = {
            name: [None] * len(members) for name in ("sha256", "phash")
        }
        unreadable = SkippedMembers()
        wanted = (
            members if self.hashes else [member for member in members if member.refused is not None]
        )
        reader = MemberReader(self.fetcher, max_bytes=self.limits.max_bytes)
        for place, (member, data) in enumerate(reader.read(wanted)):
            try:
                if isinstance(data, InputError):
                    raise data
                if "sha256" in self.hashes:
                    hashes["sha256"][place] = hashlib.sha256(data).hexdigest()
                if "phash" in self.hashes:
                    hashes["phash"][place] = facts.perceptual_hash(
                        decode_image(data, self.limits).pixels
                    )
            except InputError as error:
                unreadable.add(error.status, f"{place_of(as_listed(member))}: {error.detail}")
        return hashes, unreadable


def labels_of(item: ListedMember, layout: DatasetLayout) -> Labels | None:
    """Return a layout's labels of a member, or None for what it does not label, and for a folder or
    container that could not be listed.

    Raises ConfigError as `DatasetLayout.labels`.
    """
    is_closed = item.refused is not None and item.place is None and kind_of(item.uri) is not None
    return None if is_closed or is_unreadable_folder(item) else layout.labels(item)


def check_hashes(hashes: Sequence[Hash]) -> None:
    """Raises ConfigError for a hash that cannot be computed here."""
    if unknown := set(hashes) - {"sha256", "phash"}:
        raise ConfigError(f"no hash {', '.join(sorted(unknown))}", hint="sha256, phash")
    if "phash" in hashes:
        facts.require_perceptual_hash()


def _reason(item: ListedMember) -> str:
    if item.refused is not None:
        return f"{item.refused.status}: {item.refused.detail}"
    name = place_of(item).rpartition("/")[2]
    return f"no labelled image ({'.' + name.rpartition('.')[2].lower() if '.' in name else 'no ending'})"
