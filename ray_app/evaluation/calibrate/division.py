"""Divide the labelled images of a calibration into three disjoint parts (`Division`).

The calibrations of the detectors and the rule that combines them are fitted on the first part. The
ensemble is calibrated on the second, and thresholds are chosen on the third. Images that are not
independent (copies, one scene, one source) form a group, and all images of a group are in one part.
If the labels have a column `part`, it determines the part of an image. Otherwise, a seed and the
bytes of the files determine it.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, pairwise
from typing import Literal

import numpy as np
import pyarrow as pa

from ray_app.datasets import splitter
from ray_app.datasets.near_duplicates import DuplicateCriterion, Pairs, connected_groups, near_pairs
from ray_app.ensembles.population import LabelledPart
from ray_app.errors import ConfigError
from ray_app.evaluation.calibrate.config import CalibrateConfig
from ray_app.evaluation.calibrate.data import CalibrationData, Indices
from ray_app.metrics.arrays import Bools
from ray_app.metrics.clusters import MIN_BOUND_GROUPS, EffectiveSize

UNNAMED = "a generator that is not told"
Name = Literal["fit", "calibrate", "choose"]
PARTS: tuple[Name, ...] = ("fit", "calibrate", "choose")
FIT, CALIBRATE, CHOOSE = range(3)
FRACTIONS = (0.3, 0.2, 0.5)
_MAX_ATTEMPTS = 1_000


@dataclass(frozen=True)
class Division:
    """Labelled images in three parts: for fitting, for calibrating, and for choosing thresholds.

    Attributes:
        labelled: The images.
        groups: Number (n,) of the group that each image belongs to (`group_images`). Images of one
            group are not independent, so all of them are in one part.
        parts: The part (n,) of each image, an index of `PARTS`.
        copies: Whether each image (n,) is a copy of another image of its class (`find_copies`).
    """

    labelled: CalibrationData
    groups: Indices
    parts: Indices
    copies: Bools

    @classmethod
    def from_parts(cls, labelled: CalibrationData, groups: Indices, parts: Indices) -> "Division":
        """Return the division of images whose groups and parts are known, and find their copies.

        Args:
            labelled: The images.
            groups: The group (n,) of each image, from `group_images`.
            parts: The part (n,) of each image, an index of `PARTS`.
        """
        return cls(labelled, groups, parts, find_copies(labelled))

    @cached_property
    def fitting(self) -> CalibrationData:
        """The images for fitting the detectors' calibrations and the rule that combines them."""
        return self.labelled.take(self.parts == FIT)

    @cached_property
    def calibrating(self) -> CalibrationData:
        """The images for fitting the calibration of the ensemble's combined score."""
        return self.labelled.take(self.parts == CALIBRATE)

    @cached_property
    def choosing(self) -> CalibrationData:
        """The held-out images for choosing thresholds, on which nothing is fitted."""
        return self.labelled.take(self.parts == CHOOSE)

    @property
    def reals(self) -> Bools:
        """Whether each image (n,) is real and not a copy of another image."""
        reals: Bools = ~self.labelled.fake & ~self.copies
        return reals


def group_images(
    labelled: CalibrationData, *, share_generators: bool = False, share_sources: bool = False
) -> Indices:
    """Divide images into groups that are independent of each other.

    Two images are in one group if they have the same bytes or source, look alike, or are fakes of
    the same generator. Images look alike if their perceptual hashes differ in at most
    `datasets.near_duplicates.NEAR_BITS` bits. Two images are also in one group if a chain of such
    pairs connects them. Fakes without the name of a generator count as fakes of one generator,
    because nothing shows that there are several.

    Args:
        labelled: The images.
        share_generators: Whether fakes of one generator may be in several parts of the calibration
            data. If True, generators do not group fakes.
        share_sources: Whether images of one source may be in several parts of the calibration data.
            If True, sources do not group images.

    Returns:
        The number (n,) of each image's group, from 0.
    """
    criteria = _find_copy_criteria(labelled)
    criteria += [] if share_sources else [DuplicateCriterion("group", *_encode(labelled.source))]
    criteria += (
        []
        if share_generators
        else [DuplicateCriterion("group", *_encode(list_fake_generators(labelled)))]
    )
    return connected_groups(criteria, len(labelled))[0]


