import json

import pytest

from ray_app.reports.training import render_training_report, training_lines
from tests.reports.page_reader import PageReader
from tests.reports.training_example import STEPS, example_facts, figures, picture


@pytest.fixture(scope="module")
def words():
    return PageReader(render_training_report(example_facts())).text


def test_the_headline_says_what_chose_and_what_it_reached(words):
    assert "AUC of the worst generator 0.9697 on validation, at step 1,600 of 2,000." in words
    by_auc = PageReader(render_training_report(example_facts(metric="auc"))).text
    assert "AUC 0.9918 (0.9884 to 0.9941) on validation" in by_auc
    assert "no step chosen yet" in PageReader(render_training_report(example_facts(best_step=None))).text


def test_figures_of_both_splits_stand_side_by_side(words):
    assert "AUC of the worst generator chose the step 0.9697 0.9343" in words
    assert "fakes found at 1 % false flags 88.1 % 85.4 % to 90.4 % 82.9 % 79.8 % to 85.7 %" in words
    assert "The test split was measured once" in words
    alone = PageReader(render_training_report(example_facts(test=None))).text
    assert "There was no test split" in alone
    assert "0.9343" not in alone


def test_a_figure_that_was_not_measured_has_no_row():
    assert "of pixels" not in PageReader(render_training_report(example_facts())).text
    found = {**example_facts()["validation"], "pixel_f1": 0.41, "pixel_iou": 0.33}
    assert "F1 of pixels 0.4100" in PageReader(render_training_report(example_facts(validation=found))).text


def test_generators_are_listed_hardest_first(words):
    order = [words.index(f"{name} {number}") for name, number in (("gpt-image-1", 135), ("midjourney-6", 160), ("flux-1-dev", 131))]
    assert order == sorted(order)
    assert "gpt-image-1 117 0.9343 0.9027 to 0.9561 58.1 % 48.6 % to 67.2 %" in words
    assert "real:scan 396 0.9911" in words


def test_of_thousands_of_generators_the_hardest_are_shown():
    one = {"n": 4, "label": "fake", "tpr": 0.5, "interval": [0.1, 0.9], "auc_interval": [0.2, 0.9]}
    many = {f"g{index:04d}": {**one, "auc": 1 - index / 5000} for index in range(4000)}
    page = render_training_report(example_facts(test={**example_facts()["test"], "generators": many}))
    assert "3,940 easier ones not shown." in PageReader(page).text
    assert "g3999" in page
    assert "g0000" not in page


def test_curves_are_drawn_and_the_chosen_step_is_marked():
    page = render_training_report(example_facts())
    assert page.count('class="histogram lines"') == 2
    assert page.count('class="histogram lines compact"') == 3 + 7
    assert page.count('class="chosen"') == 9
    assert "step 1,600, chosen: 0.9697" in page


def test_a_diverged_training_still_has_a_page():
    nans = [{"step": step, "loss": float("nan"), "rate": 0.1} for step in range(10)]
    text = PageReader(render_training_report(example_facts(history=nans, validations=[{"step": 5, "loss": None, "auc": 0.5}]))).text
    assert "No step was recorded." in text
    assert "Learning rate" in text
    assert "1 validation Figures of each validation Step AUC 5 0.5000" in text


def test_mistakes_are_shown_with_their_thumbnails_and_only_as_jpeg():
    mistakes = [
        {"jpeg": picture(1), "label": "fake", "generator": "flux", "score": -2.5, "name": "a.png"},
        {"jpeg": b"<svg onload=alert(1)>", "label": "real", "generator": "real:scan", "score": 1.25, "name": "b.png"},
    ]
    page = render_training_report(example_facts(mistakes=mistakes))
    (image,) = PageReader(page).attributes("img")
    assert image["src"].startswith("data:image/jpeg;base64,/9j/")
    text = PageReader(page).text
    assert "Fakes that it takes for real −2.50 flux a.png Real images that it takes for fake +1.25 real:scan b.png" in text


def test_data_counts_and_leakage(words):
    assert "train 96,000 48,000 48,000" in words
    assert "validation in train 0 3 not known 0" in words
    assert "Leakage: validation in train." in words
    assert words.count("Leakage:") == 1
    assert "2 images could not be compared by bytes: no hash." in words
    assert "compared by looks" not in words
    assert "fakes of held-out generators in groups that stay 412" in words
    assert "gpt-image-1 – 600 600" in words
    assert "3 images could not be read when a step wanted them" in words


def test_calibration_is_stated_or_its_absence_explained(words):
    assert "Calibrated on validation: log-odds = 0.91 × score − 0.12; on test, probabilities are off by 1.4 %." in words
    without = PageReader(render_training_report(example_facts(calibration=None, calibration_note="fakes score no higher"))).text
    assert "Not calibrated: fakes score no higher. Scores rank images; they are not chances." in without


def test_recipe_environment_and_card_are_shown_key_by_key(words):
    assert "Starts from openfake-swinv2-small" in words
    assert "bf16 in place of fp16" in words
    assert "loop.batch 64" in words
    assert "torch 2.14.0" in words
    assert "Licence of the new card CC-BY-NC-4.0" in words


def test_facts_may_come_from_json():
    facts = {key: value for key, value in example_facts().items() if key != "mistakes"}
    assert render_training_report(json.loads(json.dumps(facts))) == render_training_report(facts)


def test_lines_for_the_terminal():
    lines = training_lines(example_facts())
    assert lines[0].endswith("AUC of the worst generator 0.9697 on validation, at step 1,600 of 2,000.")
    assert lines[1].startswith("validation (805 real, 695 fake): AUC 0.9918 (0.9884 to 0.9941), average precision")
    assert lines[2].startswith("test (839 real, 661 fake): AUC 0.9833")
    assert "hardest generators: gpt-image-1 (AUC 0.9343), midjourney-6 (AUC 0.9788), flux-1-dev (AUC 0.9979)" in lines
    assert lines[-2:] == [
        "report: s3://lab/touchstone/openfake-swinv2/report.html",
        "score with it: touchstone score SOURCE --detector s3://lab/touchstone/openfake-swinv2/card.yaml --out RUN",
    ]


def test_lines_of_a_training_that_measured_nothing():
    assert training_lines({"name": "quick", "steps": 1}) == ["quick: 1 step, no step chosen yet."]


def test_a_long_training_makes_no_long_page():
    history = [{"step": step, "loss": 1 / (step + 1), "rate": 1e-4} for step in range(50 * STEPS)]
    page = render_training_report(example_facts(history=history, mistakes=[], validations=[{"step": 1, **figures(1, 1)}]))
    assert len(page) < 120_000
