"""A record of a run with a profile: what was predicted, by which cards, what it does not prove; and the same once more from the image."""

import json
from pathlib import Path

import pytest

from ray_app.evaluation.evidence.record import make_evidence
from ray_app.evaluation.evidence.verify import verify_evidence
from ray_app.runs import RunDirectory, current_rows
from tests.reports.profiled_run import profiled_card, score_profiled, write_archive


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("profiled")
    listed = write_archive(folder / "archive", 8)
    pictures = [path.read_bytes() for path in sorted((folder / "archive").glob("photo-*.jpg"))]
    return score_profiled(profiled_card(folder, pictures, abstains=False), listed, folder / "run")


@pytest.fixture(scope="module")
def flagged(run):
    return next(row for row in current_rows(RunDirectory.open(run)) if row["verdict"] == "fake")


@pytest.fixture(scope="module")
def told(run, flagged):
    return make_evidence(run, str(flagged["image_id"]))


def outcomes(told, image=None):
    return {check.name: check.outcome for check in verify_evidence(told, image=image)}


def test_the_record_says_what_was_predicted_and_by_what(told, flagged):
    profile = told["record"]["profile"]
    assert profile["generator"]["name"] == flagged["predicted_generator"]
    assert profile["generator"]["ranking"] == flagged["generator_ranking"]
    assert profile["prompt"]["text"] == flagged["predicted_prompt"]
    assert profile["cards"]["identifier"]["name"] == "named"
    assert len(profile["cards"]["identifier"]["weights"][0]) == 64
    assert any("no proof of where an image came from" in sentence for sentence in profile["limits"])
    json.dumps(told, allow_nan=False)


def test_the_image_gives_the_same_generator_and_words_again(told, flagged):
    found = outcomes(told, Path(flagged["uri"]))
    assert set(found.values()) == {"agrees"}
    assert {"generator", "prompt", "sections"} <= set(found)


def test_another_name_in_the_record_is_noticed(told, flagged):
    other = json.loads(json.dumps(told))
    other["record"]["profile"]["generator"]["name"] = "midjourney-6" if flagged["predicted_generator"] != "midjourney-6" else "sdxl"
    found = outcomes(other, Path(flagged["uri"]))
    assert (found["record"], found["sections"], found["generator"]) == ("differs", "differs", "differs")
