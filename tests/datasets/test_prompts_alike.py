from itertools import pairwise

import numpy as np
import pytest

from ray_app.datasets import prompts_alike as module
from ray_app.datasets.prompts_alike import prompts_alike

WORDS = np.array([f"w{number}" for number in range(400)])


def shingled(text):
    words = text.split()
    return {*words, *pairwise(words)}


def jaccard(one, other):
    return len(shingled(one) & shingled(other)) / len(shingled(one) | shingled(other))


@pytest.fixture(scope="module")
def prompts():
    """300 prompts of 30 words, and 100 of them with one word exchanged at one end, or in the middle."""
    rng = np.random.default_rng(0)
    texts = [list(rng.choice(WORDS, 30, replace=False)) for _ in range(300)]
    for number in range(100):
        other = list(texts[number])
        other[0 if number % 2 else 15] = "exchanged"
        texts.append(other)
    return [" ".join(words) for words in texts]


def test_pairs_are_those_of_comparing_all_with_all(prompts):
    expected = {(one, other) for other in range(len(prompts)) for one in range(other) if jaccard(prompts[one], prompts[other]) >= 0.9}
    found = set(map(tuple, prompts_alike(prompts, 0.9).tolist()))
    assert len(expected) == 100
    assert found == expected


def test_no_pair_is_below_the_share(prompts):
    found = prompts_alike(prompts, 0.93)
    assert len(found) == 50
    assert all(jaccard(prompts[one], prompts[other]) >= 0.93 for one, other in found.tolist())


def test_portions_change_nothing(prompts, monkeypatch):
    whole = prompts_alike(prompts, 0.9)
    monkeypatch.setattr(module, "_AT_ONCE", 37)
    assert np.array_equal(prompts_alike(prompts, 0.9), whole)


@pytest.mark.parametrize("texts", [[], ["one"], ["", ""], ["…", "!", "a b c"]])
def test_few_or_wordless_prompts_have_no_pair(texts):
    assert prompts_alike(texts).shape == (0, 2)
