"""Divide labelled images into three disjoint parts: to fit on, to calibrate on, and to choose
thresholds on (`Division`).

Images that are not independent (copies, one scene, one source) form a group, and one part holds all
of a group. The part follows from the bytes of the group's files and a seed.
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
from ray_app.datasets.near_duplicates import Bond, Pairs, connected_groups, near_pairs
from ray_app.ensembles.population import LabelledPart
from ray_app.errors import ConfigError
from ray_app.evaluation.calibrate.config import CalibrateConfig
from ray_app.evaluation.calibrate.data import CalibrationData, Places
from ray_app.metrics.arrays import Bools
from ray_app.metrics.clusters import FEWEST_GROUPS, EffectiveSize

UNNAMED = "a generator that is not told"
Name = Literal["fit", "calibrate", "choose"]
PARTS: tuple[Name, ...] = ("fit", "calibrate", "choose")
FIT, CALIBRATE, CHOOSE = range(3)
SHARES = (0.3, 0.2, 0.5)
_ATTEMPTS = 1_000


@dataclass(frozen=True)
class Division:
    """`groups` and `parts` (n,) of the images; `copies` (n,): those that another image stands for."""

    labelled: CalibrationData
    groups: Places
    parts: Places
    copies: Bools

    @classmethod
    def of(cls, labelled: CalibrationData, groups: Places, parts: Places) -> "Division":
        """That of images whose groups and parts are known."""
        return cls(labelled, groups, parts, repeated(labelled))

    @cached_property
    def fitting(self) -> CalibrationData:
        """The images that detectors' calibrations and the rule are fitted on."""
        return self.labelled.take(self.parts == FIT)

    @cached_property
    def calibrating(self) -> CalibrationData:
        """The images that the ensemble's calibration is fitted on."""
        return self.labelled.take(self.parts == CALIBRATE)

    @cached_property
    def choosing(self) -> CalibrationData:
        """The images that thresholds are chosen on, and nothing is fitted on."""
        return self.labelled.take(self.parts == CHOOSE)

    @property
    def reals(self) -> Bools:
        """Which images (n,) are reals, each picture once."""
        reals: Bools = ~self.labelled.fake & ~self.copies
        return reals


def groups_of(
    labelled: CalibrationData, *, share_generators: bool = False, share_sources: bool = False
) -> Places:
    """(n,) the number of each image's group, 0 … groups − 1.

    Images are of one group that share their bytes or what a picture shows (perceptual hashes within
    `datasets.near_duplicates.NEAR_BITS`), those that share a source, unless the parts may share
    sources, and fakes that share a generator, unless the parts may share generators; and so are
    images that hang together by way of others. Fakes without a generator's name count as those of
    one: nothing shows that they are of several.
    """
    bonds = _copies(labelled)
    bonds += [] if share_sources else [Bond("group", *_coded(labelled.source))]
    bonds += [] if share_generators else [Bond("group", *_coded(generators_of(labelled)))]
    return connected_groups(bonds, len(labelled))[0]


def repeated(labelled: CalibrationData) -> Bools:
    """(n,) whether an image has the bytes or the perceptual hash of another of its class, with a
    smaller sha256, that can stand for both.

    A rate whose bound takes images for independent counts such ones once. A real is no copy of the
    fake that was made of it.
    """
    groups = 2 * connected_groups(_copies(labelled), len(labelled))[0] + labelled.fake
    order = np.lexsort((np.array(labelled.sha256, dtype="S"), groups))
    is_repeated = np.ones(len(groups), bool)
    is_repeated[order[np.unique(groups[order], return_index=True)[1]]] = False
    return is_repeated


def divided(labelled: CalibrationData, groups: Places, *, seed: int = 0) -> Places:
    """Return the part (n,) of each image: the labels' own column `part` if an image has one, or
    else that of `split`.
    """
    if all(part is None for part in labelled.part):
        return split(labelled, groups, seed)
    return given_parts(labelled, groups)


def split(labelled: CalibrationData, groups: Places, seed: int = 0) -> Places:
    """Return the part (n,), FIT, CALIBRATE, or CHOOSE, of each image: whole groups, near the shares
    of each class.

    The splitter divides the groups of reals and of fakes evenly. If a part then lacks a class, which
    happens if there are few groups, each group is drawn on its own until no part does.

    Raises:
        ConfigError: A class has fewer than three groups, or no draw gives each part both classes.
    """
    _refuse_few_groups(labelled, groups)
    keys = np.full(int(groups.max()) + 1, np.iinfo(np.uint64).max)
    heads = np.array([int(sha256[:16], 16) for sha256 in labelled.sha256], np.uint64)
    np.minimum.at(keys, groups, heads)
    strata = labelled.fake.astype(np.int64)
    for attempt in range(_ATTEMPTS):
        drawn = splitter.split(
            keys[groups], None if attempt else strata, SHARES, seed + _ATTEMPTS * attempt
        )
        parts: Places = drawn.astype(np.int64)
        if all(len(np.unique(parts[labelled.fake == fake])) == len(SHARES) for fake in (0, 1)):
            return parts
    _refuse_one_class(labelled, parts)
    return parts


