"""Linear heads: fitted to two classes or more, and validated out of sample."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC

from ray_app.errors import ConfigError
from ray_app.training.head import (
    BINARY_CLASSIFIERS,
    HeadSettings,
    cross_validate_auc,
    even_weights,
    fit_folds,
    fit_head,
    split_folds,
)


def clouds(n=60, width=20, apart=2.0, seed=0):
    """Two clouds of features, far from the origin and of any scale, and their labels."""
    random = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    features = random.normal(size=(n, width)) + apart * np.outer(labels - 0.5, np.eye(width)[0]) * 2
    return (0.01 * features + 3).astype(np.float32), labels


def fitted(features, labels, classifier="svm", c=1.0, weights=None):
    return fit_head(features, labels, HeadSettings(classifier, c), weights).as_log_odds()


@pytest.mark.parametrize("classifier", BINARY_CLASSIFIERS)
def test_head_separates_clouds_and_is_deterministic(classifier):
    features, labels = clouds()
    head = fitted(features, labels, classifier)
    assert head.weight.shape == (1, 20)
    assert head.weight.dtype == np.float32
    unseen, truth = clouds(seed=1)
    assert np.mean((head.score(unseen) > 0) == truth) > 0.9
    assert np.argmax(np.abs(head.weight[0])) == 0
    assert head.weight[0, 0] > 0

    assert np.array_equal(fitted(features, labels, classifier).weight, head.weight)
    moved = fitted(50 * features - 7, labels, classifier)
    assert np.allclose(moved.score(50 * features - 7), head.score(features), atol=0.02), (
        "any shift and scale of features"
    )


def test_head_has_the_values_of_scikit_learn():
    features, labels = clouds()
    weights = even_weights(labels, [f"g{index % 7}" for index in range(60)])
    centred = features - features.mean(axis=0, dtype=np.float64)
    scale = np.sqrt((centred**2).sum(axis=1).mean())
    for classifier, kind in (("svm", LinearSVC), ("logistic", LogisticRegression)):
        model = kind(class_weight="balanced", random_state=0, max_iter=10_000)
        model.fit(centred / scale, labels, sample_weight=weights)
        head = fitted(features, labels, classifier, weights=weights)
        assert np.array_equal(head.weight, (model.coef_ / scale).astype(np.float32))
        assert np.allclose(
            head.score(features), model.decision_function(centred / scale), atol=0.01
        )


@pytest.mark.parametrize("classifier", ["logistic", "cosine"])
def test_head_of_four_classes_names_each_image(classifier):
    random = np.random.default_rng(0)
    codes = np.arange(200) % 4
    vectors = (random.normal(size=(4, 12)) * 4)[codes] + random.normal(size=(200, 12))
    vectors, labels = vectors.astype(np.float32), 2 * codes
    settings = HeadSettings(classifier, 10.0, scales_each=True)

    def accuracy(head, rows):
        named = head.classes[head.logits(vectors[rows]).argmax(1)]
        return np.mean(named == labels[rows])

    head = fit_head(vectors, labels, settings)
    assert head.classes.tolist() == [0, 2, 4, 6]
    assert accuracy(head, slice(None)) > 0.95
    folds = list(fit_folds(vectors, labels, split_folds(labels), settings))
    assert sorted(np.concatenate([unseen for _, unseen in folds])) == list(range(200))
    assert min(accuracy(head, unseen) for head, unseen in folds) > 0.9


def test_validation_is_not_in_sample():
    random = np.random.default_rng(0)
    features, labels = random.normal(size=(80, 200)).astype(np.float32), np.arange(80) % 2
    in_sample = fitted(features, labels).score(features)
    assert np.mean((in_sample > 0) == labels) == 1.0
    assert 0.3 < np.mean(cross_validate_auc(features, labels, "svm")) < 0.7


def test_groups_stay_together_in_validation():
    """A feature tells the scene: known scenes are easy, and unknown scenes are chance."""
    random = np.random.default_rng(0)
    scenes = np.repeat(np.arange(20), 8)
    labels = random.permutation(np.arange(20) % 2)[scenes]
    features = random.normal(size=(20, 50))[scenes] + 0.01 * random.normal(size=(160, 50))
    features = features.astype(np.float32)
    assert np.mean(cross_validate_auc(features, labels, "svm")) == 1.0
    groups = [f"scene {scene}" for scene in scenes]
    grouped = cross_validate_auc(features, labels, "svm", groups)
    assert 1 <= len(grouped) <= 5
    assert np.mean(grouped) < 0.8


@pytest.mark.parametrize(("real", "fake", "said"), [(9, 0, "0 fake"), (4, 9, "4 real")])
def test_validation_rejects_too_few_images(real, fake, said):
    labels = np.array([0] * real + [1] * fake)
    with pytest.raises(ConfigError, match=said):
        cross_validate_auc(np.zeros((len(labels), 3), np.float32), labels)


def test_validation_rejects_a_label_of_one_group():
    features, labels = clouds()
    groups = ["a" if label else f"b{index}" for index, label in enumerate(labels)]
    with pytest.raises(ConfigError, match="in one group"):
        cross_validate_auc(features, labels, groups=groups)


def test_even_weights_count_small_and_large_groups_alike():
    labels = np.repeat([0, 0, 1, 1], [20, 4, 20, 4])
    groups = np.repeat(["large", "small", "large", "small"], [20, 4, 20, 4]).tolist()
    sums = [part.sum() for part in np.split(even_weights(labels, groups), [20, 24, 44])]
    assert sums == pytest.approx([12] * 4)
    assert even_weights(labels, groups, 1.0) == pytest.approx(np.ones(48))
    by_root = even_weights(labels, groups, 0.5)
    assert by_root[:20].sum() / by_root[20:24].sum() == pytest.approx(5**0.5)
