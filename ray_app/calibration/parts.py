"""Labelled images → three disjoint parts: to fit on, to calibrate on, to choose thresholds on. Knows groups; fits nothing.

Which part a group is in follows from the bytes of its files and a seed, never from where they lie.
"""

import hashlib
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ray_app.calibration.crossing import refuse_crossings
from ray_app.calibration.grouping import generators_of
from ray_app.calibration.labelled import Labelled, Places
from ray_app.ensembles.population import Part
from ray_app.errors import ConfigError
from ray_app.metrics.arrays import Floats

Name = Literal["fit", "calibrate", "choose"]
PARTS: tuple[Name, ...] = ("fit", "calibrate", "choose")
FIT, CALIBRATE, CHOOSE = range(3)
SHARES = (0.3, 0.2, 0.5)


def divided(
    labelled: Labelled, groups: Places, *, shares: Sequence[float] = SHARES, seed: int = 0, regroup: bool = False
) -> tuple[Places, int]:
    """(n,) the part of each image, and how many images were moved: as the user divides them where one has a `part`, else by `split`."""
    if all(part is None for part in labelled.part):
        return split(labelled, groups, shares, seed), 0
    return given_parts(labelled, groups, regroup=regroup)


def split(labelled: Labelled, groups: Places, shares: Sequence[float] = SHARES, seed: int = 0) -> Places:
    """(n,) the part, FIT, CALIBRATE or CHOOSE, of each image with group (n,) 0 … groups − 1: whole groups, near the shares of each class.

    Groups of several images go, larger before smaller and those with fakes first, where most is lacking; then single images fill up.
    Raises ConfigError where a class has fewer than three groups, or a part is left without a class.
    """
    sizes = np.stack([np.bincount(groups[labelled.fake == fake], minlength=int(groups.max()) + 1) for fake in (False, True)], axis=1)
    _refuse_few_groups(labelled, sizes)
    drawn = _drawn(labelled, groups, seed)
    part_of = np.full(len(sizes), -1)
    _place_large(part_of, sizes, drawn, shares)
    _place_singles(part_of, sizes, drawn, shares)
    parts: Places = part_of[groups]
    _refuse_one_class(labelled, parts)
    return parts


def given_parts(labelled: Labelled, groups: Places, *, regroup: bool = False) -> tuple[Places, int]:
    """(n,) the part of each image by the user's own column, and how many images were moved.

    Raises ConfigError for images without a part or with one of another name, where a group lies in several parts, unless they are
    regrouped (the group then goes to the part that most of its images are in), and where a part lacks a class.
    """
    if unknown := sorted({str(part) for part in labelled.part} - set(PARTS)):
        images = sum(str(part) in unknown for part in labelled.part)
        said = f"{images:,} of {len(labelled):,} images have the part {unknown[0]!r}"
        raise ConfigError(f"labels: {said}", hint="every image has the part fit, calibrate or choose, or none has one")
    parts = np.array([PARTS.index(str(part)) for part in labelled.part], np.int64)
    count = int(groups.max()) + 1
    members = np.bincount(groups * len(PARTS) + parts, minlength=count * len(PARTS)).reshape(count, len(PARTS))
    crossing = (members > 0).sum(axis=1) > 1
    if crossing.any() and not regroup:
        refuse_crossings(labelled, groups, parts, np.flatnonzero(crossing), PARTS)
    whole: Places = members.argmax(axis=1)[groups]
    _refuse_one_class(labelled, whole)
    return whole, int((whole != parts).sum())


def described(labelled: Labelled, groups: Places, parts: Places) -> tuple[Part, ...]:
    """The three parts as an ensemble card names them; the hash is that of `sort` over their files' sha256, one per line."""
    found = []
    for number, name in enumerate(PARTS):
        places = np.flatnonzero(parts == number).tolist()
        lines = "".join(f"{sha256}\n" for sha256 in sorted(labelled.sha256[place] for place in places))
        n_fake = int(labelled.fake[parts == number].sum())
        found.append(
            Part(
                name=name,
                n_real=len(places) - n_fake,
                n_fake=n_fake,
                groups=len(np.unique(groups[parts == number])),
                sha256=hashlib.sha256(lines.encode()).hexdigest(),
            )
        )
    return tuple(found)


