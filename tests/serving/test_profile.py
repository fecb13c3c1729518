"""The profile behind the endpoint: the same generator and words as the library gives, asked after
the verdict, and followed in updates.
"""

import asyncio

import pytest
import yaml

import ray_app
from ray_app.serving import ServeConfig
from ray_app.serving.engine import EndpointScorer, GroupLost
from ray_app.serving.metrics import Meter
from ray_app.serving.replica import ReleaseOffer
from tests.images.factory import encoded, photo
from tests.reports.profiled_run import CLASSES, PROMPTS, profiled_card
from tests.serving.in_process import Troubled, loaded_group

FILES = [encoded(photo(240, 200, seed), "JPEG", quality=70 + seed) for seed in range(8)]


def write_card(folder, **options):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "profiled.yaml"
    path.write_text(
        yaml.safe_dump(
            profiled_card(folder, FILES, **options).model_dump(mode="json", exclude_none=True)
        )
    )
    return path


@pytest.fixture(scope="module")
def card(tmp_path_factory):
    return write_card(tmp_path_factory.mktemp("profile"))


@pytest.fixture(scope="module")
def config(card):
    return ServeConfig(ensembles=(str(card), "tiny"))


@pytest.fixture(scope="module")
def group(config):
    return loaded_group("detectors", config)


def scored(config, group, decoders, files=FILES, **options):
    scorer = EndpointScorer(config, {"detectors": group}, decoders, Meter())

    async def every():
        return [await scorer.score(data, **options) for data in files]

    return asyncio.run(every())


@pytest.fixture(scope="module")
def answers(config, group, decoders):
    return scored(config, group, decoders)


def test_generator_and_words_are_those_of_the_library(card, answers):
    results = ray_app.load_ensemble(str(card)).score(FILES)
    for answer, result in zip(answers, results, strict=True):
        assert answer.score == pytest.approx(result.score, abs=1e-4)
        said = answer.profile.generator
        assert said.name == result.predicted_generator
        assert said.known == (said.name is not None)
        assert sorted(said.ranking) == sorted(CLASSES)
        words = answer.profile.prompt
        assert (words.text if words else None) == result.predicted_prompt
    assert {answer.profile.generator.known for answer in answers} == {True, False}
    assert {answer.verdict for answer in answers} >= {"fake", "real"}
    assert all(
        (answer.profile.prompt is not None) == (answer.verdict == "fake") for answer in answers
    )
    assert all(answer.profile.prompt.text in PROMPTS for answer in answers if answer.profile.prompt)


def test_an_ensemble_without_a_profile_has_none_in_its_answer(config, group, decoders):
    [answer] = scored(config, group, decoders, FILES[:1], ensemble="tiny")
    assert answer.model_dump()["profile"] is None


def test_a_group_that_is_lost_or_moves_before_it_told_is_asked_for_all_of_it_again(
    config, group, decoders, answers
):
    troubled = Troubled(group, profile=[GroupLost(), ReleaseOffer(asyncio.run(group.describe()))])
    [again] = scored(config, troubled, decoders, FILES[:1])
    assert again.profile == answers[0].profile
    assert len(troubled.asked) == 3
