"""Figures of predicted prompts beside what costs nothing."""

import pytest

from ray_app.metrics.intervals import proportion_interval
from ray_app.metrics.text import bleu4, rouge_l, token_f1
from ray_app.training.describe import chance_prompts, compared

TRUTH = ["a red circle, upper left", "a blue square, lower right", "a green cross, lower left"]


def test_each_system_has_the_figures_of_its_texts():
    said = ["A red circle upper left.", "a blue circle, lower right", "nothing"]
    found = compared(TRUTH, {"describer": said, "retrieval": "no embeddings"})
    assert found["describer"]["exact"]["value"] == pytest.approx(1 / 3)
    assert found["describer"]["exact"]["interval"] == pytest.approx(list(proportion_interval(1, 3)))
    for name, figure in (("token_f1", token_f1), ("bleu4", bleu4), ("rouge_l", rouge_l)):
        assert found["describer"][name] == figure(said, TRUTH).row()
        assert found["retrieval"][name]["value"] is None
        assert found["retrieval"][name]["why"] == "no embeddings"


def test_chance_knows_training_prompts_alone_and_is_the_same_again():
    train = ["b", "a", "a", "b", "c"]
    found = chance_prompts(train, 500, seed=3)
    assert found == chance_prompts(train, 500, seed=3)
    assert found["most_frequent"] == ["a"] * 500
    assert set(found["random"]) == {"a", "b", "c"}
    assert found["random"].count("a") == pytest.approx(200, abs=60)
