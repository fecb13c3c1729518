"""Turn rows of a labelled table into batches of arrays: `BatchLoader`.

The loader reads, decodes, augments, and resizes images. A batch depends only on its rows, their
positions in the training, and the seed. It does not depend on the process or on other batches.
"""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from ray_app.archives import ManifestMember, MemberReader, rows_to_members
from ray_app.datasets import labels, sampling
from ray_app.datasets.mask_pixels import Coverage, measure_coverage
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

_AUGMENTATION, _STATISTICS = 6, 7  # Random streams, apart from others of the same seed.
_AT_ONCE = 64
RUN_BYTES, MAX_RUN = 2**25, 8
_COLUMNS = (
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
    """One image ready for the network.

    Attributes:
        image: Pixels (H, W, 3).
        label: 1 for fake, 0 for real.
        mask: Mask (H, W), 1 at altered pixels. None without masks.
        edge: Edge (H, W), 1 at pixels of the mask's edge. None without masks.
        coverage: How much of the image the stored mask of a fake marks as altered: "part", "empty",
            or "full". "part" for other images.
    """

    image: Pixels
    label: int
    mask: Pixels | None = None
    edge: Pixels | None = None
    coverage: Coverage = "part"


class BatchLoader:
    """Makes batches from the rows of a labelled table. Each process has its own loader.

    Args:
        rows: The labelled table. The loader copies only slices of it.
        preprocessing: How images are prepared.
        policy: The augmentation. None leaves images as they are, as for validation.
        seed: Seed of the augmentation.
        masks: Whether batches also have the masks of altered pixels, and the edges of the masks.
        limits: Maximum bytes and pixels of an image. An image beyond them counts as unreadable.
        fetcher: Reads files. None for a new one.

    Raises:
        ConfigError: The preprocessing cannot resize masks.
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
                f"preprocessing.resize.mode {preprocessing.resize.mode} cannot resize masks",
                hint="set preprocessing.resize.mode to squash or none",
            )
        self.rows = rows.select([name for name in _COLUMNS if name in rows.schema.names])
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
        """Load a batch of B rows.

        The position of a row seeds the augmentation of its image. A row with an equal position
        always gives the same image. An image that cannot be read is black and not usable, and its
        `detail` is "STATUS: REASON".

        Args:
            rows: Row numbers (B,) in the labelled table.
            positions: Positions (B,). A position counts all images that the training loads, from 0,
                over all epochs.

        Returns:
            Arrays by name.
            `image` (B, H, W, 3): uint8 RGB.
            `label` (B,): int64, 1 for fake.
            `usable` (B,): bool, whether the image could be read.
            `row` and `image_id` (B,): int64.
            `group` (B,): int64, equal for rows of one group.
            `detail` (B,): text, empty for a usable image.
            With masks also `mask` and `edge` (B, H, W): uint8 of 0 and 1.
            With masks also `coverage` (B,): "part", "empty", or "full", of the masks as stored.

        Raises:
            ConfigError: The prepared images have different sizes.
            StorageError: No image could be read, and the network has no fixed input size.
        """
        members = self._take_members(rows)
        by_slot = dict(self._iter_members(members, positions))
        samples = [by_slot[slot] for slot in range(len(members))]
        batch: Batch = {
            "image": _stack(samples, "image", (*self._common_size(samples), 3)),
            "label": np.array(
                [
                    sample.label if isinstance(sample, TrainingSample) else _encode_label(member)
                    for sample, member in zip(samples, members, strict=True)
                ]
            ),
            "usable": np.array([isinstance(sample, TrainingSample) for sample in samples]),
            "row": np.asarray(rows, np.int64),
            "image_id": np.array([member.image_id for member in members], np.int64),
            "group": np.array([_hash_group(member) for member in members], np.int64),
            "detail": np.array(
                ["" if isinstance(sample, TrainingSample) else str(sample) for sample in samples],
                np.str_,
            ),
        }
        if self._masks is not None:
            batch |= {
                name: _stack(samples, name, batch["image"].shape[1:3]) for name in ("mask", "edge")
            }
            batch["coverage"] = np.array(
                [
                    sample.coverage if isinstance(sample, TrainingSample) else "part"
                    for sample in samples
                ],
                np.str_,
            )
        return batch

    def load_steps(
        self, order: sampling.SampleOrder, steps: Sequence[int], rank: int = 0, world: int = 1
    ) -> Batch:
        """Load the images of one worker for several steps as one batch.

        Images that are neighbours in a container, such as a tar file, are then read together. See
        `load` and `SampleOrder.shard`.

        Args:
            order: Computes the rows of each step.
            steps: Numbers of the steps.
            rank: Rank of the worker.
            world: Number of workers.

        Returns:
            The batch, with the images of the first step first.
        """
        shares = [order.shard(step, rank, world) for step in steps]
        rows, positions = (np.concatenate(parts) for parts in zip(*shares, strict=True))
        return self.load(rows, positions)

    def iter_samples(
        self,
        rows: Sequence[int] | sampling.Positions,
        positions: Sequence[int] | sampling.Positions,
    ) -> Iterator[tuple[int, TrainingSample | InputError]]:
        """Yield the sample of each requested row, or the error of reading it.

        The first item of a pair is the index in `rows`. The order is that of the files in storage.
        The samples may have different sizes.

        Args:
            rows: Row numbers (B,) in the labelled table.
            positions: Positions (B,) of the rows in the whole training, which seed the
                augmentation.
        """
        return self._iter_members(self._take_members(rows), positions)

    def iter_images(
        self, rows: Sequence[int] | sampling.Positions
    ) -> Iterator[tuple[int, Image.Image | InputError]]:
        """Yield each row number with its decoded RGB image, or with the error of reading it.

        The images are not augmented or resized. Their order is that of the files in storage.
        """
        for slot, data in self._read(self._take_members(rows)):
            try:
                yield int(rows[slot]), self._decode(data)
            except InputError as error:
                yield int(rows[slot]), error

    def _iter_members(
        self, members: Sequence[ManifestMember], positions: Sequence[int] | sampling.Positions
    ) -> Iterator[tuple[int, TrainingSample | InputError]]:
        # A sample is made as its file arrives, so that only one image of full size is in memory.
        for slot, data in self._read(members):
            try:
                yield (
                    slot,
                    self._make_sample(members[slot], self._decode(data), int(positions[slot])),
                )
            except InputError as error:
                yield slot, error

    def _take_members(self, rows: Sequence[int] | sampling.Positions) -> list[ManifestMember]:
        """Return the members in these rows.

        `Table.take` would copy the strings of the whole table for every batch.
        """
        indices = np.asarray(rows, np.int64)
        batch_indices = np.searchsorted(self._starts, indices, side="right") - 1
        slices = [
            self._batches[batch_index].slice(row, 1)
            for batch_index, row in zip(
                batch_indices, indices - self._starts[batch_indices], strict=True
            )
        ]
        return rows_to_members(pa.Table.from_batches(slices, self.rows.schema).combine_chunks())

    def _read(self, members: Sequence[ManifestMember]) -> Iterator[tuple[int, bytes | InputError]]:
        """Yield every member's slot and bytes, container by container, each from start to end."""
        slots = sorted(range(len(members)), key=lambda slot: _sort_key(members[slot]))
        arriving = self._members.read([members[slot] for slot in slots])
        yield from ((slot, data) for slot, (_, data) in zip(slots, arriving, strict=True))

    def _decode(self, data: bytes | InputError) -> Image.Image:
        if isinstance(data, InputError):
            raise data
        return decode_image(data, self._limits).pixels

    def _make_sample(
        self, member: ManifestMember, image: Image.Image, position: int
    ) -> TrainingSample:
        mask = None if self._masks is None else self._masks.read(member, image.size)
        is_stored = (
            mask is not None
            and member.input["label"] == "fake"
            and member.input.get("mask_uri") is not None
        )
        coverage: Coverage = measure_coverage(mask) if mask is not None and is_stored else "part"
        sample = ImageSample(image, mask, _encode_label(member))
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
        # If a crop has removed the altered part, the rest of the image is real. Without a policy
        # there is no crop, and the label holds.
        may_be_lost = (
            self._policy is not None and sample.label == 1 and is_stored and coverage != "empty"
        )
        label = int(altered.any()) if may_be_lost else sample.label
        # The edge is made before the resize, so that it is as wide as in the reference code.
        mask_and_edge = (altered, edge_map(altered))
        fitted_mask, fitted_edge = (
            self._fit_mask(array, sample.finished) for array in mask_and_edge
        )
        return TrainingSample(pixels, label, fitted_mask, fitted_edge, coverage)

    def _fit_mask(self, mask: npt.NDArray[np.bool_], finished: bool) -> Pixels:
        """Return a mask as 0 and 1 in the geometry of its prepared image.

        Nearest neighbours are chosen as OpenCV does, then the image's crop follows.
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

    def _common_size(self, samples: Sequence[TrainingSample | InputError]) -> tuple[int, int]:
        sizes = {sample.image.shape[:2] for sample in samples if isinstance(sample, TrainingSample)}
        if len(sizes) > 1:
            message = " and ".join(f"{width} × {height}" for height, width in sorted(sizes)[:2])
            raise ConfigError(
                f"images of a batch must have one size, got {message} pixels",
                hint="use a policy that crops them to one size, or set loop.batch to 1",
            )
        size = next(iter(sizes), self._preprocessing.shape)
        if size is None:
            raise StorageError(
                f"none of {len(samples)} images can be read; the first: {samples[0]}",
                hint="check that the source still exists",
            )
        return size


def load_run(
    loader: BatchLoader, order: sampling.SampleOrder, steps: range, rank: int, world: int
) -> list[tuple[int, Batch]]:
    """Return one worker's batches for consecutive steps, each with the number of its step.

    Images of different steps that are neighbours in a container, such as a tar file, are read
    together.

    Args:
        loader: The loader.
        order: Computes the rows of each step.
        steps: Numbers of the steps.
        rank: Rank of the worker.
        world: Number of workers.
    """
    batch = loader.load_steps(order, steps, rank, world)
    size = len(batch["label"]) // len(steps)
    return [
        (
            step,
            {name: values[index * size : (index + 1) * size] for name, values in batch.items()},
        )
        for index, step in enumerate(steps)
    ]


def count_run_steps(job: TrainingJob) -> int:
    """Return how many consecutive steps `load_run` should load together, from 1 to `MAX_RUN`.

    The images of these steps for one worker take up to `RUN_BYTES`, unless one step takes more.
    """
    height, width = job.card.preprocessing.shape or (1, 1)
    planes = 5 if job.has_masks else 3
    step_bytes = job.config.loop.batch * planes * height * width
    return max(1, min(MAX_RUN, RUN_BYTES * job.layout.least // step_bytes))


def make_loader(job: TrainingJob, split: str, policy: Policy | None = None) -> BatchLoader:
    """Return a loader of a split of a job.

    Args:
        job: The job.
        split: Name of the split.
        policy: The augmentation. None leaves images as scoring would see them.
    """
    config = job.config
    return BatchLoader(
        job.rows(split),
        job.card.preprocessing,
        policy=policy,
        seed=config.loop.seed,
        masks=job.has_masks,
        limits=config.limits,
        fetcher=Fetcher(guard=job.guard),
    )


def make_training_loader(job: TrainingJob) -> BatchLoader:
    """Return a loader of the training split that augments images as the recipe's policy says."""
    from ray_app.transforms.policy import make_policy

    shape = job.card.preprocessing.shape
    return make_loader(
        job,
        "train",
        make_policy(
            job.config.augmentation, side=shape[0] if shape else None, statistics=job.statistics
        ),
    )


def measure_real_images(loader: BatchLoader, count: int, seed: int) -> RealStatistics:
    """Measure areas and sharpness of up to `count` random real images of the loader.

    The augmentation policy openfake-v1 makes fakes more similar to these statistics.

    Args:
        loader: The loader.
        count: Maximum number of images.
        seed: Seed of the random choice.

    Raises:
        ConfigError: No real image can be read.
    """
    reals = np.flatnonzero(~labels.fakes(loader.rows))
    rows = np.random.default_rng([seed, _STATISTICS]).permutation(reals)[:count]
    areas, sharpnesses = [], []
    for start in range(0, len(rows), _AT_ONCE):
        for _, image in loader.iter_images(rows[start : start + _AT_ONCE]):
            if isinstance(image, Image.Image):
                areas.append(image.width * image.height)
                sharpnesses.append(sharpness(image))
    if not areas:
        raise ConfigError(
            f"data.train: none of {len(rows)} real images can be read, but the augmentation openfake-v1 needs their sizes and sharpness",
            hint="check that the sources of data.train still exist, or set augmentation.statistics to an .npz file",
        )
    return RealStatistics(np.array(areas, np.int64), np.array(sharpnesses, np.float64))


def _sort_key(member: ManifestMember) -> tuple[bool, str, str, int, int]:
    location = member.place
    group, offset = (location.group, location.offset) if location else (0, 0)
    return location is not None, member.uri, member.version, group, offset


def _encode_label(member: ManifestMember) -> int:
    return int(member.input["label"] == "fake")


def _hash_group(member: ManifestMember) -> int:
    """Return a number for the group, equal on every machine; a row without one is its own."""
    name = member.input.get("group")
    return (
        member.image_id
        if name is None
        else int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)
    )


def _stack(
    samples: Sequence[TrainingSample | InputError], name: str, shape: tuple[int, ...]
) -> Pixels:
    """Stack one array of each sample (B, *shape); zeros if an image is missing."""
    batch = np.zeros((len(samples), *shape), np.uint8)
    for slot, sample in enumerate(samples):
        if isinstance(sample, TrainingSample):
            batch[slot] = getattr(sample, name)
    return batch