def _drawn(labelled: Labelled, groups: Places, seed: int) -> NDArray[np.uint64]:
    """(groups,) a number for each group, from the seed and the smallest sha256 of its files."""
    heads = np.array([int(sha256[:16], 16) for sha256 in labelled.sha256], np.uint64)
    least = np.full(int(groups.max()) + 1, np.iinfo(np.uint64).max)
    np.minimum.at(least, groups, heads)
    key = f"touchstone parts {seed}".encode()
    words = b"".join(hashlib.blake2b(head, digest_size=8, key=key).digest() for head in (int(one).to_bytes(8) for one in least))
    return np.frombuffer(words, ">u8").astype(np.uint64)


def _place_large(part_of: Places, sizes: NDArray[np.int64], drawn: NDArray[np.uint64], shares: Sequence[float]) -> None:
    """Give each group of several images a part; of groups nearly alike in size, the draw says which comes first."""
    large = np.flatnonzero(sizes.sum(axis=1) > 1)
    magnitude = np.log2(np.maximum(sizes, 0.5)).astype(int)[large]
    order = large[np.lexsort((drawn[large], -magnitude[:, 0], -magnitude[:, 1]))]
    totals = sizes.sum(axis=0).tolist()
    lacking = [[share, share] for share in shares]  # of each part, of reals and of fakes, as shares of all of them
    empty = [[True, True] for _ in shares]
    for group, (reals, fakes) in zip(order.tolist(), sizes[order].tolist(), strict=True):
        real, fake = reals / totals[0], fakes / totals[1]
        gains = [
            ((fake > 0 and none[1]) or (fake == 0 and none[0]), real * lack[0] + fake * lack[1])
            for lack, none in zip(lacking, empty, strict=True)
        ]
        best = gains.index(max(gains))
        part_of[group] = best
        lacking[best][0] -= real
        lacking[best][1] -= fake
        empty[best] = [empty[best][0] and not reals, empty[best][1] and not fakes]


def _place_singles(part_of: Places, sizes: NDArray[np.int64], drawn: NDArray[np.uint64], shares: Sequence[float]) -> None:
    """Give the single images of each class, in the order of the draw, to the parts in proportion to what they still lack."""
    for of_class in sizes.T:
        singles = np.flatnonzero((part_of < 0) & (of_class > 0))
        if not len(singles):
            continue
        has = np.array([of_class[part_of == part].sum() for part in range(len(shares))])
        lacking: Floats = np.maximum(np.array(shares) * of_class.sum() - has, 0)
        ends = np.floor(np.cumsum(lacking) / lacking.sum() * len(singles) + 0.5).astype(int)
        ordered = singles[np.argsort(drawn[singles], kind="stable")]
        part_of[ordered] = np.searchsorted(ends, np.arange(len(singles)), side="right").clip(max=len(shares) - 1)


def _refuse_few_groups(labelled: Labelled, sizes: NDArray[np.int64]) -> None:
    """Raises ConfigError where the reals or the fakes form fewer groups than there are parts."""
    real_groups, fake_groups = (sizes > 0).sum(axis=0).tolist()
    names = sorted({name for name in generators_of(labelled) if name is not None})
    if not real_groups or not fake_groups:
        raise ConfigError("calibration needs real and fake images", hint="label images of both classes")
    if fake_groups < len(PARTS) and len(names) < len(PARTS):
        said = f"the fakes are of {len(names)} generator{'s' if len(names) > 1 else ''} ({', '.join(names)})"
        raise ConfigError(
            f"{said}; three parts that have none in common need 3",
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


def _refuse_one_class(labelled: Labelled, parts: Places) -> None:
    """Raises ConfigError where a part lacks reals or fakes."""
    for number, name in enumerate(PARTS):
        for is_fake, kind in ((False, "real"), (True, "fake")):
            if not (labelled.fake[parts == number] == is_fake).any():
                raise ConfigError(f"the part {name} has no {kind} image", hint="label more images, of more sources and generators")
