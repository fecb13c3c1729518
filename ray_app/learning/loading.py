"""Rows of a labelled table → batches of arrays: read, decoded, augmented, brought to the network's size. Knows no torch and no Ray.

What is in a batch follows from the rows, their positions and the seed alone, whichever process makes it, in whatever order.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from ray_app.archives import Member, MemberReader, member_rows
from ray_app.augmentation.edges import edge_map
from ray_app.augmentation.sample import Policy, Sample
from ray_app.augmentation.statistics import RealStatistics, sharpness
from ray_app.datasets.columns import fakes
from ray_app.datasets.masks import MaskReader
from ray_app.datasets.order import Order, Positions
from ray_app.detectors import Preprocessing
from ray_app.detectors.preprocessing import Pixels
from ray_app.errors import ConfigError, InputError, StorageError
from ray_app.images import ImageLimits, decode_image
from ray_app.storage import Fetcher

Batch = dict[str, npt.NDArray[Any]]

_AUGMENTATION = 6  # apart from what else is drawn from the same seed
_NEEDED = ("image_id", "uri", "member", "occurrence", "version", "size_bytes", "block", "slot", "place", "refused", "input")


class Made(NamedTuple):
    """One image ready for the network, (H, W, 3), with its label, mask and edge, (H, W) of 0 and 1, where they are asked for."""

    image: Pixels
    label: int
    mask: Pixels | None = None
    edge: Pixels | None = None


class BatchLoader:
    """Makes batches from `rows`, a labelled table that is only looked into: slices of it are all that is ever copied.

    `policy` null leaves images as they are, as for validation. With `masks`, batches have masks and edges too. One per process.
    """

    def __init__(
        self,
        rows: pa.Table,
        preprocessing: Preprocessing,
        *,
        policy: Policy | None,
        seed: int,
        masks: bool = False,
        limits: ImageLimits = ImageLimits(),  # noqa: B008 - frozen
        fetcher: Fetcher | None = None,
    ) -> None:
        if masks and preprocessing.resize.mode not in ("none", "squash"):
            raise ConfigError(f"masks are not brought to a size by resize mode {preprocessing.resize.mode}", hint="take squash, or none")
        self.rows = rows.select([name for name in _NEEDED if name in rows.schema.names])
        self._batches = self.rows.to_batches()
        self._starts = np.cumsum([0, *(len(batch) for batch in self._batches)])
        self._preprocessing, self._policy, self._seed, self._limits = preprocessing, policy, seed, limits
        fetcher = fetcher or Fetcher()
        self._members = MemberReader(fetcher, max_bytes=limits.max_bytes)
        self._masks = MaskReader(fetcher, limits) if masks else None

    def load(self, rows: Sequence[int] | Positions, positions: Sequence[int] | Positions) -> Batch:
        """The batch of B rows, each augmented by the chance of its position; equal positions of one row give equal images.

        `image` (B, H, W, 3) uint8 RGB · `label` (B,) int64, 1 = fake · `usable` (B,) bool · `row`, `image_id`, `group` (B,) int64, equal
        where the group is · `detail` (B,) text · with masks `mask` and `edge` (B, H, W) uint8 of 0 and 1. An image that cannot be read
        is black, not usable, and its detail says "status: why". Raises ConfigError where images come out in several sizes.
        """
        members = self._taken(rows)
        made: list[Made | InputError] = [
            image if isinstance(image, InputError) else self._attempt(member, image, int(position))
            for member, image, position in zip(members, self._decoded(members), positions, strict=True)
        ]
        shape = self._shape(made)
        labels = [_label_of(member) if isinstance(one, InputError) else one.label for member, one in zip(members, made, strict=True)]
        batch: Batch = {
            "image": _stacked([None if isinstance(one, InputError) else one.image for one in made], (*shape, 3)),
            "label": np.array(labels, np.int64),
            "usable": np.array([not isinstance(one, InputError) for one in made], bool),
            "row": np.asarray(rows, np.int64),
            "image_id": np.array([member.image_id for member in members], np.int64),
            "group": np.array([_group_of(member) for member in members], np.int64),
            "detail": np.array([f"{one.status}: {one.detail}" if isinstance(one, InputError) else "" for one in made], np.str_),
        }
        if self._masks is not None:
            for name in ("mask", "edge"):
                batch[name] = _stacked([None if isinstance(one, InputError) else getattr(one, name) for one in made], shape)
        return batch
