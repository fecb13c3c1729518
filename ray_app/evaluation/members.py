"""Where the images of some ids lie: members of a run as its manifests have them. Reads ids and blocks; no image."""

from collections.abc import Collection

import numpy as np

from ray_app.archives import Member, manifests, member_rows, read_block, read_blocks, read_ids
from ray_app.runs import RunDirectory


def members_of(run: RunDirectory, image_ids: Collection[int]) -> dict[int, Member]:
    """The members of these ids that the run's manifests hold; blocks without any are not read."""
    wanted = np.unique(np.array(list(image_ids), np.int64))
    found: dict[int, Member] = {}
    for number in manifests(run.store):
        blocks = read_blocks(run.store, number)
        for ref, ids in zip(blocks, read_ids(run.store, blocks), strict=True):
            if np.isin(ids, wanted).any():
                members = member_rows(read_block(run.store, ref))
                found |= {one.image_id: one for one in members if one.image_id in image_ids}
        if len(found) == len(wanted):
            break
    return found
