"""Labelled images → three disjoint parts, to fit on, to calibrate on, to choose thresholds on (`Division`).

Images that are not independent (copies, one scene, one source) form a group, and one part holds all of a group. Which part that is follows
from the bytes of its files and a seed, never from where they lie.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Literal, NoReturn

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ray_app.datasets.near_duplicates import NEAR_BITS, Pairs, near_pairs
from ray_app.ensembles.population import LabelledPart
from ray_app.errors import ConfigError
from ray_app.evaluation.calibrate.data import CalibrationData, Places
from ray_app.evaluation.calibrate.files import CalibrateConfig
from ray_app.metrics.arrays import Bools
from ray_app.metrics.effective_size import FEWEST_GROUPS, EffectiveSize

UNNAMED = "a generator that is not told"
_SIXTEEN_DIGITS = re.compile("[0-9a-fA-F]{16}")
_COMPARED = 2_000  # images of each part whose perceptual hashes are compared
Name = Literal["fit", "calibrate", "choose"]
PARTS: tuple[Name, ...] = ("fit", "calibrate", "choose")
FIT, CALIBRATE, CHOOSE = range(3)
SHARES = (0.3, 0.2, 0.5)
_GOLDEN = (5**0.5 - 1) / 2  # its multiples, modulo 1, are spread evenly however many there are (Weyl)
_ATTEMPTS = 200


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

    @property
    def choosing_reals(self) -> Bools:
        """Which of those are reals, each picture once."""
        reals: Bools = self.reals[self.parts == CHOOSE]
        return reals

    def without(self, gone: Bools, seed: int) -> "Division":
        """The other images in the same parts; divided anew where a part would be left without fakes. Raises ConfigError as `split`."""
        kept = ~gone
        rest, parts = self.labelled.take(kept), self.parts[kept]
        groups = np.unique(self.groups[kept], return_inverse=True)[1]
        if set(parts[rest.fake].tolist()) < {FIT, CALIBRATE, CHOOSE}:
            parts = split(rest, groups, seed=seed)
        return Division(rest, groups, parts, self.copies[kept])


def groups_of(labelled: CalibrationData, *, share_generators: bool = False, share_sources: bool = False) -> Places:
    """(n,) the number of each image's group, 0 … groups − 1.

    Images are of one group that share their bytes or what a picture shows (perceptual hashes within
    `datasets.near_duplicates.NEAR_BITS`), those that share a source, unless the parts may share sources, and fakes that share a generator,
    unless the parts may share generators; and so are images that hang together by way of others. Fakes without a generator's name count as
    those of one: nothing shows that they are of several.
    """
    links = [_coded(labelled.sha256), _phash_codes(labelled.phash)]
    if not share_sources:
        links.append(_coded(labelled.source))
    if not share_generators:
        links.append(_coded(generators_of(labelled)))
    return _linked(links)


def repeated(labelled: CalibrationData) -> NDArray[np.bool_]:
    """(n,) whether an image has the bytes or the perceptual hash of another of its class, with a smaller sha256, that can stand for both.

    A rate whose bound takes images for independent counts such ones once. A real is no copy of the fake that was made of it.
    """
    groups = 2 * _linked([_coded(labelled.sha256), _phash_codes(labelled.phash)]) + labelled.fake
    order = np.lexsort((np.array(labelled.sha256, dtype="S"), groups))
    is_repeated = np.ones(len(groups), bool)
    is_repeated[order[np.unique(groups[order], return_index=True)[1]]] = False
    return is_repeated


def divided(
    labelled: CalibrationData, groups: Places, *, shares: Sequence[float] = SHARES, seed: int = 0, regroup: bool = False
) -> tuple[Places, int]:
    """(n,) the part of each image, and how many images were moved: as the user divides them where one has a `part`, else by `split`."""
    if all(part is None for part in labelled.part):
        return split(labelled, groups, shares, seed), 0
    return given_parts(labelled, groups, regroup=regroup)


def split(labelled: CalibrationData, groups: Places, shares: Sequence[float] = SHARES, seed: int = 0) -> Places:
    """(n,) the part, FIT, CALIBRATE or CHOOSE, of each image with group (n,) 0 … groups − 1: whole groups, near the shares of each class.

    A systematic sample: groups in an order of class, size and then the draw are dealt to the parts by the golden ratio from a drawn start.
    So each group is as likely in a part as the part's share says, however large it is and whatever its images score, and groups of each
    class and size are divided in those shares. It is drawn again while a part lacks a class.
    Raises ConfigError where a class has fewer than three groups, or no draw gives each part both classes.
    """
    sizes = np.stack([np.bincount(groups[labelled.fake == fake], minlength=int(groups.max()) + 1) for fake in (False, True)], axis=1)
    _refuse_few_groups(labelled, sizes)
    heads = _heads(labelled, groups)
    parts: Places = np.empty(0, np.int64)
    for attempt in range(_ATTEMPTS):
        drawn = _drawn(heads, f"touchstone parts {seed} {attempt}" if attempt else f"touchstone parts {seed}")
        parts = _dealt(sizes, drawn, shares)[groups]
        if all(len(np.unique(parts[labelled.fake == fake])) == len(shares) for fake in (False, True)):
            return parts
    _refuse_one_class(labelled, parts)
    return parts


def given_parts(labelled: CalibrationData, groups: Places, *, regroup: bool = False) -> tuple[Places, int]:
    """(n,) the part of each image by the user's own column, and how many images were moved.

    Raises ConfigError for images without a part or with one of another name, where a group lies in several parts, unless they are
    regrouped (the group then goes to the part that most of its images are in), and where a part lacks a class.
    """
    if unknown := sorted({str(part) for part in labelled.part} - set(PARTS)):
        images = sum(str(part) in unknown for part in labelled.part)
        raise ConfigError(
            f"labels: {images:,} of {len(labelled):,} images have the part {unknown[0]!r}",
            hint="every image has the part fit, calibrate or choose, or none has one",
        )
    parts = np.array([PARTS.index(str(part)) for part in labelled.part], np.int64)
    count = int(groups.max()) + 1
    members = np.bincount(groups * len(PARTS) + parts, minlength=count * len(PARTS)).reshape(count, len(PARTS))
    crossing = (members > 0).sum(axis=1) > 1
    if crossing.any() and not regroup:
        refuse_crossings(labelled, groups, parts, np.flatnonzero(crossing), PARTS)
    whole: Places = members.argmax(axis=1)[groups]
    _refuse_one_class(labelled, whole)
    return whole, int((whole != parts).sum())


def refuse_crossings(labelled: CalibrationData, groups: Places, parts: Places, crossing: Places, names: Sequence[str]) -> NoReturn:
    """Raises ConfigError that names two images of the first of these groups, in different parts, and what they have in common."""
    members = np.flatnonzero(groups == crossing[0])
    one, other, why = _tied(labelled.take(members), parts[members])
    first, second = (_named(labelled, int(members[place]), names[parts[members[place]]]) for place in (one, other))
    more = f"; {len(crossing):,} groups of images are divided so" if len(crossing) > 1 else ""
    raise ConfigError(
        f"labels: {first} and {second} {why}{more}",
        hint="--regroup moves each such group whole to the part that most of its images are in",
    )


def generators_of(labelled: CalibrationData) -> list[str | None]:
    """The generator of each fake, UNNAMED where it is not known; None for reals."""
    return [(name or UNNAMED) if fake else None for name, fake in zip(labelled.generator, labelled.fake.tolist(), strict=True)]


def described(labelled: CalibrationData, groups: Places, parts: Places) -> tuple[LabelledPart, ...]:
    """The three parts as an ensemble card names them; the hash is that of `sort` over their files' sha256, one per line."""
    found = []
    for number, name in enumerate(PARTS):
        places = np.flatnonzero(parts == number).tolist()
        lines = "".join(f"{sha256}\n" for sha256 in sorted(labelled.sha256[place] for place in places))
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


