"""The nearest prompt: found as brute force finds it, alone or in company, and files that are no
index.
"""

import hashlib

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ray_app.errors import DetectorError
from ray_app.identification.captioners import build_describer
from ray_app.identification.cards import load_describer
from tests.make.networks.fill import with_part
from tests.make.profiles import make_retrieval

WIDTH = 24
PROMPTS = [f"a häuschen number {number}, ☃" for number in range(299)] + [""]


@pytest.fixture(scope="module")
def vectors():
    return np.random.default_rng(0).normal(size=(300, WIDTH)).astype(np.float32)


@pytest.fixture(scope="module")
def card(tmp_path_factory, vectors):
    folder = tmp_path_factory.mktemp("nearest")
    return load_describer(make_retrieval(folder, vectors, PROMPTS, "unifd", {"width": WIDTH}))


def test_the_prompt_is_that_of_the_largest_cosine(card, vectors):
    asked = np.random.default_rng(1).normal(size=(50, WIDTH)).astype(np.float32)
    lengths = np.outer(*(np.linalg.norm(rows, axis=1) for rows in (asked, vectors)))
    cosine = asked @ vectors.T / lengths
    found = build_describer(card).describe(asked)
    assert [one.text for one in found] == [PROMPTS[place] for place in cosine.argmax(axis=1)]
    np.testing.assert_allclose([one.likelihood for one in found], cosine.max(axis=1), atol=1e-5)
    assert [one.text for one in build_describer(card).describe(7 * vectors)] == PROMPTS


def test_prompt_does_not_depend_on_the_batch(card):
    asked = np.random.default_rng(2).normal(size=(37, WIDTH)).astype(np.float32)
    asked[5] = np.nan
    describer = build_describer(card)
    together, alone = describer.describe(asked), [describer.describe(row[None])[0] for row in asked]
    assert (together[5].text, together[5].likelihood) == ("", None)
    assert together[:5] + together[6:] == alone[:5] + alone[6:]
    assert describer.describe(asked[:0]) == []
    with pytest.raises(DetectorError, match="24 numbers"):
        describer.describe(np.zeros((2, 7), np.float32))


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"ends": np.array([4, 2, 9], np.int64)}, "do not fit"),
        ({"embeddings": np.ones((3, WIDTH), np.float32)}, "not of length 1"),
        ({"prompts": None}, "lacks prompts"),
    ],
)
def test_a_file_that_is_no_index_is_refused(tmp_path, vectors, changed, told):
    path = make_retrieval(tmp_path, vectors[:3], ["abc", "def", "ghi"], "unifd", {"width": WIDTH})
    file = tmp_path / "describer.safetensors"
    held = load_file(file) | changed
    save_file({name: tensor for name, tensor in held.items() if tensor is not None}, file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    with pytest.raises(DetectorError, match=told):
        build_describer(with_part(load_describer(path), "weights", sha256=digest))