def given_parts(labelled: CalibrationData, groups: Places) -> Places:
    """Return the part (n,) of each image by the labels' own column.

    Raises:
        ConfigError: An image has no part or an unknown one, a group is in several parts, or a part
            lacks a class.
    """
    if unknown := sorted({str(part) for part in labelled.part} - set(PARTS)):
        images = sum(str(part) in unknown for part in labelled.part)
        raise ConfigError(
            f"labels: {images:,} of {len(labelled):,} images have the part {unknown[0]!r}",
            hint="give every image the part fit, calibrate, or choose, or leave the column out",
        )
    parts = np.array([PARTS.index(str(part)) for part in labelled.part], np.int64)
    count = int(groups.max()) + 1
    members = np.bincount(groups * len(PARTS) + parts, minlength=count * len(PARTS))
    crossing = (members.reshape(count, len(PARTS)) > 0).sum(axis=1) > 1
    if crossing.any():
        raise _crossing(labelled, groups, parts, np.flatnonzero(crossing))
    _refuse_one_class(labelled, parts)
    return parts


def _crossing(
    labelled: CalibrationData, groups: Places, parts: Places, crossing: Places
) -> ConfigError:
    """The error that names two images of the first of these groups, in different parts, and what
    they have in common.
    """
    members = np.flatnonzero(groups == crossing[0]).tolist()
    shared: list[tuple[Sequence[str | None], str]] = [
        (labelled.sha256, "are the same file"),
        (labelled.source, "share the source '{}'"),
        (generators_of(labelled), "are both by {}"),
    ]
    ties = [
        (place, column[place], words)
        for column, words in shared
        for place in members
        if column[place] is not None
    ]
    seen: dict[tuple[str, str | None], int] = {}
    pairs = (
        (seen.setdefault((words, key), place), place, words.format(key))
        for place, key, words in ties
    )
    hashed = [place for place in members if labelled.phash[place] is not None]
    others = (
        (one, other, "look alike, or hang together by others that do")
        for one, other in pairwise(hashed)
    )
    one, other, why = next(
        pair for pair in chain(pairs, others) if parts[pair[0]] != parts[pair[1]]
    )
    named = [
        f"image {labelled.image_id[at]} (sha256 {labelled.sha256[at][:12]}…, part {PARTS[parts[at]]})"
        for at in (one, other)
    ]
    more = f"; {len(crossing):,} groups of images are divided so" if len(crossing) > 1 else ""
    return ConfigError(
        f"labels: {named[0]} and {named[1]} {why}{more}",
        hint="give all images of a group one part, or leave the column part out",
    )


def generators_of(labelled: CalibrationData) -> list[str | None]:
    """The generator of each fake, UNNAMED where it is not known; None for reals."""
    return [
        (name or UNNAMED) if fake else None
        for name, fake in zip(labelled.generator, labelled.fake.tolist(), strict=True)
    ]


def described(labelled: CalibrationData, groups: Places, parts: Places) -> tuple[LabelledPart, ...]:
    """The three parts as an ensemble card names them; the hash is that of `sort` over their files'
    sha256, one per line.
    """
    found = []
    for number, name in enumerate(PARTS):
        places = np.flatnonzero(parts == number).tolist()
        lines = "".join(
            f"{sha256}\n" for sha256 in sorted(labelled.sha256[place] for place in places)
        )
        n_fake = int(labelled.fake[parts == number].sum())
        found.append(
            LabelledPart(
                name=name,
                n_real=len(places) - n_fake,
                n_fake=n_fake,
                groups=len(np.unique(groups[parts == number])),
                sha256=hashlib.sha256(lines.encode()).hexdigest(),
            )
        )
    return tuple(found)


def _coded(column: Sequence[str | None]) -> tuple[Places, Pairs]:
    """(n,) a number for each different text, -1 for None; and no pairs of them."""
    indices = pa.array(column, pa.string()).dictionary_encode().indices.fill_null(-1)
    return indices.to_numpy(zero_copy_only=False).astype(np.int64), np.empty((0, 2), np.int64)


