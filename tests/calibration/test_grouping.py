import numpy as np
import pytest

from ray_app.calibration.grouping import groups_of, repeated
from ray_app.errors import ConfigError
from tests.calibration.drawn import labelled_of, sha256_of

LOOKS = ["00000000ffffffff", "000000000fffffff", "0000000000ffffff"]  # 4 bits apart, one after the other


def together(groups):
    """The places of each group of more than one image."""
    return [np.flatnonzero(groups == group).tolist() for group in np.unique(groups) if (groups == group).sum() > 1]


@pytest.mark.parametrize(
    ("columns", "groups"),
    [
        ({}, [[3, 4, 5]]),  # fakes whose generator is not told
        ({"generator": ["G", "G", None, "G", "G", "H"]}, [[3, 4]]),
        ({"generator": [None, None, None, "G", "H", "I"], "source": ["a", None, "a", "a", None, None]}, [[0, 2, 3]]),
        ({"generator": [None, None, None, "G", "H", "I"], "sha256": [sha256_of(k) for k in (0, 1, 0, 3, 4, 4)]}, [[0, 2], [4, 5]]),
        ({"generator": [None, None, None, "G", "H", "I"], "phash": [LOOKS[0], None, LOOKS[2], LOOKS[1], None, None]}, [[0, 2, 3]]),
        ({"generator": [None, None, None, "G", "H", "I"], "phash": [LOOKS[0], None, LOOKS[2], None, None, None]}, []),
        ({"generator": [None, None, None, "G", "H", "G"], "source": ["a", "a", None, None, "b", "b"]}, [[0, 1], [3, 4, 5]]),
    ],
)
def test_images_hang_together_by_source_bytes_looks_and_generator(columns, groups):
    found = groups_of(labelled_of([False] * 3 + [True] * 3, **columns))
    assert sorted(together(found)) == groups
    assert sorted(set(found.tolist())) == list(range(len(set(found.tolist()))))


def test_generators_may_be_shared():
    images = labelled_of([False] + [True] * 3, generator=[None, "G", "G", "G"], source=["a", "b", "b", None])
    assert together(groups_of(images)) == [[1, 2, 3]]
    assert together(groups_of(images, share_generators=True)) == [[1, 2]]


def test_one_picture_stands_for_its_copies():
    hashes = [sha256_of(place) for place in (5, 2, 5, 9)]
    images = labelled_of([False] * 4, sha256=hashes, phash=[LOOKS[0], LOOKS[1], LOOKS[0], "123456789abcdef0"], source=["a"] * 4)
    first = min(hashes[:3])
    assert repeated(images).sum() == 2
    assert not repeated(images)[3]
    assert [hashes[place] for place in np.flatnonzero(~repeated(images))] == [first, hashes[3]]


def test_a_real_is_no_copy_of_the_fake_that_was_made_of_it():
    for fake in ([False, True], [True, False]):
        images = labelled_of(fake, generator=["G" if one else None for one in fake], phash=LOOKS[:2])
        assert len(set(groups_of(images).tolist())) == 1
        assert not repeated(images).any()


def test_a_text_that_is_no_hash_is_refused():
    with pytest.raises(ConfigError, match="the phash 'sunset' is no hash of 64 bits"):
        groups_of(labelled_of([False], phash=["sunset"]))
