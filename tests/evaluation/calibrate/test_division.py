import hashlib
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from ray_app.errors import ConfigError
from ray_app.evaluation.calibrate.division import (
    CALIBRATE,
    CHOOSE,
    FIT,
    FRACTIONS,
    PARTS,
    assign_parts,
    describe_parts,
    draw_parts,
    find_copies,
    group_images,
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


THREE = {"generator": [None, None, None, "G", "H", "I"]}
COPIES = [sha256_of(place) for place in (0, 1, 0, 3, 4, 4)]


@pytest.mark.parametrize(
    ("columns", "groups"),
    [
        ({}, [[3, 4, 5]]),  # fakes without generator
        ({"generator": ["G", "G", None, "G", "G", "H"]}, [[3, 4]]),
        (THREE | {"source": ["a", None, "a", "a", None, None]}, [[0, 2, 3]]),
        (THREE | {"sha256": COPIES}, [[0, 2], [4, 5]]),
        (THREE | {"phash": [LOOKS[0], None, LOOKS[2], LOOKS[1], None, None]}, [[0, 2, 3]]),
        (THREE | {"phash": [LOOKS[0], None, LOOKS[2], None, None, None]}, []),
        (
            {"generator": [None, None, None, "G", "H", "G"], "source": [*"aa", None, None, *"bb"]},
            [[0, 1], [3, 4, 5]],
        ),
    ],
)
def test_source_bytes_looks_and_generator_bind_images(columns, groups):
    found = group_images(labelled_of([False] * 3 + [True] * 3, **columns))
    assert sorted(together(found)) == groups
    assert sorted(set(found.tolist())) == list(range(len(set(found.tolist()))))


def test_copies_of_an_image_count_once():
    hashes = [sha256_of(place) for place in (5, 2, 5, 9)]
    columns = {"sha256": hashes, "phash": [LOOKS[0], LOOKS[1], LOOKS[0], "123456789abcdef0"]}
    images = labelled_of([False] * 4, source=["a"] * 4, **columns)
    first = min(hashes[:3])
    assert find_copies(images).sum() == 2
    assert not find_copies(images)[3]
    assert [hashes[place] for place in np.flatnonzero(~find_copies(images))] == [first, hashes[3]]


def test_real_is_no_copy_of_the_fake_made_of_it():
    for fake in ([False, True], [True, False]):
        generator = ["G" if one else None for one in fake]
        images = labelled_of(fake, generator=generator, phash=LOOKS[:2])
        assert len(set(group_images(images).tolist())) == 1
        assert not find_copies(images).any()


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


def test_parts_hold_whole_groups_near_their_shares():
    images = with_sources()
    groups = group_images(images)
    parts = draw_parts(images, groups)
    assert all(len(set(parts[groups == group])) == 1 for group in np.unique(groups))
    # nine generators do not divide as they should
    for fake, slack in ((False, 0.04), (True, 0.15)):
        shares = np.bincount(parts[images.fake == fake], minlength=3) / (images.fake == fake).sum()
        assert shares == pytest.approx(FRACTIONS, abs=slack)


def test_parts_follow_from_bytes_and_seed_alone():
    images = with_sources()
    order = np.random.default_rng(5).permutation(len(images))
    elsewhere = replace(images.take(order), image_id=np.arange(len(images)) * 7919)
    parts = draw_parts(images, group_images(images))
    assert draw_parts(elsewhere, group_images(elsewhere)).tolist() == parts[order].tolist()
    others = draw_parts(images, group_images(images), seed=1)
    assert 0.3 < (others != parts).mean() < 0.9


@pytest.mark.parametrize("fakes", [3, 4, 5, 7])
@pytest.mark.parametrize("copies", [1, 2])
def test_each_part_of_few_groups_has_both_classes(fakes, copies):
    names = [f"G{number}" for number in range(fakes)] * copies
    n = fakes * copies
    generators = [None] * n + names
    images = labelled_of([False] * n + [True] * n, generator=generators, source=names * 2)
    found = set(
        zip(draw_parts(images, group_images(images)).tolist(), images.fake.tolist(), strict=True)
    )
    assert found == set(product((FIT, CALIBRATE, CHOOSE), (False, True)))


@pytest.mark.parametrize(
    ("columns", "share", "words", "hint"),
    [
        ({"generator": ["G", "G", "H", "H"]}, False, r"are of 2 generators \(G, H\); three parts .* need 3", "--share-generators"),
        ({}, False, r"the fakes are of 1 generator \(a generator that is not told\)", "--share-generators"),
        ({"generator": [*"GHIJ"], "source": [None] * 4 + [*"aabb"]}, False, "fakes of 4 generators form 2 groups", "--share"),
        ({"source": [*"aabb", *[None] * 4]}, True, "the real images form 2 groups by source or similar images", "more sources"),
    ],
)  # fmt: skip
def test_too_few_groups_are_refused(columns, share, words, hint):
    if "generator" in columns:
        columns = columns | {"generator": [None] * 4 + columns["generator"]}
    images = labelled_of([False] * 4 + [True] * 4, **columns)
    with pytest.raises(ConfigError, match=words) as refused:
        draw_parts(images, group_images(images, share_generators=share))
    assert hint in refused.value.hint


def divided_by_user(**columns):
    """Nine reals and nine fakes of nine generators, three of each in every part."""
    generator = [None] * 9 + [f"G{number}" for number in range(9)]
    return labelled_of(
        [False] * 9 + [True] * 9, **{"generator": generator, "part": list(PARTS) * 6} | columns
    )


def test_a_users_own_parts_are_kept():
    images = divided_by_user()
    assert assign_parts(images, group_images(images)).tolist() == [FIT, CALIBRATE, CHOOSE] * 6


def near(place):
    """Hashes of eighteen different pictures, but that image `place` looks like image 0."""
    hashes = [f"{one:016x}" for one in np.random.default_rng(1).integers(0, 2**63, 18).tolist()]
    return [*hashes[:place], f"{int(hashes[0], 16) ^ 0b1011:016x}", *hashes[place + 1 :]]


CROSSINGS = [
    ({"source": ["a", *[None] * 15, "a", None]}, (0, 16), "share the source 'a'"),
    ({"sha256": [sha256_of(place) for place in [*range(17), 3]]}, (3, 17), "are the same file"),
    (
        {"generator": [None] * 9 + ["G"] * 2 + [f"G{number}" for number in range(7)]},
        (9, 10),
        "are both by G",
    ),
    ({"phash": near(7)}, (0, 7), "look alike, or are connected by images that do"),
]


@pytest.mark.parametrize(("columns", "places", "words"), CROSSINGS)
def test_parts_that_divide_a_group_are_refused(columns, places, words):
    images = divided_by_user(**columns)
    with pytest.raises(ConfigError, match=words) as refused:
        assign_parts(images, group_images(images))
    for place in places:
        assert f"image {place} (sha256 {images.sha256[place][:12]}" in refused.value.message
    assert "one part" in refused.value.hint


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (
            {"part": [None, *list(PARTS) * 5, "fit", "choose"]},
            "1 of 18 images have the part 'None'",
        ),
        ({"part": [*PARTS] * 3 + ["fit"] * 8 + ["choose"]}, "calibrate has no fake image"),
        ({"phash": ["sunset", *[None] * 17]}, "invalid phash 'sunset'"),
    ],
)
def test_invalid_parts_and_hashes_are_refused(columns, words):
    images = divided_by_user(**columns)
    with pytest.raises(ConfigError, match=words):
        assign_parts(images, group_images(images))


def test_description_of_parts_has_verifiable_hashes():
    images = with_sources()
    groups = group_images(images)
    parts = draw_parts(images, groups)
    for number, part in enumerate(describe_parts(images, groups, parts)):
        chosen = images.take(parts == number)
        lines = "".join(f"{sha256}\n" for sha256 in sorted(chosen.sha256))
        assert part.name == PARTS[number]
        assert (part.n_real, part.n_fake) == (int((~chosen.fake).sum()), int(chosen.fake.sum()))
        assert part.groups == len(set(groups[parts == number]))
        assert part.sha256 == hashlib.sha256(lines.encode()).hexdigest()
