"""Heads of our own: fitted, validated out of sample, saved as the published ones are, and taken by
the loader at once.
"""

import numpy as np
import pytest
import torch
import yaml

from ray_app.detectors import load_card, load_detector
from ray_app.detectors.card import Backbone
from ray_app.detectors.linear_head import (
    CLASSIFIERS,
    FeatureCache,
    FeatureReader,
    Fit,
    cross_validated_auc,
    even_weights,
    fit_head,
    save_head,
    write_card,
)
from ray_app.errors import ConfigError, DetectorError
from tests.detectors.small_clip import small_card


def clouds(n=60, width=20, apart=2.0, seed=0):
    """Two clouds of features, far from the origin and of any scale, and their labels."""
    random = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    features = random.normal(size=(n, width)) + apart * np.outer(labels - 0.5, np.eye(width)[0]) * 2
    return (0.01 * features + 3).astype(np.float32), labels


def scores(head, features):
    return features @ head.weight[0] + head.bias


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_a_head_separates_what_can_be_separated_and_is_the_same_for_the_same_features(classifier):
    features, labels = clouds()
    head = fit_head(features, labels, classifier)
    assert head.weight.shape == (1, 20)
    assert head.weight.dtype == np.float32
    unseen, truth = clouds(seed=1)
    assert np.mean((scores(head, unseen) > 0) == truth) > 0.9
    assert np.argmax(np.abs(head.weight[0])) == 0
    assert head.weight[0, 0] > 0

    assert np.array_equal(fit_head(features, labels, classifier).weight, head.weight)
    moved = fit_head(50 * features - 7, labels, classifier)
    assert np.allclose(scores(moved, 50 * features - 7), scores(head, features), atol=0.02), (
        "any shift and scale of features"
    )


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_classes_weigh_the_same_however_many_images_they_have(classifier):
    features, labels = clouds(n=400, apart=0.0)
    kept = np.flatnonzero((labels == 0) | (np.arange(400) % 20 == 1))
    unbalanced = scores(fit_head(features[kept], labels[kept], classifier), features)
    assert abs(unbalanced.mean()) < 0.5


def test_logistic_scores_are_log_odds():
    features, labels = clouds(n=4000, width=2, apart=0.5)
    head = fit_head(features, labels, "logistic", c=1e4)
    # Two normal clouds, 2 × 0.5 apart, of unit width: log-odds rise by 1 per unit.
    assert head.weight[0, 0] * 0.01 == pytest.approx(1.0, abs=0.1)


def test_validation_is_not_in_sample():
    random = np.random.default_rng(0)
    features, labels = random.normal(size=(80, 200)).astype(np.float32), np.arange(80) % 2
    in_sample = scores(fit_head(features, labels), features)
    assert np.mean((in_sample > 0) == labels) == 1.0
    assert 0.3 < np.mean(cross_validated_auc(features, labels)) < 0.7


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
    assert np.mean(cross_validated_auc(features, labels)) == 1.0
    grouped = cross_validated_auc(features, labels, groups=[f"scene {scene}" for scene in scenes])
    assert 1 <= len(grouped) <= 5
    assert np.mean(grouped) < 0.8


@pytest.mark.parametrize(("real", "fake", "said"), [(9, 0, "0 fake"), (4, 9, "4 real")])
def test_too_few_images_or_groups_of_a_class_are_refused(real, fake, said):
    labels = np.array([0] * real + [1] * fake)
    for function in (fit_head, cross_validated_auc):
        with pytest.raises(ConfigError, match=said):
            function(np.zeros((len(labels), 3), np.float32), labels)
    features, labels = clouds()
    with pytest.raises(ConfigError, match="of one group"):
        cross_validated_auc(
            features,
            labels,
            groups=["a" if label else f"b{index}" for index, label in enumerate(labels)],
        )


def pictures(n, side=28):
    """Dark and bright noise."""
    random = np.random.default_rng(0)
    return np.stack(
        [
            random.integers(0, 60 + 150 * (index % 2), (side, side, 3), dtype=np.uint8)
            for index in range(n)
        ]
    )


