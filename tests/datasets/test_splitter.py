import numpy as np
import pytest

from ray_app.datasets.splitter import group_keys, split
from tests.datasets.tables import labelled

SHARES = (0.6, 0.3, 0.1)


def random_keys(count, seed=0):
    return np.random.default_rng(seed).integers(0, 2**63, count).astype(np.uint64)


def test_split_keeps_groups_whole_and_gives_shares():
    keys = random_keys(20_000)
    parts = split(np.concatenate([keys, keys[::-1]]), None, SHARES)
    assert (parts[:20_000] == parts[20_000:][::-1]).all()
    assert np.bincount(parts) / len(parts) == pytest.approx(SHARES, abs=0.02)


def test_split_keeps_groups_in_place_when_data_are_added():
    keys, more = random_keys(1_000), random_keys(5_000, seed=1)
    before = split(keys, None, SHARES, 3)
    after = split(np.concatenate([more, keys]), None, SHARES, 3)
    assert (after[5_000:] == before).all()
    assert (split(keys, None, SHARES, 4) != before).sum() > 300


def test_split_gives_the_parts_of_earlier_versions():
    keys = np.arange(0, 2**63, 2**59, dtype=np.uint64)
    assert split(keys, None, (0.5, 0.3, 0.2)).tolist() == [
        0, 0, 0, 0, 0, 2, 0, 1, 0, 2, 0, 0, 1, 1, 0, 0,
    ]  # fmt: skip
    assert split(keys, None, (0.5, 0.3, 0.2), 7).tolist() == [
        2, 0, 0, 1, 0, 0, 1, 0, 0, 2, 1, 0, 0, 1, 2, 0,
    ]  # fmt: skip


def test_split_divides_each_stratum_evenly():
    strata = np.repeat(np.arange(3), [1_000, 100, 10])
    parts = split(random_keys(len(strata)), strata, SHARES)
    for stratum, size in enumerate([1_000, 100, 10]):
        counts = np.bincount(parts[strata == stratum], minlength=3)
        assert counts.tolist() == pytest.approx([share * size for share in SHARES], abs=1)


def test_split_counts_images_of_uneven_groups():
    rng = np.random.default_rng(2)
    keys = np.repeat(random_keys(300), rng.integers(1, 20, 300))
    parts = split(keys, np.zeros(len(keys), np.int64), SHARES)
    assert np.bincount(parts) == pytest.approx([share * len(keys) for share in SHARES], abs=20)
    assert all(len(np.unique(parts[keys == key])) == 1 for key in np.unique(keys))


def test_group_keys_follow_the_group_or_the_image():
    rows = labelled([
        {"label": "real", "group": "scene", "uri": "/1"},
        {"label": "real", "group": "scene", "uri": "/2"},
        {"label": "real", "uri": "/3"},
        {"label": "real", "uri": "/4"},
    ])  # fmt: skip
    keys = group_keys(rows)
    assert keys[0] == keys[1]
    assert len(set(keys.tolist())) == 3
    assert group_keys(rows.slice(2)).tolist() == keys[2:].tolist()
    connected = group_keys(rows, np.array([0, 0, 1, 1]))
    assert connected.tolist() == [keys[0], keys[0], min(keys[2:]), min(keys[2:])]
