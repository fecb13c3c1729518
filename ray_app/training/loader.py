"""Rows of a labelled table → batches of arrays, read, decoded, augmented and resized:
`BatchLoader`.

What is in a batch follows from the rows, their positions and the seed alone, whichever process
makes it, in whatever order.
"""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from ray_app.archives import ManifestMember, MemberReader, member_rows
from ray_app.datasets import labels, sampling
from ray_app.datasets.mask_pixels import Coverage, coverage_of
from ray_app.datasets.masks import MaskReader
from ray_app.detectors import Preprocessing
from ray_app.detectors.preprocessing import Pixels, Resize
from ray_app.errors import ConfigError, InputError, StorageError
from ray_app.images import ImageLimits, decode_image
from ray_app.storage import Fetcher
from ray_app.training.job import TrainingJob
from ray_app.transforms.ops import ImageSample, edge_map
from ray_app.transforms.policies.papers import RealStatistics, sharpness
from ray_app.transforms.policy import Policy

Batch = dict[str, npt.NDArray[Any]]

_AUGMENTATION, _STATISTICS = 6, 7  # apart from what else is drawn from the same seed
_AT_ONCE = 64
RUN_BYTES, MAX_RUN = 2**25, 8
_NEEDED = (
    "image_id",
    "uri",
    "member",
    "occurrence",
    "version",
    "size_bytes",
    "block",
    "slot",
    "place",
    "refused",
    "input",
)


class TrainingSample(NamedTuple):
    """One image ready for the network, (H, W, 3), with its label, mask and edge, (H, W) of 0 and 1,
    where they are requested.

    `coverage`: how much of the stored mask of a fake is altered.
    """

    image: Pixels
    label: int
    mask: Pixels | None = None
    edge: Pixels | None = None
    coverage: Coverage = "part"


