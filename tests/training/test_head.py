"""Heads of our own: fitted to two classes or more, and validated out of sample."""

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


@pytest.mark.parametrize("classifier", BINARY_CLASSIFIERS)
def test_head_weighs_small_and_large_classes_the_same(classifier):
    features, labels = clouds(n=400, apart=0.0)
    kept = np.flatnonzero((labels == 0) | (np.arange(400) % 20 == 1))
    unbalanced = fitted(features[kept], labels[kept], classifier).score(features)
    assert abs(unbalanced.mean()) < 0.5


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


def test_logistic_scores_are_log_odds():
    features, labels = clouds(n=4000, width=2, apart=0.5)
    head = fitted(features, labels, "logistic", c=1e4)
    # Two normal clouds, 2 × 0.5 apart, of unit width: log-odds rise by 1 per unit.
    assert head.weight[0, 0] * 0.01 == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("classifier", ["logistic", "cosine"])
def test_head_of_four_classes_names_each_image(classifier):
    random = np.random.default_rng(0)
    codes = np.arange(200) % 4
    vectors = (random.normal(size=(4, 12)) * 4)[codes] + random.normal(size=(200, 12))
    vectors = vectors.astype(np.float32)
    settings = HeadSettings(classifier, 10.0, scales_each=True)
    head = fit_head(vectors, 2 * codes, settings)
    assert head.classes.tolist() == [0, 2, 4, 6]
    assert np.mean(head.classes[head.logits(vectors).argmax(1)] == 2 * codes) > 0.95
    folds = list(fit_folds(vectors, 2 * codes, split_folds(2 * codes), settings))
    assert sorted(np.concatenate([unseen for _, unseen in folds])) == list(range(200))
    right = [
        np.mean(head.classes[head.logits(vectors[unseen]).argmax(1)] == 2 * codes[unseen])
        for head, unseen in folds
    ]
    assert min(right) > 0.9


def test_validation_is_not_in_sample():
    random = np.random.default_rng(0)
    features, labels = random.normal(size=(80, 200)).astype(np.float32), np.arange(80) % 2
    in_sample = fitted(features, labels).score(features)
    assert np.mean((in_sample > 0) == labels) == 1.0
    assert 0.3 < np.mean(cross_validate_auc(features, labels, "svm")) < 0.7


def test_groups_stay_together_in_validation():
    """Ten scenes with a label each, which scene a feature tells exactly: known scenes are easy,
    unknown ones a coin's toss.
    """
    random = np.random.default_rng(0)
    scenes = np.repeat(np.arange(20), 8)
    labels = random.permutation(np.arange(20) % 2)[scenes]
    features = (random.normal(size=(20, 50))[scenes] + 0.01 * random.normal(size=(160, 50))).astype(
        np.float32
    )
    assert np.mean(cross_validate_auc(features, labels, "svm")) == 1.0
    groups = [f"scene {scene}" for scene in scenes]
    grouped = cross_validate_auc(features, labels, "svm", groups)
    assert 1 <= len(grouped) <= 5
    assert np.mean(grouped) < 0.8


@pytest.mark.parametrize(("real", "fake", "said"), [(9, 0, "0 fake"), (4, 9, "4 real")])
def test_validation_rejects_too_few_images_or_groups(real, fake, said):
    labels = np.array([0] * real + [1] * fake)
    with pytest.raises(ConfigError, match=said):
        cross_validate_auc(np.zeros((len(labels), 3), np.float32), labels)
    features, labels = clouds()
    groups = ["a" if label else f"b{index}" for index, label in enumerate(labels)]
    with pytest.raises(ConfigError, match="of one group"):
        cross_validate_auc(features, labels, groups=groups)


def test_even_weights_count_small_and_large_groups_alike():
    labels = np.array([0] * 20 + [0] * 4 + [1] * 20 + [1] * 4)
    groups = ["large"] * 20 + ["small"] * 4 + ["large"] * 20 + ["small"] * 4
    weights = even_weights(labels, groups)
    assert weights.sum() == pytest.approx(48)
    assert [
        weights[part].sum() for part in (slice(20), slice(20, 24), slice(24, 44), slice(44, 48))
    ] == pytest.approx([12] * 4)
    assert even_weights(labels, groups, 1.0) == pytest.approx(np.ones(48))
    by_root = even_weights(labels, groups, 0.5)
    assert by_root[:20].sum() / by_root[20:24].sum() == pytest.approx(5**0.5)
    # In the small group fake lies the other way along the first axis; both agree on the second,
    # weakly.
    direction = np.where(np.array(groups) == "large", 1.0, -1.0) * (labels - 0.5)
    noise = np.random.default_rng(0).normal(scale=0.1, size=(48, 2))
    features = (np.stack([4 * direction, labels - 0.5], axis=1) + noise).astype(np.float32)
    plain = fitted(features, labels, "logistic")
    evenly = fitted(features, labels, "logistic", weights=weights)
    assert plain.weight[0, 0] > 5 * abs(evenly.weight[0, 0])
    assert evenly.weight[0, 1] > abs(evenly.weight[0, 0])
