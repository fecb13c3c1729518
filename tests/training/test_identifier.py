"""Heads over generators from arrays: what they name, how sure they are, when they abstain, what the
card says. No Ray, no image.
"""

import math
from collections import Counter

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, roc_auc_score

from ray_app.detectors import load_card
from ray_app.errors import ConfigError
from ray_app.identification.cards import load_identifier
from ray_app.identification.identifier import Identifier, softmax
from ray_app.training.config import Identify
from ray_app.training.identifier import fit, named, threshold
from ray_app.training.identify import CARD, LabelledEmbeddings, make_identifier
from tests.training.small_recipes import recipe

KNOWN = ("flux.1-dev", "maker-a", "sd-1.4", "sd-1.5", "sdxl")
STRANGERS = ("maker-b", "maker-c")
WIDTH = 24


def drawn(seed, counts, *, spread=1.0, groups_of=2):
    """Images of each generator around a mean of its own that is the same for every seed."""
    rng, vectors, names = np.random.default_rng(seed), [], []
    for name, count in counts.items():
        mean = np.random.default_rng([5, *name.encode()]).normal(size=WIDTH) * 1.2
        vectors.append(mean + spread * rng.normal(size=(count, WIDTH)))
        names += [name] * count
    order = rng.permutation(len(names))
    groups = [f"{seed}-{place // groups_of}" for place in range(len(names))]
    return LabelledEmbeddings(
        np.concatenate(vectors)[order].astype(np.float32) + 3,
        [names[place] for place in order],
        groups,
    )


def splits(**options):
    known = {name: 40 + 60 * place for place, name in enumerate(KNOWN)}
    every = dict.fromkeys((*KNOWN, *STRANGERS), 120)
    return {
        "train": drawn(1, known, **options),
        "validation": drawn(2, dict.fromkeys(KNOWN, 80), **options),
        "test": drawn(3, every, **options),
    }


def made(folder, given=None, **section):
    trained = recipe("vit", method="identify", identify=section)
    return make_identifier(
        folder, trained, load_card("touchstone-tiny"), {"width": WIDTH}, given or splits(), KNOWN
    )


@pytest.mark.parametrize(("head", "open_set"), [("linear", "energy"), ("cosine", "distance")])
def test_known_generators_are_named_and_unknown_ones_are_not(tmp_path, head, open_set):
    given = splits()
    found = made(tmp_path, given, head=head, open_set=open_set, abstains=0.1, c=10.0)
    said = Identifier(load_identifier(tmp_path / CARD)).identify(given["test"].vectors)
    truth = np.array(given["test"].names)
    known = np.isin(truth, KNOWN)
    best = np.array([found.card.classes[place] for place in said.ranking[:, 0]])
    figures = {name: row["value"] for name, row in found.figures["test"]["figures"].items()}
    assert figures["accuracy"] == pytest.approx((best == truth)[known].mean())
    assert figures["accuracy"] > 0.9
    assert figures["macro_f1"] == pytest.approx(
        f1_score(truth[known], best[known], labels=KNOWN, average="macro")
    )
    assert figures["open_set_auroc"] == pytest.approx(roc_auc_score(known, said.confidence))
    assert figures["open_set_auroc"] > 0.8
    assert figures["abstained"] == pytest.approx((said.codes[known] < 0).mean())
    assert figures["abstained"] == pytest.approx(0.1, abs=0.04)
    assert figures["unknown_abstained"] == pytest.approx((said.codes[~known] < 0).mean())
    assert figures["unknown_abstained"] > 3 * figures["abstained"]
    assert figures["family_accuracy"] >= figures["accuracy"]
    assert figures["calibration_error"] < 0.05
    assert [row["name"] for row in found.figures["test"]["unknown"]] == list(STRANGERS)
    assert {row["name"]: row["n"] for row in found.figures["test"]["classes"]} == dict.fromkeys(
        KNOWN, 120
    )


def test_chances_are_those_of_logistic_regression_divided_by_the_temperature():
    train = splits()["train"]
    codes = np.array([KNOWN.index(name) for name in train.names])
    found = fit(train.vectors, codes, train.groups, Identify(c=100.0))
    assert found.losses.keys() == {100.0}
    scaled = (train.vectors - train.vectors.mean(0)) / train.vectors.std(0) / math.sqrt(WIDTH)
    reference = LogisticRegression(C=100.0, class_weight="balanced", max_iter=2000).fit(
        scaled, codes
    )
    ours = softmax(
        (train.vectors @ found.tensors["weight"].T + found.tensors["bias"]) * found.temperature
    )
    np.testing.assert_allclose(ours, reference.predict_proba(scaled), atol=2e-3)


