"""The profile behind the endpoint: the same generator and prompt as the library gives."""

from contextlib import closing

import pytest
import yaml

import ray_app
from ray_app.detectors.weights import MIRROR_VARIABLE, cached_path, publish_part, resolve_part
from ray_app.serving import ServeConfig
from ray_app.serving.engine import Engine
from ray_app.serving.ensembles import fetch_weights, plan_ensembles
from tests.make.images import encoded, photo
from tests.reports.profiled_run import CLASSES, PROMPTS, profiled_card
from tests.serving.in_process import answers_of

FILES = [encoded(photo(240, 200, seed), "JPEG", quality=70 + seed) for seed in range(8)]


@pytest.fixture(scope="module")
def card(tmp_path_factory):
    """The path of the card of an ensemble with a profile."""
    folder = tmp_path_factory.mktemp("profile")
    content = profiled_card(folder, FILES).model_dump(mode="json", exclude_none=True)
    (folder / "profiled.yaml").write_text(yaml.safe_dump(content))
    return folder / "profiled.yaml"


@pytest.fixture(scope="module")
def engine(card):
    with closing(Engine(ServeConfig(ensembles=(str(card), "tiny")))) as running:
        yield running


def test_generator_and_prompt_are_those_of_the_library(card, engine):
    answers = answers_of(engine, FILES)
    results = ray_app.load_ensemble(str(card)).score(FILES)
    for answer, result in zip(answers, results, strict=True):
        assert answer.score == result.score
        said = answer.profile.generator
        assert said.name == result.predicted_generator
        assert said.known == (said.name is not None)
        assert sorted(said.ranking) == sorted(CLASSES)
        words = answer.profile.prompt
        assert (words.text if words else None) == result.predicted_prompt
    assert {answer.profile.generator.known for answer in answers} == {True, False}
    assert {answer.verdict for answer in answers} >= {"fake", "real"}
    for answer in answers:
        prompt = answer.profile.prompt
        assert (prompt is not None) == (answer.verdict == "fake")
        assert prompt is None or prompt.text in PROMPTS


def test_weights_of_a_profile_are_fetched_at_the_start(card, tmp_path, monkeypatch):
    """Worker processes have no credentials with which they could fetch them."""
    config = ServeConfig(ensembles=(str(card),))
    profiled = plan_ensembles(config).ensembles["profiled"]
    parts = [*profiled.identifier.parts, *profiled.describer.parts]
    monkeypatch.setenv("TOUCHSTONE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv(MIRROR_VARIABLE, str(tmp_path / "mirror"))
    files = {resolve_part(part): publish_part(part, str(tmp_path / "mirror")) for part in parts}
    for file in files:
        file.rename(file.with_suffix(".away"))
    try:
        fetch_weights(config)
        assert [cached_path(part).is_file() for part in parts] == [True, True]
    finally:
        for file in files:
            file.with_suffix(".away").rename(file)


def test_ensemble_without_a_profile_answers_without(engine):
    [answer] = answers_of(engine, FILES[:1], ensemble="tiny")
    assert answer.profile is None
