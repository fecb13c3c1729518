"""DFLIP-3K's own marks on answers in words, against a reading of its rules image by image."""

from collections import Counter

import numpy as np
import pytest
from sklearn.metrics import f1_score

from ray_app.evaluation.dflip import REAL, class_of, detects, named_in, sentence_of
from ray_app.evaluation.dflip import dflip_v1 as marked
from ray_app.evaluation.groups import Names

KNOWN = {"real", "dalle", "mj", "sd", "DreamShaper"}


def dflip_v1(answers, missing=0):
    """Of answers in words, without a verdict."""
    return marked({(label, generator, None, answer): n for (label, generator, answer), n in answers.items()}, Names(), missing)


def by(name):
    return f"This is an ai generated image by {name}."


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        (REAL, "real"),
        (by("Midjourney"), "mj"),
        (by("DreamShaper"), "DreamShaper"),
        (by("dreamshaper"), "sd"),  # the exact name, or else an unknown one
        (f" {REAL}\n", "real"),
        ("StableDiffusion", None),
        (None, None),
    ],
)
def test_a_whole_sentence_names_a_class_and_an_unknown_name_is_sd(answer, named):
    assert named_in(answer, KNOWN) == named


@pytest.mark.parametrize(
    ("generator", "family"),
    [("DALL-E", "dalle"), ("midjourney-v5", "mj"), ("stable-diffusion", "sd"), ("parti-20b", "parti"), ("sdftood", "sdftood"),
     ("sdxl", "sdxl"), ("DreamShaper", "DreamShaper")],
)  # fmt: skip
def test_labels_become_classes(generator, family):
    assert class_of("fake", generator) == family
    assert class_of("real", "real:laion") == "real"


def test_detection_looks_for_words():
    assert detects("fake", "I think it is ai generated")
    assert detects("real", "as real as can be")
    assert not detects("fake", "real")
    assert not detects("real", None)


def test_figures_are_those_of_every_image_marked_by_itself():
    rng = np.random.default_rng(0)
    labels = [("real", "real:laion"), ("fake", "dalle"), ("fake", "mj"), ("fake", "sd"), ("fake", "DreamShaper"), ("fake", "imagen")]
    said = [REAL, by("DALLE"), by("Midjourney"), by("StableDiffusion"), by("DreamShaper"), by("Unheard"), "no idea", None]
    images = [(*labels[one], said[other]) for one, other in zip(rng.integers(0, 6, 300), rng.integers(0, 8, 300), strict=True)]
    found = dflip_v1(Counter(images), missing=20)

    identified = [(class_of(*image[:2]), named_in(image[2], KNOWN)) for image in images if image[1] != "imagen"]
    assert found["accuracy"]["value"] == pytest.approx(sum(one == other for one, other in identified) / (len(identified) + 20), abs=1e-12)
    assert found["accuracy"]["n"] == len(identified) + 20
    truth, named = [one for one, _ in identified], [other or "(none)" for _, other in identified]
    assert found["macro_f1"]["value"] == pytest.approx(f1_score(truth, named, labels=sorted(KNOWN), average="macro", zero_division=0))

    right = [detects(label, answer) for label, _, answer in images]
    assert found["detection"]["accuracy"]["value"] == pytest.approx(sum(right) / 320, abs=1e-12)
    labels = [image[0] for image in images]
    other = {"fake": "real", "real": "fake"}
    marks = [
        one if ok else other[one] if detects(other[one], image[2]) else "" for one, ok, image in zip(labels, right, images, strict=True)
    ]
    assert found["detection"]["macro_f1"]["value"] == pytest.approx(f1_score(labels, marks, labels=["fake", "real"], average="macro"))
    groups = {row["name"]: row for row in found["detection"]["groups"]}
    assert set(groups) == {"real", "dalle", "mj", "sd", "sdft", "imagen"}
    tuned = [ok for ok, image in zip(right, images, strict=True) if image[1] == "DreamShaper"]
    assert (groups["sdft"]["n"], groups["sdft"]["accuracy"]["value"]) == (len(tuned), pytest.approx(np.mean(tuned)))
    assert groups["sdft"]["theirs"] == pytest.approx(sum(tuned) / (len(tuned) + 0.001), abs=1e-12)
    assert {name: row["distribution"] for name, row in groups.items()}["imagen"] == "out"
    worst = found["pairs"][0]
    assert worst[2] == max(n for (one, other), n in Counter(identified).items() if one != other)


def test_names_alone_say_nothing_of_detection_and_groups_out_of_distribution_identify_nothing():
    found = dflip_v1(Counter({("fake", "sd", "sd"): 3}))
    assert found["detection"]["accuracy"]["why"] == "no answer is a sentence, and there is no verdict"
    assert (found["accuracy"]["value"], found["macro_f1"]["value"]) == (0, 0)
    found = dflip_v1(Counter({("fake", "imagen", by("DALLE")): 3}))
    assert (found["accuracy"]["why"], found["macro_f1"]["why"]) == ("no image", "no image")
    assert found["detection"]["accuracy"]["value"] == 1


@pytest.mark.parametrize(
    ("verdict", "name", "sentence"),
    [
        ("real", "sdxl", REAL),
        ("fake", "dalle-2", by("DALLE")),
        ("fake", "Realistic Vision v5", by("Realistic Vision v5")),
        ("fake", None, by("an unknown generator")),
        ("abstain", "sdxl", None),
        (None, None, None),
        ("real", by("DALLE"), by("DALLE")),  # an answer in words is one
        ("fake", REAL, REAL),
    ],
)
def test_a_verdict_and_a_name_become_a_sentence_of_theirs(verdict, name, sentence):
    assert sentence_of(verdict, name) == sentence


def test_by_hand_with_what_is_wrong_about_the_rules():
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
    found = marked(words, Names(), missing=3)
    assert (found["accuracy"]["value"], found["accuracy"]["n"]) == (pytest.approx(3 / 9), 9)
    assert found["by_index"]["accuracy"]["value"] == pytest.approx(3 / 9)  # the lucky one is wrong now, the misspelt one right
    # real, mj: 1; sd: one right of three named, one true: 2/4; DreamShaper and dalle: 0
    assert found["macro_f1"]["value"] == pytest.approx((1 + 1 + 0.5 + 0 + 0) / 5)
    # real, mj: 1; sd: 0; DreamShaper: one right, one named, two true: 2/3; dalle: 0
    assert found["by_index"]["macro_f1"]["value"] == pytest.approx((1 + 1 + 0 + 2 / 3 + 0) / 5)
    assert found["detection"]["accuracy"]["value"] == pytest.approx(5 / 10)
    flaws = " ".join(found["flaws"])
    assert "3 answers here, 1 of them right for that alone" in flaws
    assert "3 labels without a row here, 1 row without an answer" in flaws
    assert "fourth word" in flaws
    assert ".001" in flaws