def _linked(links: list[Places]) -> Places:
    """(n,) the group of each image: those that have an equal code in one of the links (n,) hang together; -1 links to nothing."""
    n = len(links[0])
    edges, nodes = [], n  # a code is a node of its own, after the images
    for codes in links:
        coded = np.flatnonzero(codes >= 0)
        edges.append(np.stack([coded, nodes + codes[coded]], axis=1))
        nodes += int(codes.max(initial=-1)) + 1
    return np.unique(_connected(nodes, np.concatenate(edges))[:n], return_inverse=True)[1].astype(np.int64)


def _coded(texts: Iterable[str | None]) -> Places:
    """(n,) a number for each different text, -1 for None."""
    codes: Places = pa.array(texts, pa.string()).dictionary_encode().indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    return codes


def _phash_codes(phashes: Iterable[str | None]) -> Places:
    """(n,) a number for all hashes that hang together by likeness, -1 for None."""
    encoded = pa.array(phashes, pa.string()).dictionary_encode()
    hashes = np.array([_hash(text) for text in encoded.dictionary.to_pylist()], np.uint64)
    different, place_of = np.unique(hashes, return_inverse=True)  # a hash may be written in two ways
    alike = _connected(len(different), near_pairs(different))[place_of]
    codes: Places = np.append(alike, -1)[encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)]
    return codes


