"""Heads over generators: what they name, of what family, and when they name nothing."""

import numpy as np
import pytest
import scipy.special
import torch
from scipy.spatial.distance import cdist

from ray_app.errors import DetectorError
from ray_app.identification.cards import load_identifier
from ray_app.identification.identifier import Identifier, energy, mahalanobis, softmax
from tests.make.profiles import make_head

CLASSES = ("sd-1.5", "sd-1.4", "sdxl", "midjourney-6", "glide", "my-own")
WIDTH = 16


def tensors(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "weight": rng.normal(size=(len(CLASSES), WIDTH)).astype(np.float32),
        "bias": rng.normal(size=len(CLASSES)).astype(np.float32),
    }


def identifier_of(folder, held=None, **changes):
    told = {"detector": "unifd", "embedding": {"width": WIDTH}, "classes": list(CLASSES), **changes}
    return Identifier(
        load_identifier(make_head(folder, tensors() if held is None else held, **told))
    )


@pytest.fixture(scope="module")
def vectors():
    return np.random.default_rng(1).normal(size=(200, WIDTH)).astype(np.float32)


def test_a_linear_head_is_a_linear_layer_and_a_softmax(tmp_path, vectors):
    held = tensors()
    weight, bias, rows = map(torch.from_numpy, (held["weight"], held["bias"], vectors))
    layer = torch.nn.functional.linear(rows, weight, bias)
    logits, chances = layer.numpy(), layer.softmax(1).numpy()
    np.testing.assert_allclose(identifier_of(tmp_path).logits(vectors), logits, atol=1e-5)
    np.testing.assert_allclose(softmax(logits), chances, atol=1e-6)
    np.testing.assert_allclose(energy(logits), scipy.special.logsumexp(logits, axis=1), atol=1e-5)


def test_family_is_likeliest_and_generator_likeliest_in_it(tmp_path, vectors):
    found = identifier_of(tmp_path)
    chances = softmax(found.logits(vectors)).astype(float)
    said = found.identify(vectors)
    assert said.families == ("sd_1.5", "sd_1.5", "sdxl_1.0", "midjourney", "glide", "my-own")
    # They decide the name, and the index of generators may change.
    assert tuple(found.card.facts()["families"].values()) == said.families
    of_family = chances @ np.equal.outer(said.families, said.families)
    likeliest = of_family >= of_family.max(axis=1, keepdims=True) - 1e-9
    expected = np.where(likeliest, chances, -1).argmax(axis=1)
    assert (said.codes == expected).all()
    assert (said.ranking[:, 0] == expected).all()
    # Two generators of a family outweigh a third together.
    assert (expected != chances.argmax(axis=1)).any()
    likelihood = chances[np.arange(len(vectors)), expected]
    np.testing.assert_allclose(said.probability, likelihood, atol=1e-6)
    assert all(len(set(ranking)) == 5 for ranking in said.ranking.tolist())


def test_cosine_head_ignores_lengths(tmp_path, vectors):
    held = tensors() | {"bias": np.zeros(len(CLASSES), np.float32)}
    found = identifier_of(tmp_path, held, head="cosine", scale=16.0)
    np.testing.assert_allclose(found.logits(vectors), found.logits(7 * vectors), atol=1e-4)
    assert np.abs(found.logits(vectors)).max() <= 16


@pytest.mark.parametrize("method", ["energy", "distance"])
def test_unknown_generator_has_no_name(tmp_path, method):
    """Clusters of known generators far from the origin, and a stranger at it."""
    rng = np.random.default_rng(2)
    means = 8 * np.eye(len(CLASSES), WIDTH, dtype=np.float32)
    held = {
        "weight": means,
        "bias": -np.full(len(CLASSES), 32, np.float32),
        "means": means,
        "whitening": np.eye(WIDTH, dtype=np.float32),
    }
    classes = np.arange(300) % len(CLASSES)
    known = (means[classes] + rng.normal(size=(300, WIDTH))).astype(np.float32)
    strangers = rng.normal(size=(100, WIDTH)).astype(np.float32)
    every = identifier_of(tmp_path, held)
    assert (every.identify(known).codes == classes).all()
    assert (every.identify(strangers).codes >= 0).all()
    asked = {"method": method, "threshold": 0.0, "abstains": 0.05, "n": 300}
    confidence = identifier_of(tmp_path, held, open_set=asked).identify(known).confidence
    threshold = float(np.quantile(confidence, 0.05))
    said = identifier_of(tmp_path, held, open_set=asked | {"threshold": threshold})
    assert np.mean(said.identify(known).codes < 0) == pytest.approx(0.05, abs=0.01)
    assert np.mean(said.identify(strangers).codes < 0) > 0.95
    assert (said.identify(strangers).ranking >= 0).all(), "the nearest generators are known"


def test_distances_are_mahalanobis(vectors):
    root = np.random.default_rng(3).normal(size=(WIDTH, WIDTH))
    covariance = root @ root.T + np.eye(WIDTH)
    whitening = np.linalg.cholesky(np.linalg.inv(covariance)).astype(np.float32)
    means = vectors[:4]
    wanted = cdist(vectors, means, "mahalanobis", VI=np.linalg.inv(covariance))
    np.testing.assert_allclose(mahalanobis(vectors, means, whitening), wanted, atol=2e-3)


def test_an_image_without_an_embedding_has_no_name(tmp_path, vectors):
    some = vectors[:5].copy()
    some[2] = np.nan
    said, whole = (identifier_of(tmp_path).identify(one) for one in (some, vectors[:5]))
    assert said.codes[2] == -1
    assert np.isnan([said.probability[2], said.confidence[2]]).all()
    others = [0, 1, 3, 4]
    assert (said.codes[others] == whole.codes[others]).all()


@pytest.mark.parametrize(
    ("held", "changes", "told"),
    [
        ({"weight": np.zeros((3, WIDTH), np.float32)}, {}, r"a row per class \(6\), got 3"),
        ({"bias": np.zeros(6, np.float32)}, {}, "tensors are missing: weight"),
        (
            None,
            {"open_set": {"method": "distance", "threshold": -5, "abstains": 0.05, "n": 9}},
            "tensors are missing: means, whitening",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused(tmp_path, held, changes, told):
    with pytest.raises(DetectorError, match=told):
        identifier_of(tmp_path, held, **changes)
