"""DFLIP-3K's own marks on answers in words, against a reading of its rules by hand."""

import pytest

from ray_app.evaluation.dflip import REAL, dflip_v1, format_sentence, parse_class
from ray_app.evaluation.generator_names import Names
from ray_app.metrics.table import MetricsTable

KNOWN = {"real", "dalle", "mj", "sd", "DreamShaper"}


def by(name):
    return f"This is an ai generated image by {name}."


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        (REAL, "real"),
        (by("Midjourney"), "mj"),
        (by("dreamshaper"), "sd"),  # the exact name, or else an unknown one
        (None, None),
    ],
)
def test_sentence_names_a_class_and_unknown_names_are_sd(answer, named):
    assert parse_class(answer, KNOWN) == named


@pytest.mark.parametrize(
    ("verdict", "name", "sentence"),
    [
        ("real", "sdxl", REAL),
        ("fake", "dalle-2", by("DALLE")),
        ("fake", None, by("an unknown generator")),
        ("abstain", "sdxl", None),
        ("real", by("DALLE"), by("DALLE")),  # an answer in words is one
    ],
)
def test_a_verdict_and_a_name_become_a_sentence_of_theirs(verdict, name, sentence):
    assert format_sentence(verdict, name) == sentence


def test_dflip_v1_by_hand_with_flaws_of_its_rules():
    """Seven images of the list have rows, three have none."""
    words = {
        ("real", "real:laion", "real", None): 1,  # right
        ("fake", "mj", "fake", "midjourney-6"): 1,  # right
        ("fake", "sd", "fake", None): 1,  # right by luck: an unknown name is sd
        ("fake", "DreamShaper", "fake", "dream-shaper"): 1,  # sd by the letter, right by the index
        ("fake", "DreamShaper", "fake", "never heard"): 1,  # sd
        ("fake", "dalle", "abstain", "dalle-2"): 1,  # no answer
        ("fake", "imagen", "real", "dalle-2"): 1,  # detected only, and wrongly
    }
    infos, rows = dflip_v1(words, Names(), missing=3)
    metrics = MetricsTable(tuple(rows))
    theirs, by_index, detection = (metrics.select(scope=info.scope) for info in infos)
    assert (theirs["accuracy"].value, theirs["accuracy"].n) == (pytest.approx(3 / 9), 9)
    # the lucky one is wrong now, the misspelt one right
    assert by_index["accuracy"].value == pytest.approx(3 / 9)
    # real, mj: 1; sd: one right of three named, one true: 2/4; DreamShaper and dalle: 0
    assert theirs["macro_f1"].value == pytest.approx((1 + 1 + 0.5 + 0 + 0) / 5)
    # real, mj: 1; sd: 0; DreamShaper: one right, one named, two true: 2/3; dalle: 0
    assert by_index["macro_f1"].value == pytest.approx((1 + 1 + 0 + 2 / 3 + 0) / 5)
    assert detection["accuracy"].value == pytest.approx(5 / 10)
    # fake: four of six, none wrongly: 8/10; real: one of two said: 2/3
    assert detection["macro_f1"].value == pytest.approx((0.8 + 2 / 3) / 2)
    assert {one.name for one in infos[2].classes} == {"real", "dalle", "mj", "sd", "sdft", "imagen"}
    group = metrics.select(scope="identification, detection: sdft")
    assert (group["accuracy"].n, group["accuracy"].value) == (2, 1)
    assert group["accuracy_by_their_formula"].value == pytest.approx(2 / 2.001, abs=1e-12)
    flaws = " ".join(infos[0].notes)
    assert "3 answers here, 1 of which are right only because of this" in flaws
    assert "3 labels without a row here, 1 row without an answer" in flaws
    assert "fourth word" in flaws
    assert ".001" in flaws
