"""List archives into manifests, and read their members.

An `Archive` is opened from its sources. A member is one file of the archive, or one file in a
container such as a tar. `list_members` writes a manifest: the list of the archive's members, cut
into blocks of some hundred members. `read_block` reads the rows of a block. `MemberReader` reads
the encoded bytes of members.
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
        list_complete_manifests,
        list_manifests,
        load_guard,
        read_block_lists,
        read_blocks,
        read_blocks_so_far,
        read_complete,
        read_ids,
        read_last_listing,
        read_open_manifest,
        read_vanished,
        read_vanished_so_far,
    )
    from ray_app.archives.members import (
        BlockPlan,
        Ids,
        ListedMember,
        ManifestMember,
        MapFunction,
        MemberLocation,
        RefusedMember,
        TableColumns,
        image_id,
        iter_block_sizes,
        map_serial,
        to_listed_member,
        to_manifest_member,
    )
    from ray_app.archives.reader import MemberReader, read_block, rows_to_members
    from ray_app.archives.sources import (
        Archive,
        canonical_name,
        create_fetcher,
        open_source,
        strip_kinds,
    )
else:
    __getattr__ = on_first_use(__name__)
