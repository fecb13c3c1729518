"""Heads over generators: names, probabilities, abstentions, and the card. No Ray, no image."""

import math

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, roc_auc_score

from ray_app.detectors import load_card
from ray_app.errors import ConfigError
from ray_app.identification.cards import load_identifier
from ray_app.identification.identifier import Identifier, softmax
from ray_app.training.config import Identify
from ray_app.training.identifier import assign_classes, find_threshold, fit
from ray_app.training.identify import CARD, LabelledEmbeddings, make_identifier
from tests.training.small_recipes import recipe

KNOWN = ("flux.1-dev", "maker-a", "sd-1.4", "sd-1.5", "sdxl")
UNKNOWN = ("maker-b", "maker-c")
WIDTH = 24


def drawn(seed, counts, *, spread=1.0):
    """Pairs of images of each generator around a mean that is the same for every seed."""
    rng, vectors, names = np.random.default_rng(seed), [], []
    for name, count in counts.items():
        mean = np.random.default_rng([5, *name.encode()]).normal(size=WIDTH) * 1.2
        vectors.append(mean + spread * rng.normal(size=(count, WIDTH)))
        names += [name] * count
    order = rng.permutation(len(names))
    return LabelledEmbeddings(
        np.concatenate(vectors)[order].astype(np.float32) + 3,
        [names[place] for place in order],
        [f"{seed}-{place // 2}" for place in range(len(names))],
    )


def splits(**options):
    known = {name: 40 + 60 * place for place, name in enumerate(KNOWN)}
    return {
        "train": drawn(1, known, **options),
        "validation": drawn(2, dict.fromkeys(KNOWN, 80), **options),
        "test": drawn(3, dict.fromkeys((*KNOWN, *UNKNOWN), 120), **options),
    }


def codes_of(given):
    return np.array([KNOWN.index(name) for name in given.names])


def made(folder, given=None, **section):
    trained = recipe("vit", method="identify", identify={"c": 10.0} | section)
    card = load_card("touchstone-tiny")
    return make_identifier(folder, trained, card, {"width": WIDTH}, given or splits(), KNOWN)


@pytest.mark.parametrize(("head", "open_set"), [("linear", "energy"), ("cosine", "distance")])
def test_known_generators_are_named_and_unknown_not(tmp_path, head, open_set):
    given = splits()
    found = made(tmp_path, given, head=head, open_set=open_set, abstains=0.1)
    said = Identifier(load_identifier(tmp_path / CARD)).identify(given["test"].vectors)
    truth = np.array(given["test"].names)
    known = np.isin(truth, KNOWN)
    best = np.array([found.card.classes[place] for place in said.ranking[:, 0]])
    test = found.figures["test"]
    figures = {name: row["value"] for name, row in test["figures"].items()}
    f1 = f1_score(truth[known], best[known], labels=KNOWN, average="macro")
    for name, expected in {
        "accuracy": (best == truth)[known].mean(),
        "macro_f1": f1,
        "open_set_auroc": roc_auc_score(known, said.confidence),
        "abstained": (said.codes[known] < 0).mean(),
        "unknown_abstained": (said.codes[~known] < 0).mean(),
    }.items():
        assert figures[name] == pytest.approx(expected), name
    assert figures["accuracy"] > 0.9
    assert figures["open_set_auroc"] > 0.8
    assert figures["abstained"] == pytest.approx(0.1, abs=0.04)
    assert figures["unknown_abstained"] > 3 * figures["abstained"]
    assert figures["family_accuracy"] >= figures["accuracy"]
    assert figures["calibration_error"] < 0.05
    assert [row["name"] for row in test["unknown"]] == list(UNKNOWN)
    assert {row["name"]: row["n"] for row in test["classes"]} == dict.fromkeys(KNOWN, 120)
    assert {name for name, *_ in test["pairs"]} <= set(KNOWN)
    np.testing.assert_array_equal(found.predicted["test"].codes, said.codes)


def test_probabilities_match_scikit_learn_after_temperature():
    train = splits()["train"]
    codes = codes_of(train)
    found = fit(train.vectors, codes, train.groups, Identify(c=100.0))
    assert found.losses.keys() == {100.0}
    scaled = (train.vectors - train.vectors.mean(0)) / train.vectors.std(0) / math.sqrt(WIDTH)
    model = LogisticRegression(C=100.0, class_weight="balanced", max_iter=2000)
    expected = model.fit(scaled, codes).predict_proba(scaled)
    logits = train.vectors @ found.tensors["weight"].T + found.tensors["bias"]
    np.testing.assert_allclose(softmax(logits * found.temperature), expected, atol=2e-3)


