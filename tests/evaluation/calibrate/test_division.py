import hashlib
from dataclasses import replace

import numpy as np
import pytest

from ray_app.errors import ConfigError
from ray_app.evaluation.calibrate.division import (
    CALIBRATE,
    CHOOSE,
    FIT,
    PARTS,
    SHARES,
    described,
    divided,
    groups_of,
    repeated,
    split,
)
from tests.evaluation.calibrate.drawn import drawn, labelled_of, sha256_of

# 4 bits apart, one after the other
LOOKS = ["00000000ffffffff", "000000000fffffff", "0000000000ffffff"]


def together(groups):
    """The places of each group of more than one image."""
    return [
        np.flatnonzero(groups == group).tolist()
        for group in np.unique(groups)
        if (groups == group).sum() > 1
    ]


@pytest.mark.parametrize(
    ("columns", "groups"),
    [
        ({}, [[3, 4, 5]]),  # fakes whose generator is not told
        ({"generator": ["G", "G", None, "G", "G", "H"]}, [[3, 4]]),
        (
            {
                "generator": [None, None, None, "G", "H", "I"],
                "source": ["a", None, "a", "a", None, None],
            },
            [[0, 2, 3]],
        ),
        (
            {
                "generator": [None, None, None, "G", "H", "I"],
                "sha256": [sha256_of(k) for k in (0, 1, 0, 3, 4, 4)],
            },
            [[0, 2], [4, 5]],
        ),
        (
            {
                "generator": [None, None, None, "G", "H", "I"],
                "phash": [LOOKS[0], None, LOOKS[2], LOOKS[1], None, None],
            },
            [[0, 2, 3]],
        ),
        (
            {
                "generator": [None, None, None, "G", "H", "I"],
                "phash": [LOOKS[0], None, LOOKS[2], None, None, None],
            },
            [],
        ),
        (
            {
                "generator": [None, None, None, "G", "H", "G"],
                "source": ["a", "a", None, None, "b", "b"],
            },
            [[0, 1], [3, 4, 5]],
        ),
    ],
)
def test_images_hang_together_by_source_bytes_looks_and_generator(columns, groups):
    found = groups_of(labelled_of([False] * 3 + [True] * 3, **columns))
    assert sorted(together(found)) == groups
    assert sorted(set(found.tolist())) == list(range(len(set(found.tolist()))))


def test_one_picture_stands_for_its_copies():
    hashes = [sha256_of(place) for place in (5, 2, 5, 9)]
    images = labelled_of(
        [False] * 4,
        sha256=hashes,
        phash=[LOOKS[0], LOOKS[1], LOOKS[0], "123456789abcdef0"],
        source=["a"] * 4,
    )
    first = min(hashes[:3])
    assert repeated(images).sum() == 2
    assert not repeated(images)[3]
    assert [hashes[place] for place in np.flatnonzero(~repeated(images))] == [first, hashes[3]]


def test_a_real_is_no_copy_of_the_fake_that_was_made_of_it():
    for fake in ([False, True], [True, False]):
        images = labelled_of(
            fake, generator=["G" if one else None for one in fake], phash=LOOKS[:2]
        )
        assert len(set(groups_of(images).tolist())) == 1
        assert not repeated(images).any()


NOBODY_NEAR = [
    f"{number:016x}" for number in np.random.default_rng(1).integers(0, 2**63, 20).tolist()
]


def with_sources(seed=0, reals=3000, fakes=1200):
    """Reals of 400 sources of all sizes, fakes of nine generators, a tenth of them beside reals of
    three sources of one generator.
    """
    rng = np.random.default_rng(seed)
    images = drawn(reals, fakes, seed, generators=9)
    source = [
        None if rng.random() < 0.3 else f"source {min(rng.geometric(0.01), 400)}"
        for _ in range(reals)
    ] + [None] * fakes
    for place in range(reals, reals + fakes):
        if images.generator[place] == "generator 3" and rng.random() < 0.3:
            source[place] = f"source {rng.integers(1, 4)}"
    return replace(images, source=source)


@pytest.mark.parametrize("seed", range(2))
def test_parts_hold_whole_groups_and_come_near_their_shares(seed):
    images = with_sources()
    groups = groups_of(images)
    parts = split(images, groups, seed=seed)
    assert all(len(set(parts[groups == group])) == 1 for group in np.unique(groups))
    # nine generators do not divide as they should
    for fake, slack in ((False, 0.04), (True, 0.15)):
        shares = np.bincount(parts[images.fake == fake], minlength=3) / (images.fake == fake).sum()
        assert shares == pytest.approx(SHARES, abs=slack)


def test_parts_follow_from_bytes_and_seed_alone():
    images = with_sources()
    order = np.random.default_rng(5).permutation(len(images))
    elsewhere = replace(images.take(order), image_id=np.arange(len(images)) * 7919)
    parts = split(images, groups_of(images))
    assert split(elsewhere, groups_of(elsewhere)).tolist() == parts[order].tolist()
    others = split(images, groups_of(images), seed=1)
    assert 0.3 < (others != parts).mean() < 0.9


