"""List archives into manifests, and read their members.

An `Archive` is opened from its sources. `list_members` writes a manifest of its members, cut into
blocks. `read_block` reads a block, and `MemberReader` the bytes of members.
"""

from typing import TYPE_CHECKING

from ray_app import on_first_use

if TYPE_CHECKING:
    from ray_app.archives.build import (
        Portions,
        finish_manifest,
        is_as_listed,
        list_members,
        list_portions,
    )
    from ray_app.archives.containers import Container, ContainerLimits
    from ray_app.archives.containers.parquet_reader import read_referenced
    from ray_app.archives.manifest import (
        BlockList,
        BlockRef,
        ManifestInfo,
        copy_manifest,
        guard_of,
        last_listing,
        listed_manifests,
        manifests,
        open_manifest,
        read_block_lists,
        read_blocks,
        read_blocks_so_far,
        read_complete,
        read_ids,
        read_vanished,
        read_vanished_so_far,
    )
    from ray_app.archives.members import (
        BlockPlan,
        Each,
        Ids,
        ListedMember,
        ManifestMember,
        MemberLocation,
        RefusedMember,
        TableColumns,
        as_listed,
        as_member,
        block_sizes,
        image_id,
        in_turn,
    )
    from ray_app.archives.reader import MemberReader, member_rows, read_block
    from ray_app.archives.sources import Archive, fetcher_of, name_of, open_source, places_of
else:
    __getattr__ = on_first_use(__name__)
