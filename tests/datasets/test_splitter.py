import numpy as np
import pytest

from ray_app.datasets.splitter import group_keys, split
from tests.make.datasets import labelled


def test_split_gives_the_parts_of_earlier_versions():
    keys = np.arange(0, 2**63, 2**59, dtype=np.uint64)
    assert split(keys, None, (0.5, 0.3, 0.2)).tolist() == [
        0, 0, 0, 0, 0, 2, 0, 1, 0, 2, 0, 0, 1, 1, 0, 0,
    ]  # fmt: skip
    assert split(keys, None, (0.5, 0.3, 0.2), 7).tolist() == [
        2, 0, 0, 1, 0, 0, 1, 0, 0, 2, 1, 0, 0, 1, 2, 0,
    ]  # fmt: skip


def test_split_counts_images_of_uneven_groups():
    rng = np.random.default_rng(2)
    keys = np.repeat(rng.integers(0, 2**63, 300).astype(np.uint64), rng.integers(1, 20, 300))
    shares = np.array([0.6, 0.3, 0.1])
    parts = split(keys, np.zeros(len(keys), np.int64), tuple(shares))
    assert np.bincount(parts) == pytest.approx(shares * len(keys), abs=20)
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