def find_copies(labelled: CalibrationData) -> Bools:
    """Return for each image (n,) whether it is a copy of another image of its class.

    Images with the same bytes or a similar perceptual hash are copies of the one with the smallest
    sha256. An upper bound of the false-positive rate requires independent images, so it must not
    count copies. A real image is not a copy of the fake that was made from it.
    """
    groups = 2 * connected_groups(_find_copy_criteria(labelled), len(labelled))[0] + labelled.fake
    order = np.lexsort((np.array(labelled.sha256, dtype="S"), groups))
    is_repeated = np.ones(len(groups), bool)
    is_repeated[order[np.unique(groups[order], return_index=True)[1]]] = False
    return is_repeated


def assign_parts(labelled: CalibrationData, groups: Indices, *, seed: int = 0) -> Indices:
    """Return what each image (n,) is used for, as an index of `PARTS`.

    The part `fit` is for the detectors' calibrations and the rule that combines the detectors.
    `calibrate` is for the ensemble's calibration, and `choose` is for thresholds. If the labels
    have a column `part`, this column is used. Otherwise, the parts are drawn (`draw_parts`).

    Args:
        labelled: The images.
        groups: The group (n,) of each image. All images of a group get one part.
        seed: Seed of the draw.

    Returns:
        The part (n,) of each image.

    Raises:
        ConfigError: The parts are invalid, or there are too few groups.
    """
    if all(part is None for part in labelled.part):
        return draw_parts(labelled, groups, seed)
    return read_parts(labelled, groups)


def draw_parts(labelled: CalibrationData, groups: Indices, seed: int = 0) -> Indices:
    """Draw the part of the calibration data, such as `fit`, for which each image (n,) is used.

    The parts `fit`, `calibrate`, and `choose` have about 0.3, 0.2, and 0.5 of each class, if there
    are many groups. All images of a group get one part. If there are few groups, a part may lack a
    class. Other divisions are then drawn until every part has both classes.

    Args:
        labelled: The images.
        groups: The group (n,) of each image.
        seed: Seed of the draw.

    Returns:
        The part (n,) of each image, an index of `PARTS`.

    Raises:
        ConfigError: A class has fewer than three groups, or no draw gives each part both classes.
    """
    _refuse_few_groups(labelled, groups)
    keys = np.full(int(groups.max()) + 1, np.iinfo(np.uint64).max)
    heads = np.array([int(sha256[:16], 16) for sha256 in labelled.sha256], np.uint64)
    np.minimum.at(keys, groups, heads)
    strata = labelled.fake.astype(np.int64)
    for attempt in range(_MAX_ATTEMPTS):
        splits = splitter.split(
            keys[groups], None if attempt else strata, FRACTIONS, seed + _MAX_ATTEMPTS * attempt
        )
        parts: Indices = splits.astype(np.int64)
        if all(len(np.unique(parts[labelled.fake == fake])) == len(FRACTIONS) for fake in (0, 1)):
            return parts
    _refuse_one_class(labelled, parts)
    return parts


def read_parts(labelled: CalibrationData, groups: Indices) -> Indices:
    """Return what each image (n,) is used for, from the column `part` of the labels.

    The values of the column are `fit`, `calibrate`, and `choose`.

    Args:
        labelled: The images.
        groups: The group (n,) of each image. All images of a group must have one part.

    Returns:
        The part (n,) of each image, an index of `PARTS`.

    Raises:
        ConfigError: An image has no part or an unknown one, a group is in several parts, or a part
            lacks a class.
    """
    if unknown := sorted({str(part) for part in labelled.part} - set(PARTS)):
        images = sum(str(part) in unknown for part in labelled.part)
        raise ConfigError(
            f"labels: the column `part` must have {', '.join(PARTS)}, but {images:,} of {len(labelled):,} images have the part {unknown[0]!r}",
            hint="give every image the part fit, calibrate, or choose, or leave out the column `part`",
        )
    parts = np.array([PARTS.index(str(part)) for part in labelled.part], np.int64)
    count = int(groups.max()) + 1
    members = np.bincount(groups * len(PARTS) + parts, minlength=count * len(PARTS))
    crossing = (members.reshape(count, len(PARTS)) > 0).sum(axis=1) > 1
    if crossing.any():
        raise _crossing_error(labelled, groups, parts, np.flatnonzero(crossing))
    _refuse_one_class(labelled, parts)
    return parts