def test_a_temperature_undoes_what_a_weak_penalty_overdoes():
    given = splits(spread=3.0)
    codes = {
        name: np.array([KNOWN.index(one) for one in given[name].names if one in KNOWN])
        for name in ("train", "validation")
    }
    found = fit(given["train"].vectors, codes["train"], given["train"].groups, Identify(c=1e5))
    logits = given["validation"].vectors @ found.tensors["weight"].T + found.tensors["bias"]
    losses = [
        -np.log(softmax(logits * t)[np.arange(len(logits)), codes["validation"]]).mean()
        for t in (1.0, found.temperature)
    ]
    assert found.temperature > 1.2
    assert losses[0] < losses[1]


def test_the_strength_is_chosen_by_images_that_were_not_fitted_on():
    given = splits(spread=3.0)["train"]
    codes = np.array([KNOWN.index(name) for name in given.names])
    found = fit(given.vectors, codes, given.groups, Identify())
    assert found.c == min(found.losses, key=found.losses.get)
    assert list(found.losses)[-2:] == [found.c, found.c * 10], "it stops at the first that is worse"


def test_two_generators_are_enough_and_of_one_group_nothing_is_calibrated():
    given = drawn(1, {"sd-1.5": 60, "sdxl": 20})
    codes = np.array([name == "sdxl" for name in given.names], np.int64)
    found = fit(given.vectors, codes, given.groups, Identify())
    logits = given.vectors @ found.tensors["weight"].T + found.tensors["bias"]
    assert logits.shape == (80, 2)
    assert (logits.argmax(1) == codes).mean() > 0.95
    uncalibrated = fit(given.vectors, codes, ["all"] * 80, Identify())
    assert (uncalibrated.temperature, uncalibrated.losses) == (1.0, {})
    assert "one group" in uncalibrated.why_not


def test_the_threshold_keeps_its_promise_of_finite_samples():
    """Over many draws, the mean share of new images below it is k / (n + 1) for the largest k that
    does not exceed what was asked.
    """
    rng = np.random.default_rng(0)
    for n, asked, wanted in ((39, 0.05, 2 / 40), (19, 0.05, 1 / 20), (200, 0.1, 20 / 201)):
        shares = [
            (rng.random(400) < threshold(rng.random(n).astype(np.float32), asked)).mean()
            for _ in range(3000)
        ]
        assert np.mean(shares) == pytest.approx(wanted, abs=0.003)
        assert wanted <= asked
    with pytest.raises(
        ConfigError, match=r"18 validation images .* too few to abstain on 5\.0%: 19 are needed"
    ):
        threshold(np.zeros(18, np.float32), 0.05)


def test_the_card_tells_what_it_is_and_reads_back(tmp_path):
    found = made(tmp_path, families={"maker-a": "house-a"}, open_set="distance", c=10.0)
    read = load_identifier(tmp_path / CARD)
    assert read == found.card
    assert read.class_families == ("flux.1_d", "house-a", "sd_1.5", "sd_1.5", "sdxl_1.0")
    assert read.open_set.n == 400
    assert read.detector == "touchstone-tiny"
    assert {figure.metric for figure in read.published} >= {"accuracy", "macro F1"}
    assert all(figure.set.endswith(", test") for figure in read.published)
    np.testing.assert_array_equal(
        found.predicted["test"].codes, Identifier(read).identify(splits()["test"].vectors).codes
    )
    assert Counter(name for name, *_ in found.figures["test"]["pairs"]).keys() <= set(KNOWN)


def test_without_unknown_or_real_images_their_figures_have_a_reason_and_who_asks_for_none_names_all(
    tmp_path,
):
    found = made(
        tmp_path, splits() | {"test": drawn(3, dict.fromkeys(KNOWN, 30))}, abstains=0.0, c=10.0
    )
    assert found.card.open_set is None
    assert (found.predicted["test"].codes >= 0).all()
    figures = found.figures["test"]["figures"]
    assert (figures["unknown_abstained"]["value"], figures["unknown_abstained"]["why"]) == (
        None,
        "no image of an unknown generator",
    )
    assert figures["open_set_auroc"]["why"]
    found = made(tmp_path, splits() | {"test": drawn(4, {"real": 40, "sdxl": 30})}, c=10.0).figures[
        "test"
    ]
    assert (found["n_real"], found["n_known"], found["n_unknown"]) == (40, 30, 0)
    assert found["figures"]["reals_abstained"]["n"] == 40


def test_a_generator_is_held_out_by_any_spelling_and_its_family_is_not():
    generators = ["flux.1-dev", "flux-1.1-pro", "sdxl/mine", "sdxl", "real"]
    rows = named(
        Identify(held_out=("FLUX dev", "sdxl/mine", "sd-3")), ["fake"] * 4 + ["real"], generators
    )
    assert rows.held_out.tolist() == [True, False, True, False, False]
    assert rows.absent == ("sd-3",)