def test_temperature_lowers_the_loss_of_an_overfitted_head():
    given = splits(spread=3.0)
    train, unseen = given["train"], given["validation"]
    codes = codes_of(unseen)
    found = fit(train.vectors, codes_of(train), train.groups, Identify(c=1e5))
    logits = unseen.vectors @ found.tensors["weight"].T + found.tensors["bias"]
    cold, warm = (
        -np.log(softmax(logits * scale)[np.arange(len(logits)), codes]).mean()
        for scale in (1.0, found.temperature)
    )
    assert found.temperature > 1.2
    assert cold < warm


def test_strength_is_chosen_on_images_not_fitted_on():
    train = splits(spread=3.0)["train"]
    found = fit(train.vectors, codes_of(train), train.groups, Identify())
    assert found.c == min(found.losses, key=found.losses.get)
    assert list(found.losses)[-2:] == [found.c, found.c * 10], "it stops at the first worse loss"


def test_two_generators_are_enough_to_fit():
    given = drawn(1, {"sd-1.5": 60, "sdxl": 20})
    codes = np.array([name == "sdxl" for name in given.names], np.int64)
    found = fit(given.vectors, codes, given.groups, Identify())
    logits = given.vectors @ found.tensors["weight"].T + found.tensors["bias"]
    assert logits.shape == (80, 2)
    assert (logits.argmax(1) == codes).mean() > 0.95
    uncalibrated = fit(given.vectors, codes, ["all"] * 80, Identify())
    assert (uncalibrated.temperature, uncalibrated.losses) == (1.0, {})
    assert "one group" in uncalibrated.why_not


def test_threshold_guarantee_holds_for_finite_samples():
    """The mean fraction of new images below it is k / (n + 1), for the largest k that is allowed."""
    rng = np.random.default_rng(0)
    for n, asked, expected in ((39, 0.05, 2 / 40), (19, 0.05, 1 / 20), (200, 0.1, 20 / 201)):
        fractions = [
            (rng.random(400) < find_threshold(rng.random(n).astype(np.float32), asked)).mean()
            for _ in range(3000)
        ]
        assert np.mean(fractions) == pytest.approx(expected, abs=0.003)
        assert expected <= asked
    with pytest.raises(ConfigError, match=r"18 validation images .* 19 are needed"):
        find_threshold(np.zeros(18, np.float32), 0.05)


def test_card_of_an_identifier_reads_back(tmp_path):
    found = made(tmp_path, families={"maker-a": "house-a"}, open_set="distance")
    card = load_identifier(tmp_path / CARD)
    assert card == found.card
    assert card.class_families == ("flux.1_d", "house-a", "sd_1.5", "sd_1.5", "sdxl_1.0")
    assert card.open_set.n == 400
    assert card.detector == "touchstone-tiny"
    assert {figure.metric for figure in card.published} >= {"accuracy", "macro F1"}
    assert all(figure.set.endswith(", test") for figure in card.published)


def test_metrics_without_unknown_images_have_a_reason(tmp_path):
    test = drawn(3, dict.fromkeys(KNOWN, 30))
    found = made(tmp_path, splits() | {"test": test}, abstains=0.0)
    assert found.card.open_set is None
    assert (found.predicted["test"].codes >= 0).all(), "nothing may abstain"
    figures = found.figures["test"]["figures"]
    assert figures["unknown_abstained"]["value"] is None
    assert figures["unknown_abstained"]["why"] == "no image of an unknown generator"
    assert figures["open_set_auroc"]["why"]


def test_metrics_count_real_images_apart(tmp_path):
    test = drawn(4, {"real": 40, "sdxl": 30})
    found = made(tmp_path, splits() | {"test": test}).figures["test"]
    assert (found["n_real"], found["n_known"], found["n_unknown"]) == (40, 30, 0)
    assert found["figures"]["reals_abstained"]["n"] == 40


def test_generator_is_held_out_by_any_spelling():
    generators = ["flux.1-dev", "flux-1.1-pro", "sdxl/mine", "sdxl", "real"]
    section = Identify(held_out=("FLUX dev", "sdxl/mine", "sd-3"))
    rows = assign_classes(section, ["fake"] * 4 + ["real"], generators)
    assert rows.held_out.tolist() == [True, False, True, False, False]
    assert rows.absent == ("sd-3",)