def _copies(labelled: CalibrationData) -> list[Bond]:
    """What binds an image and its copies: equal bytes, and perceptual hashes that are near. Raises
    ConfigError for what is no hash.
    """
    encoded = pa.array(labelled.phash, pa.string()).dictionary_encode()
    texts: list[str] = encoded.dictionary.to_pylist()
    if strange := [text for text in texts if not re.fullmatch("[0-9a-fA-F]{16}", text)]:
        raise ConfigError(
            f"labels: the phash {strange[0]!r} is no hash of 64 bits",
            hint="16 hexadecimal digits, as `touchstone data index --hash phash` writes them",
        )
    # two ways to write one
    hashes, places = np.unique(
        np.array([int(text, 16) for text in texts], np.uint64), return_inverse=True
    )
    codes = np.append(places, -1)[encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)]
    return [
        Bond("bytes", *_coded(labelled.sha256)),
        Bond("looks", codes.astype(np.int64), near_pairs(hashes)),
    ]


def refuse_dependent(
    division: Division, size: EffectiveSize, needed: int, config: CalibrateConfig
) -> None:
    """Raises ConfigError where reals hang together in too few groups, or one of them dominates, for
    a bound that `needed` could give.
    """
    if size.groups == size.n or (size.groups >= FEWEST_GROUPS and size.effective >= needed):
        return
    largest = f"{_name_of(division, size.largest)} has {100 * size.largest_share:.0f} % of them"
    if size.groups < FEWEST_GROUPS:
        reason = (
            f"the {size.n:,} labelled reals hang together in {size.groups} groups ({largest}); of fewer than {FEWEST_GROUPS} nothing "
            "can be promised for images of further ones"
        )
    else:
        reason = (
            f"the {size.n:,} labelled reals of {size.groups:,} groups are worth {size.effective:,.0f} independent ones, since those of "
            f"one group score alike ({largest}); a {100 * config.fpr:g} % target at {100 * config.confidence:g} % needs {needed:,}"
        )
    raise ConfigError(reason, hint=_loosened(division, size))


def _loosened(division: Division, size: EffectiveSize) -> str:
    """What would give the reals more groups: generators that edit photographs tie them, else it is
    their sources.
    """
    reals = division.labelled.take(division.reals)
    if len(np.unique(groups_of(reals))) >= max(FEWEST_GROUPS, 2 * size.groups):
        return "--share-generators lets the parts share generators, whose fakes tie the photographs beside them"
    return "label reals of more sources, none of which dominates; or --share-sources, which promises for archives of these very sources"


def _name_of(division: Division, group: int) -> str:
    """A group's name: the source that most of its images have, else their generator."""
    members = division.labelled.take(division.groups == group)
    sources, makers = (
        Counter(filter(None, column)).most_common(1)
        for column in (members.source, members.generator)
    )
    return (
        f"the source '{sources[0][0]}'"
        if sources
        else f"what belongs to {makers[0][0]}"
        if makers
        else "what looks alike"
    )


def _refuse_few_groups(labelled: CalibrationData, groups: Places) -> None:
    """Raises ConfigError if the reals or the fakes form fewer groups than there are parts."""
    real_groups, fake_groups = (
        len(np.unique(groups[labelled.fake == fake])) for fake in (False, True)
    )
    names = sorted({name for name in generators_of(labelled) if name is not None})
    if not real_groups or not fake_groups:
        raise ConfigError(
            "calibration needs real and fake images", hint="label images of both classes"
        )
    if fake_groups < len(PARTS) and len(names) < len(PARTS):
        reason = f"the fakes are of {len(names)} generator{'s' if len(names) > 1 else ''} ({', '.join(names)})"
        raise ConfigError(
            f"{reason}; three parts that have none in common need 3",
            hint="--share-generators lets the parts share them; nothing is then known of generators that were not seen",
        )
    if fake_groups < len(PARTS):
        raise ConfigError(
            f"the fakes of {len(names)} generators hang together in {fake_groups} groups, by their sources or looks; three parts need 3",
            hint="--share-generators lets the parts share generators, so that sources and looks alone keep fakes together",
        )
    if real_groups < len(PARTS):
        raise ConfigError(
            f"the reals form {real_groups} group{'s' if real_groups > 1 else ''}, by their sources or looks; three parts need 3",
            hint="label reals of more sources; --share-generators, if it is the generators of fakes beside them that tie the sources",
        )


def _refuse_one_class(labelled: CalibrationData, parts: Places) -> None:
    """Raises ConfigError where a part lacks reals or fakes."""
    for number, name in enumerate(PARTS):
        for is_fake, kind in ((False, "real"), (True, "fake")):
            if not (labelled.fake[parts == number] == is_fake).any():
                raise ConfigError(
                    f"the part {name} has no {kind} image",
                    hint="label more images, of more sources and generators",
                )