class BatchLoader:
    """Makes batches from `rows`, a labelled table that is only looked into: slices of it are all
    that is ever copied.

    `policy` null leaves images as they are, as for validation. With `masks`, batches have masks and
    edges too. One per process.
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
            raise ConfigError(
                f"masks are not brought to a size by resize mode {preprocessing.resize.mode}",
                hint="take squash, or none",
            )
        self.rows = rows.select([name for name in _NEEDED if name in rows.schema.names])
        self._batches = self.rows.to_batches()
        self._starts = np.cumsum([0, *(len(batch) for batch in self._batches)])
        self._preprocessing, self._policy, self._seed, self._limits = (
            preprocessing,
            policy,
            seed,
            limits,
        )
        fetcher = fetcher or Fetcher()
        self._members = MemberReader(fetcher, max_bytes=limits.max_bytes)
        self._masks = MaskReader(fetcher, limits) if masks else None

    def load(
        self,
        rows: Sequence[int] | sampling.Positions,
        positions: Sequence[int] | sampling.Positions,
    ) -> Batch:
        """The batch of B rows, each augmented by the chance of its position; equal positions of one
        row give equal images.

        `image` (B, H, W, 3) uint8 RGB · `label` (B,) int64, 1 = fake · `usable` (B,) bool · `row`,
        `image_id`, `group` (B,) int64, equal where the group is · `detail` (B,) text · with masks
        `mask` and `edge` (B, H, W) uint8 of 0 and 1, and `coverage` (B,) text of the masks as they
        are stored. An image that cannot be read is black, not usable, and its detail says "status:
        why". Raises ConfigError where images come out in several sizes, StorageError where the
        network takes any size and not one image could be read.
        """
        members = self._taken(rows)
        by_slot = dict(self._made_of(members, positions))
        made = [by_slot[slot] for slot in range(len(members))]
        batch: Batch = {
            "image": _stacked(made, "image", (*self._size(made), 3)),
            "label": np.array(
                [
                    one.label if isinstance(one, TrainingSample) else _label(member)
                    for one, member in zip(made, members, strict=True)
                ]
            ),
            "usable": np.array([isinstance(one, TrainingSample) for one in made]),
            "row": np.asarray(rows, np.int64),
            "image_id": np.array([member.image_id for member in members], np.int64),
            "group": np.array([_group(member) for member in members], np.int64),
            "detail": np.array(
                ["" if isinstance(one, TrainingSample) else str(one) for one in made], np.str_
            ),
        }
        if self._masks is not None:
            batch |= {
                name: _stacked(made, name, batch["image"].shape[1:3]) for name in ("mask", "edge")
            }
            batch["coverage"] = np.array(
                [one.coverage if isinstance(one, TrainingSample) else "part" for one in made],
                np.str_,
            )
        return batch

    def load_steps(
        self, order: sampling.SampleOrder, steps: Sequence[int], rank: int = 0, world: int = 1
    ) -> Batch:
        """What one of `world` workers sees in these steps of an order of the same rows, one after
        another in one batch.

        What lies together in a container is then read together. See `load` and `SampleOrder.share`.
        """
        shares = [order.share(step, rank, world) for step in steps]
        rows, positions = (np.concatenate(parts) for parts in zip(*shares, strict=True))
        return self.load(rows, positions)

    def made(
        self,
        rows: Sequence[int] | sampling.Positions,
        positions: Sequence[int] | sampling.Positions,
    ) -> Iterator[tuple[int, TrainingSample | InputError]]:
        """The same images one by one, of whatever sizes: each slot, and what is ready for the
        network or why there is nothing.
        """
        return self._made_of(self._taken(rows), positions)

    def images(
        self, rows: Sequence[int] | sampling.Positions
    ) -> Iterator[tuple[int, Image.Image | InputError]]:
        """Every row with its decoded RGB image, as it is, or the reason why there is none; in the
        order in which they are read best.
        """
        for slot, data in self._read(self._taken(rows)):
            try:
                yield int(rows[slot]), self._image(data)
            except InputError as refused:
                yield int(rows[slot]), refused

    def _made_of(
        self, members: Sequence[ManifestMember], positions: Sequence[int] | sampling.Positions
    ) -> Iterator[tuple[int, TrainingSample | InputError]]:
        # Each is made as it arrives, so that only one image is in memory at its full size.
        for slot, data in self._read(members):
            try:
                yield slot, self._made(members[slot], self._image(data), int(positions[slot]))
            except InputError as refused:
                yield slot, refused

    def _taken(self, rows: Sequence[int] | sampling.Positions) -> list[ManifestMember]:
        """The members in these rows. `Table.take` would copy the texts of the whole table for every
        batch.
        """
        wanted = np.asarray(rows, np.int64)
        places = np.searchsorted(self._starts, wanted, side="right") - 1
        slices = [
            self._batches[place].slice(row, 1)
            for place, row in zip(places, wanted - self._starts[places], strict=True)
        ]
        return member_rows(pa.Table.from_batches(slices, self.rows.schema).combine_chunks())

    def _read(self, members: Sequence[ManifestMember]) -> Iterator[tuple[int, bytes | InputError]]:
        """Every member's slot and bytes: container after container, each from its start to its end."""
        slots = sorted(range(len(members)), key=lambda slot: _where(members[slot]))
        arriving = self._members.read([members[slot] for slot in slots])
        yield from ((slot, data) for slot, (_, data) in zip(slots, arriving, strict=True))

    def _image(self, data: bytes | InputError) -> Image.Image:
        if isinstance(data, InputError):
            raise data
        return decode_image(data, self._limits).pixels

    def _made(self, member: ManifestMember, image: Image.Image, position: int) -> TrainingSample:
        mask = None if self._masks is None else self._masks.read(member, image.size)
        is_stored = (
            mask is not None
            and member.input["label"] == "fake"
            and member.input.get("mask_uri") is not None
        )
        coverage: Coverage = coverage_of(mask) if mask is not None and is_stored else "part"
        sample = ImageSample(image, mask, _label(member))
        if self._policy is not None:
            sample = self._policy(
                sample, np.random.default_rng([self._seed, _AUGMENTATION, position])
            )
        pixels = (
            np.asarray(sample.image)
            if sample.finished
            else self._preprocessing.prepare(sample.image)
        )
        if sample.mask is None:
            return TrainingSample(pixels, sample.label)
        altered = np.asarray(sample.mask) > 127
        # A crop may have left the altered part out: then what is seen is real
        # (specs/localization.md §1.7). Without one the label holds.
        may_be_lost = (
            self._policy is not None and sample.label == 1 and is_stored and coverage != "empty"
        )
        label = int(altered.any()) if may_be_lost else sample.label
        # the edge before the resize, as wide as the reference's
        mask_and_edge = (altered, edge_map(altered))
        fitted_mask, fitted_edge = (self._fitted(one, sample.finished) for one in mask_and_edge)
        return TrainingSample(pixels, label, fitted_mask, fitted_edge, coverage)

    def _fitted(self, mask: npt.NDArray[np.bool_], finished: bool) -> Pixels:
        """A mask as 0 and 1 in the geometry of its prepared image: nearest neighbours as OpenCV
        takes them, then the same crop.
        """
        fitted = mask.astype(np.uint8)
        if finished:
            return fitted
        if side := self._preprocessing.resize.size:
            down, across = (np.arange(side) * length // side for length in mask.shape)
            fitted = fitted[down[:, None], across]
        crop = self._preprocessing.model_copy(update={"resize": Resize()})
        return (
            crop.prepare(Image.fromarray(fitted).convert("RGB"))[..., 0]
            if crop.center_crop
            else fitted
        )

    def _size(self, made: Sequence[TrainingSample | InputError]) -> tuple[int, int]:
        sizes = {one.image.shape[:2] for one in made if isinstance(one, TrainingSample)}
        if len(sizes) > 1:
            message = " and ".join(f"{width} × {height}" for height, width in sorted(sizes)[:2])
            raise ConfigError(
                f"one batch has images of {message} pixels",
                hint="take a policy that crops them to one size, or batches of one",
            )
        size = next(iter(sizes), self._preprocessing.shape)
        if size is None:
            raise StorageError(
                f"not one of {len(made)} images can be read; the first: {made[0]}",
                hint="is the source still there?",
            )
        return size


def load_run(
    loader: BatchLoader, order: sampling.SampleOrder, steps: range, rank: int, world: int
) -> list[tuple[int, Batch]]:
    """Return the batches of one of `world` workers for neighbouring steps, each with its step.

    Neighbours in a container are then read together.
    """
    batch = loader.load_steps(order, steps, rank, world)
    size = len(batch["label"]) // len(steps)
    return [
        (
            step,
            {name: values[number * size : (number + 1) * size] for name, values in batch.items()},
        )
        for number, step in enumerate(steps)
    ]


def run_length(job: TrainingJob) -> int:
    """Return how many steps `load_run` takes at once: as many as give images of `RUN_BYTES`."""
    height, width = job.card.preprocessing.shape or (1, 1)
    planes = 5 if job.wants_masks else 3
    step_bytes = job.config.loop.batch * planes * height * width
    return max(1, min(MAX_RUN, RUN_BYTES * job.layout.least // step_bytes))


def plain_loader(job: TrainingJob, split: str, policy: Policy | None = None) -> BatchLoader:
    """What reads a split of a job, changed by `policy`; without one, images are as scoring would
    see them.
    """
    config = job.config
    return BatchLoader(
        job.rows(split),
        job.card.preprocessing,
        policy=policy,
        seed=config.loop.seed,
        masks=job.wants_masks,
        limits=config.limits,
        fetcher=Fetcher(guard=job.guard),
    )


def training_loader(job: TrainingJob) -> BatchLoader:
    """Return a loader of the training split that augments images as the recipe's policy says."""
    from ray_app.transforms.policy import make_policy

    shape = job.card.preprocessing.shape
    return plain_loader(
        job,
        "train",
        make_policy(
            job.config.augmentation, side=shape[0] if shape else None, statistics=job.statistics
        ),
    )


def measure_real(loader: BatchLoader, count: int, seed: int) -> RealStatistics:
    """Areas and sharpness of up to `count` real images, drawn from the loader's rows. Raises
    ConfigError where none can be read.
    """
    reals = np.flatnonzero(~labels.fakes(loader.rows))
    drawn = np.random.default_rng([seed, _STATISTICS]).permutation(reals)[:count]
    areas, sharpnesses = [], []
    for start in range(0, len(drawn), _AT_ONCE):
        for _, image in loader.images(drawn[start : start + _AT_ONCE]):
            if isinstance(image, Image.Image):
                areas.append(image.width * image.height)
                sharpnesses.append(sharpness(image))
    if not areas:
        raise ConfigError(
            f"none of {len(drawn)} real images can be read, so what real images are like is not known"
        )
    return RealStatistics(np.array(areas, np.int64), np.array(sharpnesses, np.float64))


def _where(member: ManifestMember) -> tuple[bool, str, str, int, int]:
    place = member.place
    group, offset = (place.group, place.offset) if place else (0, 0)
    return place is not None, member.uri, member.version, group, offset


def _label(member: ManifestMember) -> int:
    return int(member.input["label"] == "fake")


def _group(member: ManifestMember) -> int:
    """A number for the group, the same on every machine; a row without one is its own."""
    name = member.input.get("group")
    return (
        member.image_id
        if name is None
        else int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)
    )


def _stacked(
    made: Sequence[TrainingSample | InputError], name: str, shape: tuple[int, ...]
) -> Pixels:
    """(B, *shape), zero where an image is missing."""
    batch = np.zeros((len(made), *shape), np.uint8)
    for slot, one in enumerate(made):
        if isinstance(one, TrainingSample):
            batch[slot] = getattr(one, name)
    return batch
