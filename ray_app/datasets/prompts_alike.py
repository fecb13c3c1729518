"""Prompts that are nearly the same: most of their words and pairs of words are. Knows texts; knows no image and no split.

MinHash (Broder 1997) in bands (Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, §3.4) proposes pairs, and their words decide. The
shingles are scikit-learn's; datasketch keeps its bands in Python dictionaries, which take gigabytes for a million prompts.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Pairs = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]

_BANDS, _ROWS = 8, 6  # of two prompts that share 0.9 of their shingles, one of eight bands agrees in 998 of 1,000 cases
_AT_ONCE = 65_536
WORD = re.compile(r"\w+")
_MIX = np.uint64(0x9E3779B97F4A7C15)


def prompts_alike(prompts: Sequence[str], share: float = 0.9) -> Pairs:
    """(P, 2) places of prompts whose shingles, words and neighbouring words, are shared to `share` (Jaccard) or more.

    Not of all such pairs, but enough to connect those that are alike: each with the first and the one before it of every band.
    """
    if len(prompts) < 2:
        return np.empty((0, 2), np.int64)
    banded = np.concatenate([_bands(_shingles(prompts[start : start + _AT_ONCE])) for start in range(0, len(prompts), _AT_ONCE)])
    proposed = np.unique(np.concatenate([_neighbours(banded[:, band]) for band in range(_BANDS)]), axis=0)
    kept = [np.empty((0, 2), np.int64)]
    for start in range(0, len(proposed), _AT_ONCE):
        some = proposed[start : start + _AT_ONCE]
        kept.append(some[_jaccard(prompts, some) >= share])
    return np.concatenate(kept)


def _shingles(prompts: Sequence[str]) -> Any:
    """(n, …) sparse: 1 for each word and pair of words of a prompt."""
    from sklearn.feature_extraction.text import HashingVectorizer

    made = HashingVectorizer(
        tokenizer=WORD.findall,
        token_pattern=None,
        ngram_range=(1, 2),
        n_features=2**31 - 1,
        binary=True,
        norm=None,
        alternate_sign=False,
        dtype=np.float32,
    )
    return made.transform(prompts).tocsr()


def _bands(shingles: Any) -> Words:
    """(n, bands) one word for each band of a prompt's least hashes; a prompt without words has words of its own."""
    starts, count = shingles.indptr, shingles.shape[0]
    filled = np.flatnonzero(np.diff(starts))
    numbers = shingles.indices.astype(np.uint64) + np.uint64(1)
    factors = np.random.default_rng(0).integers(1, 2**63, size=(_BANDS, _ROWS), dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    banded = np.repeat(np.random.default_rng(1).integers(0, 2**63, size=(count, 1), dtype=np.uint64), _BANDS, axis=1)
    for band in range(_BANDS):
        word = np.zeros(len(filled), np.uint64)
        for factor in factors[band] if len(filled) else ():
            least = np.minimum.reduceat(_mixed(numbers * factor), starts[:-1][filled])
            word = (word ^ least) * _MIX
        banded[filled, band] = word
    return banded


def _mixed(words: Words) -> Words:
    words ^= words >> np.uint64(31)
    words *= _MIX
    words ^= words >> np.uint64(29)
    return words


def _neighbours(words: Words) -> Pairs:
    """(P, 2) every prompt with the first, and with the one before it, that has the same word; the lower place first."""
    order = np.argsort(words, kind="stable")
    is_same = words[order][1:] == words[order][:-1]
    firsts = np.maximum.accumulate(np.where(np.concatenate([[True], ~is_same]), np.arange(len(order)), 0))
    again = np.flatnonzero(is_same) + 1
    pairs = np.concatenate([np.stack([order[others], order[again]], axis=1) for others in (firsts[again], again - 1)])
    return np.asarray(np.sort(pairs, axis=1), np.int64)


def _jaccard(prompts: Sequence[str], pairs: Pairs) -> npt.NDArray[np.float64]:
    places, codes = np.unique(pairs, return_inverse=True)
    shingles = _shingles([prompts[place] for place in places.tolist()])
    first, second = (shingles[side] for side in codes.reshape(pairs.shape).T)
    both = np.asarray(first.multiply(second).sum(axis=1), np.float64).ravel()
    either = np.diff(first.indptr) + np.diff(second.indptr) - both
    return np.asarray(both / np.maximum(either, 1))