@pytest.mark.parametrize(
    ("feature", "normalise", "width"), [("class-token", True, 64), ("projected", False, 32)]
)
def test_a_fitted_head_scores_through_its_card(tmp_path, feature, normalise, width):
    base, _ = small_card(tmp_path, feature=feature, normalise=normalise)
    (tmp_path / "weights.pth").unlink()
    reader = FeatureReader(base, precision="fp32")
    pixels, labels = pictures(40), np.arange(40) % 2
    features = np.concatenate(
        [reader.read(pixels[start : start + reader.slots]) for start in range(0, 40, reader.slots)]
    )
    assert features.shape == (40, width)
    assert np.allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5) == normalise

    head = fit_head(features, labels)
    aucs = cross_validated_auc(features, labels)
    made = tmp_path / "made"
    sha256 = save_head(made / "weights.pth", head)
    state = torch.load(made / "weights.pth", weights_only=True)["model"]
    assert {key: tuple(tensor.shape) for key, tensor in state.items()} == {
        "fc.weight": (1, width),
        "fc.bias": (1,),
    }, "as published"
    card = write_card(
        made / "card.yaml",
        base,
        name="mine",
        weights=made / "weights.pth",
        sha256=sha256,
        fit=Fit("svm", "mine.csv", 20, 20, aucs),
    )
    assert card == load_card(made / "card.yaml")
    assert (card.name, card.preprocessing, card.architecture.arguments) == (
        "mine",
        base.preprocessing,
        base.architecture.arguments,
    )
    (figure,) = card.published
    assert (figure.metric, figure.n, figure.verified) == ("ROC AUC", 40, True)
    assert figure.value == pytest.approx(np.mean(aucs), abs=1e-4)
    assert load_detector(card, precision="fp32").score(pixels) == pytest.approx(
        scores(head, features), abs=1e-4
    )


def test_a_shipped_backbone_is_named_and_another_is_described(tmp_path):
    fit = Fit("svm", "mine.csv", 5, 5, [0.5])
    for base in (load_card("unifd"), load_card("clip-d-10k-plus:thumb1024")):
        write_card(
            tmp_path / "card.yaml",
            base,
            name="mine",
            weights=tmp_path / "weights.pth",
            sha256="0" * 64,
            fit=fit,
        )
        data = yaml.safe_load((tmp_path / "card.yaml").read_text())
        assert data["backbone"] == base.backbone.name
        assert load_card(tmp_path / "card.yaml").backbone == base.backbone
        assert load_card(tmp_path / "card.yaml").preprocessing == base.preprocessing
    small, _ = small_card(tmp_path)
    renamed = small.model_copy(
        update={"backbone": small.backbone.model_copy(update={"name": "unifd"})}
    )
    written = write_card(
        tmp_path / "other.yaml",
        renamed,
        name="mine",
        weights=tmp_path / "weights.pth",
        sha256="0" * 64,
        fit=fit,
    )
    assert isinstance(written.backbone, Backbone)
    assert written.backbone.weights.uri == str(tmp_path / "clip.safetensors")


def test_only_linear_heads_on_a_backbone_that_is_here_are_fitted(tmp_path, own_cache):
    with pytest.raises(ConfigError, match="clip-linear"):
        FeatureReader(load_card("touchstone-tiny"))
    base, _ = small_card(tmp_path)
    (tmp_path / "clip.safetensors").unlink()
    with pytest.raises(DetectorError, match=r"small-tower.*clip\.safetensors"):
        FeatureReader(base)


def test_features_are_kept_by_image_backbone_and_preprocessing(tmp_path):
    base, _ = small_card(tmp_path)
    key = FeatureReader(base).key
    cache = FeatureCache(tmp_path / "features.npz", key)
    assert "a" not in cache
    cache.add({"a": np.arange(3, dtype=np.float32), "b": np.ones(3, np.float32)})
    cache.save()
    again = FeatureCache(tmp_path / "features.npz", key)
    assert "b" in again
    assert again["a"].tolist() == [0, 1, 2]

    resized = base.model_copy(
        update={"preprocessing": base.preprocessing.model_copy(update={"filter": "bicubic"})}
    )
    other = FeatureReader(resized).key
    assert other != key
    assert FeatureReader(base, precision="fp32").key != FeatureReader(base, precision="bf16").key
    assert "a" not in FeatureCache(tmp_path / "features.npz", other)

    cache.add({str(index): np.zeros(3, np.float32) for index in range(600)})
    assert "599" in FeatureCache(tmp_path / "features.npz", key), "many are saved on the way"
    (tmp_path / "features.npz").write_bytes(b"PK\x03\x04 half a file")
    damaged = FeatureCache(tmp_path / "features.npz", key)
    damaged.add({"c": np.zeros(3, np.float32)})
    damaged.save()
    assert "c" in FeatureCache(tmp_path / "features.npz", key)


def test_even_weights_let_a_small_group_count_as_much_as_a_large_one():
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
    plain = fit_head(features, labels, "logistic")
    evenly = fit_head(features, labels, "logistic", weights=weights)
    assert plain.weight[0, 0] > 5 * abs(evenly.weight[0, 0])
    assert evenly.weight[0, 1] > abs(evenly.weight[0, 0])
