"""A source → its members → a manifest cut into blocks. Knows names, versions and ids; decodes nothing, runs nothing."""

from ray_app.archives.blocks import BlockPlan, block_sizes
from ray_app.archives.changes import build_manifest, current_ids, known_ids, list_changes
from ray_app.archives.manifest import (
    BlockRef,
    ManifestInfo,
    ManifestWriter,
    iter_blocks,
    manifests,
    member_rows,
    read_block,
    read_complete,
    read_ids,
    read_vanished,
)
from ray_app.archives.members import Listed, Member, image_id
from ray_app.archives.sources import Archive, Source, open_source

__all__ = [
    "Archive",
    "Source",
    "open_source",
    "Listed",
    "Member",
    "image_id",
    "BlockPlan",
    "block_sizes",
    "ManifestInfo",
    "ManifestWriter",
    "BlockRef",
    "build_manifest",
    "list_changes",
    "known_ids",
    "current_ids",
    "manifests",
    "read_complete",
    "iter_blocks",
    "read_block",
    "member_rows",
    "read_ids",
    "read_vanished",
]