def _crossing_error(
    labelled: CalibrationData, groups: Indices, parts: Indices, crossing: Indices
) -> ConfigError:
    """Return the error for groups that are in several parts.

    It names two images of the first group, in different parts, and what they have in common.
    """
    members = np.flatnonzero(groups == crossing[0]).tolist()
    shared: list[tuple[Sequence[str | None], str]] = [
        (labelled.sha256, "are the same file"),
        (labelled.source, "share the source '{}'"),
        (list_fake_generators(labelled), "are both by {}"),
    ]
    ties = [
        (position, column[position], template)
        for column, template in shared
        for position in members
        if column[position] is not None
    ]
    first_index: dict[tuple[str, str | None], int] = {}
    pairs = (
        (first_index.setdefault((template, key), position), position, template.format(key))
        for position, key, template in ties
    )
    hashed = [position for position in members if labelled.phash[position] is not None]
    others = (
        (first, second, "look alike, or are connected by images that do")
        for first, second in pairwise(hashed)
    )
    first, second, reason = next(
        pair for pair in chain(pairs, others) if parts[pair[0]] != parts[pair[1]]
    )
    descriptions = [
        f"image {labelled.image_id[index]} (sha256 {labelled.sha256[index][:12]}…, part {PARTS[parts[index]]})"
        for index in (first, second)
    ]
    more = (
        f"; {len(crossing):,} groups of images are divided in this way" if len(crossing) > 1 else ""
    )
    return ConfigError(
        f"labels: {descriptions[0]} and {descriptions[1]} {reason}{more}",
        hint="give all images of a group one part, or leave out the column `part`",
    )


def list_fake_generators(labelled: CalibrationData) -> list[str | None]:
    """Return the generator of each image; None for a real image.

    A fake without the name of a generator has the generator UNNAMED.
    """
    return [
        (name or UNNAMED) if fake else None
        for name, fake in zip(labelled.generator, labelled.fake.tolist(), strict=True)
    ]


def describe_parts(
    labelled: CalibrationData, groups: Indices, parts: Indices
) -> tuple[LabelledPart, ...]:
    """Return counts and a hash of each part of the labelled images, for the ensemble card.

    The hash is the SHA-256 of the sorted sha256 of the files, one per line. By it, one can check
    later whether given files are those of the part.

    Args:
        labelled: The images.
        groups: The group (n,) of each image.
        parts: The part (n,) of each image, an index of `PARTS`.

    Returns:
        A description of each of the three parts, in the order of `PARTS`.
    """
    descriptions = []
    for number, name in enumerate(PARTS):
        indices = np.flatnonzero(parts == number).tolist()
        lines = "".join(
            f"{sha256}\n" for sha256 in sorted(labelled.sha256[index] for index in indices)
        )
        n_fake = int(labelled.fake[parts == number].sum())
        descriptions.append(
            LabelledPart(
                name=name,
                n_real=len(indices) - n_fake,
                n_fake=n_fake,
                groups=len(np.unique(groups[parts == number])),
                sha256=hashlib.sha256(lines.encode()).hexdigest(),
            )
        )
    return tuple(descriptions)


def _encode(column: Sequence[str | None]) -> tuple[Indices, Pairs]:
    """Return a number (n,) for each distinct value, -1 for None, and no pairs of similar values."""
    indices = pa.array(column, pa.string()).dictionary_encode().indices.fill_null(-1)
    return indices.to_numpy(zero_copy_only=False).astype(np.int64), np.empty((0, 2), np.int64)


def _find_copy_criteria(labelled: CalibrationData) -> list[DuplicateCriterion]:
    """Return the criteria for copies: equal bytes, and similar perceptual hashes.

    Raises:
        ConfigError: A perceptual hash is invalid.
    """
    encoded = pa.array(labelled.phash, pa.string()).dictionary_encode()
    values: list[str] = encoded.dictionary.to_pylist()
    if invalid := [value for value in values if not re.fullmatch("[0-9a-fA-F]{16}", value)]:
        raise ConfigError(
            f"labels: invalid phash {invalid[0]!r}, need 16 hexadecimal digits",
            hint="compute hashes with `touchstone data index --hash phash`",
        )
    # A hash may be written in lower or upper case.
    hashes, indices = np.unique(
        np.array([int(value, 16) for value in values], np.uint64), return_inverse=True
    )
    codes = np.append(indices, -1)[encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)]
    return [
        DuplicateCriterion("bytes", *_encode(labelled.sha256)),
        DuplicateCriterion("looks", codes.astype(np.int64), near_pairs(hashes)),
    ]