@pytest.mark.parametrize("fakes", [3, 4, 5, 6, 7, 10])
@pytest.mark.parametrize("copies", [1, 2])
def test_each_part_has_both_classes_however_few_the_groups_are(fakes, copies):
    names = [f"G{number}" for number in range(fakes)] * copies
    images = labelled_of(
        [False] * fakes * copies + [True] * fakes * copies,
        generator=[None] * fakes * copies + names,
        source=names * 2,
    )
    parts = split(images, groups_of(images))
    assert {
        (part, fake) for part, fake in zip(parts.tolist(), images.fake.tolist(), strict=True)
    } == {(part, fake) for part in (FIT, CALIBRATE, CHOOSE) for fake in (False, True)}


@pytest.mark.parametrize(
    ("columns", "share", "words", "hint"),
    [
        ({"generator": ["G", "G", "H", "H"]}, False, r"are of 2 generators \(G, H\); three parts .* need 3", "--share-generators"),
        ({}, False, r"the fakes are of 1 generator \(a generator that is not told\)", "--share-generators"),
        ({"generator": [*"GHIJ"], "source": [None] * 4 + [*"aabb"]}, False, "fakes of 4 generators hang together in 2 groups", "--share"),
        ({"source": [*"aabb", *[None] * 4]}, True, "the reals form 2 groups, by their sources or looks", "more sources"),
    ],
)  # fmt: skip
def test_too_few_groups_are_refused(columns, share, words, hint):
    if "generator" in columns:
        columns = columns | {"generator": [None] * 4 + columns["generator"]}
    images = labelled_of([False] * 4 + [True] * 4, **columns)
    with pytest.raises(ConfigError, match=words) as refused:
        split(images, groups_of(images, share_generators=share))
    assert hint in refused.value.hint


def divided_by_user(**columns):
    """Nine reals and nine fakes of nine generators, three of each in every part."""
    generator = [None] * 9 + [f"G{number}" for number in range(9)]
    return labelled_of(
        [False] * 9 + [True] * 9, **{"generator": generator, "part": list(PARTS) * 6} | columns
    )


def test_a_users_own_parts_are_kept():
    images = divided_by_user()
    assert divided(images, groups_of(images)).tolist() == [FIT, CALIBRATE, CHOOSE] * 6


def near(place):
    """Hashes of eighteen different pictures, but that image `place` looks like image 0."""
    hashes = NOBODY_NEAR[:18]
    return [*hashes[:place], f"{int(hashes[0], 16) ^ 0b1011:016x}", *hashes[place + 1 :]]


CROSSINGS = [
    ({"source": ["a", *[None] * 15, "a", None]}, (0, 16), "share the source 'a'"),
    ({"sha256": [sha256_of(place) for place in [*range(17), 3]]}, (3, 17), "are the same file"),
    (
        {"generator": [None] * 9 + ["G"] * 2 + [f"G{number}" for number in range(7)]},
        (9, 10),
        "are both by G",
    ),
    ({"phash": near(7)}, (0, 7), "look alike, or hang together by others that do"),
]


@pytest.mark.parametrize(("columns", "places", "words"), CROSSINGS)
def test_parts_that_divide_a_group_are_refused_and_both_images_named(columns, places, words):
    images = divided_by_user(**columns)
    first, second = (
        f"image {place} (sha256 {images.sha256[place][:12]}…, part {images.part[place]})"
        for place in places
    )
    with pytest.raises(ConfigError) as refused:
        divided(images, groups_of(images))
    assert refused.value.message == f"labels: {first} and {second} {words}"
    assert "one part" in refused.value.hint


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (
            {"part": [None, *list(PARTS) * 5, "fit", "choose"]},
            "1 of 18 images have the part 'None'",
        ),
        (
            {"part": ["fit", "calibrate", "choose"] * 3 + ["fit"] * 8 + ["choose"]},
            "the part calibrate has no fake image",
        ),
        ({"phash": ["sunset", *[None] * 17]}, "the phash 'sunset' is no hash of 64 bits"),
    ],
)
def test_parts_and_hashes_that_are_none_are_refused(columns, words):
    images = divided_by_user(**columns)
    with pytest.raises(ConfigError, match=words):
        divided(images, groups_of(images))


def test_parts_are_described_so_that_anybody_can_check_the_hashes():
    images = with_sources()
    groups = groups_of(images)
    parts = split(images, groups)
    for number, part in enumerate(described(images, groups, parts)):
        chosen = images.take(parts == number)
        lines = "".join(f"{sha256}\n" for sha256 in sorted(chosen.sha256))
        assert part.name == PARTS[number]
        assert (part.n_real, part.n_fake) == (int((~chosen.fake).sum()), int(chosen.fake.sum()))
        assert part.groups == len(set(groups[parts == number]))
        assert part.sha256 == hashlib.sha256(lines.encode()).hexdigest()
