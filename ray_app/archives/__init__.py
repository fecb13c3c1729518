"""A source → its members → a manifest cut into blocks. Knows names, versions and ids; decodes nothing, runs nothing."""

from ray_app.archives.blocks import BlockPlan, block_sizes
from ray_app.archives.containers import Columns, Container, ContainerLimits
from ray_app.archives.containers.parquet import read_referenced
from ray_app.archives.listing import Portions, is_as_listed, list_members
from ray_app.archives.manifest import (
    BlockList,
    BlockRef,
    ManifestInfo,
    copy_manifest,
    guard_of,
    iter_blocks,
    manifests,
    read_block,
    read_blocks,
    read_complete,
    read_ids,
    read_vanished,
)
from ray_app.archives.members import Ids, Listed, Member, Place, Refused, image_id
from ray_app.archives.reading import MemberReader
from ray_app.archives.rows import member_rows
from ray_app.archives.sources import Archive, Source, fetcher_of, name_of, open_source, places_of
from ray_app.archives.walking import Each, in_turn

__all__ = [
    "Archive",
    "Source",
    "open_source",
    "name_of",
    "places_of",
    "fetcher_of",
    "Ids",
    "Listed",
    "Member",
    "MemberReader",
    "Place",
    "Refused",
    "Columns",
    "Container",
    "ContainerLimits",
    "read_referenced",
    "image_id",
    "BlockPlan",
    "block_sizes",
    "ManifestInfo",
    "BlockRef",
    "BlockList",
    "Each",
    "in_turn",
    "Portions",
    "list_members",
    "is_as_listed",
    "manifests",
    "copy_manifest",
    "guard_of",
    "read_complete",
    "read_blocks",
    "iter_blocks",
    "read_block",
    "member_rows",
    "read_ids",
    "read_vanished",
]