def refuse_dependent(
    division: Division, size: EffectiveSize, needed: int, config: CalibrateConfig
) -> None:
    """Raise ConfigError if too few real images are independent to bound the false-positive rate.

    Real images are in groups, such as those of one source. Images of one group have similar scores,
    so they count as fewer independent images. The check passes if every image is a group of its
    own.

    Args:
        division: The labelled images, in groups and parts.
        size: The number of independent images that would bound the rate as precisely as the grouped
            real images do.
        needed: The number of independent real images needed to bound the rate at `config.fpr`.
        config: The settings.

    Raises:
        ConfigError: The real images form too few groups, or are worth too few independent images,
            for example because one group dominates.
    """
    if size.groups == size.n or (size.groups >= MIN_BOUND_GROUPS and size.effective >= needed):
        return
    largest = (
        f"{_describe_group(division, size.largest)} has {100 * size.largest_share:.0f} % of them"
    )
    if size.groups < MIN_BOUND_GROUPS:
        reason = (
            f"the {size.n:,} labelled reals form {size.groups} groups ({largest}); with fewer than {MIN_BOUND_GROUPS}, nothing "
            "can be guaranteed for images of further groups"
        )
    else:
        reason = (
            f"the {size.n:,} labelled reals of {size.groups:,} groups are worth {size.effective:,.0f} independent ones, because those of one "
            f"group have similar scores ({largest}); an FPR of {100 * config.fpr:g} % at {100 * config.confidence:g} % confidence needs {needed:,}"
        )
    raise ConfigError(reason, hint=_independence_hint(division, size))


def _independence_hint(division: Division, size: EffectiveSize) -> str:
    """Return the hint that would give the reals more groups.

    Either generators that edit photographs connect the groups, or there are too few sources.
    """
    reals = division.labelled.take(division.reals)
    if len(np.unique(group_images(reals))) >= max(MIN_BOUND_GROUPS, 2 * size.groups):
        return "add --share-generators, because generators connect the groups of photographs that their fakes belong to"
    return "label reals of more sources, none of which dominates, or add --share-sources to limit the guarantee to archives of these sources"


def _describe_group(division: Division, group: int) -> str:
    """Return a group by the source that most of its images have, else by their generator."""
    members = division.labelled.take(division.groups == group)
    sources, generators = (
        Counter(filter(None, column)).most_common(1)
        for column in (members.source, members.generator)
    )
    return (
        f"the source '{sources[0][0]}'"
        if sources
        else f"the group of {generators[0][0]}"
        if generators
        else "a group of similar images"
    )


def _refuse_few_groups(labelled: CalibrationData, groups: Indices) -> None:
    """Check that reals and fakes each form at least as many groups as there are parts.

    Raises:
        ConfigError: There are fewer groups.
    """
    real_groups, fake_groups = (
        len(np.unique(groups[labelled.fake == fake])) for fake in (False, True)
    )
    names = sorted({name for name in list_fake_generators(labelled) if name is not None})
    if not real_groups or not fake_groups:
        raise ConfigError(
            "calibration needs real and fake images", hint="label images of both classes"
        )
    if fake_groups < len(PARTS) and len(names) < len(PARTS):
        reason = f"the fakes are of {len(names)} generator{'s' if len(names) > 1 else ''} ({', '.join(names)})"
        raise ConfigError(
            f"{reason}; three parts without common generators need 3 generators",
            hint="add --share-generators to let the parts share them; nothing is then known about unseen generators",
        )
    if fake_groups < len(PARTS):
        raise ConfigError(
            f"the fakes of {len(names)} generators form {fake_groups} groups by generator, source, or similar images, but 3 are needed",
            hint="add --share-generators, so that only sources and similar images keep fakes together",
        )
    if real_groups < len(PARTS):
        raise ConfigError(
            f"the real images form {real_groups} group{'s' if real_groups > 1 else ''} by source or similar images, but 3 are needed",
            hint="label real images of more sources, or add --share-generators if the generators of fakes connect their sources",
        )


def _refuse_one_class(labelled: CalibrationData, parts: Indices) -> None:
    """Check that every part has reals and fakes.

    Raises:
        ConfigError: A part lacks a class.
    """
    for number, name in enumerate(PARTS):
        for is_fake, kind in ((False, "real"), (True, "fake")):
            if not (labelled.fake[parts == number] == is_fake).any():
                raise ConfigError(
                    f"calibration needs real and fake images in each of its three parts, but the part {name} has no {kind} image",
                    hint="label more images, of more sources and generators",
                )