def _connected(nodes: int, edges: Pairs) -> Places:
    """(nodes,) the component of each node of a graph with edges (m, 2)."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(edges), np.int8), (edges[:, 0], edges[:, 1])), shape=(nodes, nodes))
    components: Places = connected_components(graph, directed=False)[1].astype(np.int64)
    return components


def _hash(text: str) -> int:
    if not _SIXTEEN_DIGITS.fullmatch(text):
        raise ConfigError(f"labels: the phash {text!r} is no hash of 64 bits", hint="16 hexadecimal digits, as `score` writes them")
    return int(text, 16)


def _named(labelled: CalibrationData, place: int, part: str) -> str:
    return f"image {labelled.image_id[place]} (sha256 {labelled.sha256[place][:12]}…, part {part})"


def _tied(group: CalibrationData, parts: Places) -> tuple[int, int, str]:
    """Two places of a group in different parts, and what ties them."""
    shared: list[tuple[Sequence[str | None], Callable[[str], str]]] = [
        (group.sha256, lambda _: "are the same file"),
        (group.source, lambda name: f"share the source '{name}'"),
        (generators_of(group), lambda name: f"are both by {name}"),
    ]
    for column, words in shared:
        seen: dict[str, int] = {}
        for place, key in enumerate(column):
            if key is not None and parts[seen.setdefault(key, place)] != parts[place]:
                return seen[key], place, words(key)
    return _alike(group, parts)


def _alike(group: CalibrationData, parts: Places) -> tuple[int, int, str]:
    """Two in different parts that look alike; where none of those compared do, two that hang together by way of others."""
    hashed = [place for place, phash in enumerate(group.phash) if phash is not None]
    for part in np.unique(parts):
        mine, others = (list(islice((p for p in hashed if (parts[p] == part) == same), _COMPARED)) for same in (True, False))
        hashes = [np.array([int(str(group.phash[place]), 16) for place in places], np.uint64) for places in (mine, others)]
        near = np.argwhere(np.bitwise_count(hashes[0][:, None] ^ hashes[1][None, :]) <= NEAR_BITS)
        if len(near):
            return mine[near[0, 0]], others[near[0, 1]], "look alike"
    return 0, int(np.flatnonzero(parts != parts[0])[0]), "hang together by way of others that look alike"


def _heads(labelled: CalibrationData, groups: Places) -> NDArray[np.uint64]:
    """(groups,) the smallest sha256 of each group's files, of which the first 64 bits."""
    heads = np.array([int(sha256[:16], 16) for sha256 in labelled.sha256], np.uint64)
    least = np.full(int(groups.max()) + 1, np.iinfo(np.uint64).max)
    np.minimum.at(least, groups, heads)
    return least


def _drawn(heads: NDArray[np.uint64], key: str) -> NDArray[np.uint64]:
    """(groups,) a number for each group, from its files and a key."""
    words = b"".join(hashlib.blake2b(head.tobytes(), digest_size=8, key=key.encode()).digest() for head in heads.astype(">u8"))
    return np.frombuffer(words, ">u8").astype(np.uint64)


def _dealt(sizes: NDArray[np.int64], drawn: NDArray[np.uint64], shares: Sequence[float]) -> Places:
    """(groups,) the part of each group with so many reals and fakes (groups, 2): those of fakes last, then larger before smaller."""
    has_fakes, magnitude = sizes[:, 1] > 0, np.log2(sizes.sum(axis=1)).astype(int)
    order = np.lexsort((drawn, -magnitude, sizes[:, 0] == 0, has_fakes))
    start = float(np.bitwise_xor.reduce(drawn)) / 2.0**64
    places = (start + np.arange(len(order)) * _GOLDEN) % 1
    part_of: Places = np.empty(len(order), np.int64)
    part_of[order] = np.searchsorted(np.cumsum(shares)[:-1] / np.sum(shares), places, "right")
    return part_of


def refuse_dependent(division: Division, size: EffectiveSize, needed: int, config: CalibrateConfig) -> None:
    """Raises ConfigError where reals hang together in too few groups, or one of them dominates, for a bound that `needed` could give."""
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
    """What would give the reals more groups: generators that edit photographs tie them, else it is their sources."""
    reals = division.labelled.take(division.reals)
    if len(np.unique(groups_of(reals))) >= max(FEWEST_GROUPS, 2 * size.groups):
        return "--share-generators lets the parts share generators, whose fakes tie the photographs beside them"
    return "label reals of more sources, none of which dominates; or --share-sources, which promises for archives of these very sources"


def _name_of(division: Division, group: int) -> str:
    """A group's name: the source that most of its images have, else their generator."""
    members = division.labelled.take(division.groups == group)
    sources, makers = (Counter(filter(None, column)).most_common(1) for column in (members.source, members.generator))
    return f"the source '{sources[0][0]}'" if sources else f"what belongs to {makers[0][0]}" if makers else "what looks alike"


def _refuse_few_groups(labelled: CalibrationData, sizes: NDArray[np.int64]) -> None:
    """Raises ConfigError where the reals or the fakes form fewer groups than there are parts."""
    real_groups, fake_groups = (sizes > 0).sum(axis=0).tolist()
    names = sorted({name for name in generators_of(labelled) if name is not None})
    if not real_groups or not fake_groups:
        raise ConfigError("calibration needs real and fake images", hint="label images of both classes")
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
                raise ConfigError(f"the part {name} has no {kind} image", hint="label more images, of more sources and generators")
