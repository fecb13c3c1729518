import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    f1_score,
    precision_score,
    recall_score,
    roc_auc_score,
    top_k_accuracy_score,
)

from ray_app.metrics.identification import measure_identification, measure_open_set, measure_pairs

NAMES = ["dalle", "flux", "mj", "sd", "sdxl"]


def drawn(seed, n=200, missing=0.1):
    """True names of uneven frequency; predictions that are right half of the time, foreign or none
    at times.
    """
    rng = np.random.default_rng(seed)
    truth = rng.choice(NAMES, n, p=[0.5, 0.3, 0.1, 0.07, 0.03]).tolist()
    guesses = rng.choice([*NAMES, "never-true"], n).tolist()
    right, none = rng.random(n) < 0.5, rng.random(n) < missing
    predicted = [
        None if gone else name if ok else guess
        for gone, ok, name, guess in zip(none, right, truth, guesses, strict=True)
    ]
    return predicted, truth


def test_figures_equal_scikit_learn():
    predicted, truth = drawn(0)
    found = measure_identification(predicted, truth)
    said = ["(none)" if name is None else name for name in predicted]
    labels = sorted(set(truth))
    assert found.figures["accuracy"].value == pytest.approx(accuracy_score(truth, said), abs=1e-9)
    for figure, average in (("macro_f1", "macro"), ("weighted_f1", "weighted")):
        expected = f1_score(truth, said, labels=labels, average=average, zero_division=0)
        assert found.figures[figure].value == pytest.approx(expected, abs=1e-9)
        low, high = found.figures[figure].interval
        assert low < expected < high
    scores = {"precision": precision_score, "recall": recall_score, "f1": f1_score}
    for name in ("micro_f1", "macro_precision", "micro_precision", "macro_recall"):
        average, _, score = name.partition("_")
        expected = scores[score](truth, said, labels=labels, average=average, zero_division=0)
        assert found.figures[name].value == pytest.approx(expected, abs=1e-9)
    for row in found.classes:
        for key, score in scores.items():
            expected = score(truth, said, labels=[row["name"]], average="macro", zero_division=0)
            assert (row[key].value or 0) == pytest.approx(expected, abs=1e-9)
        assert (row["n"], row["predicted"]) == (truth.count(row["name"]), said.count(row["name"]))
    sizes = [row["n"] for row in found.classes]
    assert sizes == sorted(sizes, reverse=True)


def test_top_k_is_scikit_learn_s():
    rng = np.random.default_rng(0)
    scores = rng.random((60, len(NAMES)))
    codes = rng.integers(0, len(NAMES), 60)
    rankings = [[NAMES[place] for place in np.argsort(-row)] for row in scores]
    found = measure_identification(
        [ranking[0] for ranking in rankings], [NAMES[code] for code in codes], rankings=rankings
    )
    assert found.figures["top_5"].value == 1  # there are no more names
    for k in (1, 3):
        assert found.figures[f"top_{k}"].value == pytest.approx(
            top_k_accuracy_score(codes, scores, k=k, labels=range(5)), abs=1e-9
        )


def test_images_of_unknown_generators_stay_out_of_accuracy():
    pairs = {("sd", "sd"): 1, ("new", "sd"): 1, ("new", None): 1, ("sd", "mj"): 1}
    found = measure_pairs(pairs, known={"sd", "mj"})
    assert (found.figures["accuracy"].value, found.figures["accuracy"].n) == (0.5, 2)
    assert (found.figures["unknown_named"].value, found.figures["unknown_named"].n) == (0.5, 2)
    assert [row["name"] for row in found.classes] == ["sd"]
    closed = measure_identification(["sd"], ["sd"])
    assert closed.figures["unknown_named"].why == "no list of known generators"


def test_the_open_set_auroc_is_scikit_learn_s_with_ties():
    rng = np.random.default_rng(3)
    truth = rng.choice(["sd", "new"], 80).tolist()
    confidence = (rng.random(80) + (np.array(truth) == "sd") * 0.3).round(1)
    found = measure_open_set(truth, {"sd"}, confidence)
    assert found.value == pytest.approx(
        roc_auc_score(np.array(truth) == "sd", confidence), abs=1e-9
    )
    assert found.interval[0] < found.value < found.interval[1]


def test_what_is_not_defined_says_why():
    empty = measure_identification([], [])
    for name in ("accuracy", "macro_f1", "weighted_f1"):
        assert empty.figures[name].why == "no image of a known generator"
    assert (empty.classes, empty.pairs) == ([], [])
    found = measure_identification([None, "mj"], ["sd", "sd"])
    assert found.figures["macro_f1"].value == 0
    assert found.figures["top_1"] == found.figures["accuracy"]
    assert found.figures["top_3"].why == "no ranking of generators with the predicted ones"
    assert found.classes[0]["precision"].why == "never predicted"
    known_only, bare = (measure_open_set(["sd"], {"sd"}, given) for given in ([1.0], None))
    assert known_only.why == "needs images of known and of unknown generators"
    assert bare.why == "no confidence with the predicted generators"
    with pytest.raises(ValueError, match="1 predicted names for 2"):
        measure_identification(["sd"], ["sd", "mj"])
    with pytest.raises(ValueError, match="not finite"):
        measure_open_set(["sd", "new"], {"sd"}, [np.nan, 1])


def test_intervals_do_not_depend_on_the_order_of_rows():
    predicted, truth = drawn(3)
    again = measure_identification(predicted[::-1], truth[::-1])
    assert again.figures == measure_identification(predicted, truth).figures
