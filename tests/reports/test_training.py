"""A training's report: what it reached, on what, what it leaked, and what it cannot do."""

import json

import pytest

from ray_app.reports.training import render_training_report, training_lines
from tests.make.page_reader import PageReader
from tests.reports.pages import page_of
from tests.reports.training_example import example_facts, picture


def words_of(**changes):
    return PageReader(render_training_report(example_facts(**changes))).text


@pytest.fixture(scope="module")
def words():
    return PageReader(page_of("training")).text


def test_figures_of_both_splits_are_side_by_side(words):
    assert "AUC of the worst generator chose the step 0.9697 0.9343" in words
    assert "fakes found at 1 % false flags 88.1 % 85.4 to 90.4 % 82.9 % 79.8 to 85.7 %" in words
    assert "The test split was measured once" in words
    alone = words_of(test=None)
    assert "There was no test split" in alone
    assert "0.9343" not in alone


def test_unreadable_files_and_misread_masks_are_named():
    detail = {"split": "train", "detail": "empty_file: 0 bytes", "times": 3}
    files = [detail | {"uri": f"/set/{number}.jpg"} for number in range(5)]
    warning = "The mask of 1 fake marks nothing as altered, for example /m/1.png."
    changes = {"unreadable_files": files, "mask_warning": warning}
    text = words_of(**changes)
    assert "5 files that could not be read" in text
    assert all(f"{number}.jpg" in text for number in range(5))
    assert f"Masks may be misread. {warning}" in text
    lines = training_lines(example_facts(**changes))
    assert f"warning: {warning}" in lines
    [line] = [line for line in lines if line.startswith("could not be read")]
    log = "s3://lab/touchstone/openfake-swinv2/unreadable.jsonl"
    assert f"/set/0.jpg, /set/1.jpg, /set/2.jpg and more, all in {log}" in line
    assert "could not be read" not in words_of(unreadable=0)


def test_swapped_labels_are_suspected():
    swapped = example_facts()["test"] | {"auc": 0.02, "auc_interval": [0.01, 0.03]}
    warning = "warning: the labels of test may be swapped"
    for test, is_suspected in ((swapped, True), (example_facts()["test"], False)):
        lines = training_lines(example_facts(test=test))
        assert any(line.startswith(warning) for line in lines) == is_suspected


def test_generators_are_listed_hardest_first(words):
    order = [
        words.index(f"{name} {number}")
        for name, number in (("gpt-image-1", 135), ("midjourney-6", 160), ("flux-1-dev", 131))
    ]
    assert order == sorted(order)
    assert "gpt-image-1 117 0.9343 0.9004 to 0.9572 58.1 % 48.6 to 67.2 %" in words


def test_diverged_and_long_trainings_have_a_short_page():
    nans = [{"step": step, "loss": float("nan"), "rate": 0.1} for step in range(10)]
    text = words_of(history=nans, validations=[{"step": 5, "loss": None, "auc": 0.5}])
    assert "No step was recorded." in text
    assert "1 validation Metrics of each validation Step ROC AUC 5 0.5000" in text
    history = [{"step": step, "loss": 1 / (step + 1), "rate": 1e-4} for step in range(10_000)]
    short = {"mistakes": [], "validations": example_facts()["validations"][:1]}
    page = render_training_report(example_facts(history=history, **short))
    assert len(page) < 120_000


def test_mistakes_have_thumbnails_that_are_jpegs():
    fake = {"label": "fake", "generator": "flux", "score": -2.5, "name": "a.png"}
    real = {"label": "real", "generator": "real:scan", "score": 1.25, "name": "b.png"}
    mistakes = [fake | {"jpeg": picture(1)}, real | {"jpeg": b"<svg onload=alert(1)>"}]
    facts = example_facts(mistakes=mistakes, history=[], validations=[], test=None)
    page = PageReader(render_training_report(facts))
    (image,) = page.attributes("img")
    assert image["src"].startswith("data:image/jpeg;base64,/9j/")
    assert "Fakes judged real a.png flux −2.50" in page.text
    assert "Real images judged fake b.png real:scan +1.25" in page.text


def test_page_shows_leakage_calibration_recipe_and_card(words):
    for said in (
        "train 96,000 48,000 48,000",
        "validation in train 0 3 not known 0",
        "Leakage: validation in train.",
        "2 images could not be compared by bytes: no hash.",
        "fakes of held-out generators in groups that stay 412",
        "3 images could not be read when a step needed them",
        "Calibrated on validation: log-odds = 0.91 × score − 0.12; on test, probabilities are off by 1.4 %.",
        "Starts from openfake-swinv2-small",
        "bf16 in place of fp16",
        "loop.batch 64",
        "Licence of the new card CC-BY-NC-4.0",
    ):
        assert said in words
    assert words.count("Leakage:") == 1
    without = words_of(calibration=None, calibration_note="fakes score no higher")
    assert (
        "Not calibrated: fakes score no higher. Scores rank images; they are not probabilities."
        in without
    )


def test_facts_read_from_json_give_the_same_page():
    facts = {key: value for key, value in example_facts().items() if key != "mistakes"}
    assert render_training_report(json.loads(json.dumps(facts))) == render_training_report(facts)


def test_lines_for_the_terminal():
    lines = training_lines(example_facts())
    best = "AUC of the worst generator 0.9697 on validation, at step 1,600 of 2,000."
    assert lines[0].endswith(best)
    validation = "validation (805 real, 695 fake): ROC AUC 0.9918 (0.9885 to 0.9941), average"
    assert lines[1].startswith(validation)
    hardest = "gpt-image-1 (AUC 0.9343), midjourney-6 (AUC 0.9788), flux-1-dev (AUC 0.9979)"
    assert f"hardest generators: {hardest}" in lines
    out = "s3://lab/touchstone/openfake-swinv2"
    assert lines[-2:] == [
        f"report: {out}/report.html",
        f"score with it: touchstone score SOURCE --detector {out}/card.yaml --out RUN",
    ]
    assert training_lines({"name": "quick", "steps": 1}) == ["quick: 1 step, no step chosen yet."]
