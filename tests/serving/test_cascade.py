"""A cascade behind an endpoint: the first detectors are asked of every image, the others only where
it goes on.
"""

import asyncio
import shutil

import pytest
import yaml

import ray_app
from ray_app.config import config_root
from ray_app.serving import ServeConfig
from ray_app.serving.engine import EndpointScorer
from ray_app.serving.http.responses import NOT_REQUESTED
from ray_app.serving.metrics import Meter
from tests.images.factory import encoded, photo
from tests.serving.in_process import Troubled, loaded_group

WIDE, NARROW = (-50.0, 50.0), (49.0, 50.0)


class CountedDecoders:
    """Decoders, and how many ways of looking at the image each request wanted."""

    def __init__(self, real):
        self.real, self.asked = real, []

    async def prepare(self, data, preprocessings, resize, **asked):
        self.asked.append(len(preprocessings))
        return await self.real.prepare(data, preprocessings, resize, **asked)


@pytest.fixture(scope="module")
def cards(tmp_path_factory):
    """Two detectors that say different things of an image: the second sees its centre 128 pixels."""
    folder = tmp_path_factory.mktemp("cards")
    shipped = config_root() / "detectors"
    shutil.copy(shipped / "touchstone-tiny.safetensors", folder)
    card = yaml.safe_load((shipped / "touchstone-tiny.yaml").read_text())
    closer = {**card["preprocessing"], "center_crop": 128}
    (folder / "slow.yaml").write_text(
        yaml.safe_dump({**card, "name": "slow", "own_pool": True, "preprocessing": closer})
    )
    (folder / "cheap.yaml").write_text(yaml.safe_dump({**card, "name": "cheap"}))
    return folder


def ensemble(cards, band):
    """The path of a cascade's card."""
    calibration = {"slope": 2.0, "intercept": 0.5}
    cascade = {"first": 1, "band": list(band), "audit_share": 0.0, "late": {"rule": "max"}}
    members = [{"detector": "cheap.yaml", "calibration": calibration}, {"detector": "slow.yaml"}]
    card = {
        "name": "two",
        "title": "Two stages",
        "rule": "cascade",
        "cascade": cascade,
        "members": members,
    }
    path = cards / f"two-{band[0]}.yaml"
    path.write_text(yaml.safe_dump(card))
    return str(path)


@pytest.fixture(scope="module")
def file():
    return encoded(photo(300, 280, seed=3), "JPEG")


def endpoint(path, decoders):
    config = ServeConfig(ensembles=(path,))
    groups = {name: Troubled(loaded_group(name, config)) for name in ("detectors", "slow")}
    counted = CountedDecoders(decoders)
    return EndpointScorer(config, groups, counted, Meter()), groups, counted


def asked(groups):
    return [detectors for group in groups.values() for detectors in group.asked]


def is_that_of_the_library(answer, path, file):
    expected = ray_app.load_ensemble(path).score([file])[0]
    for name in ("verdict", "verdict_reason", "verdict_detail", "second_look"):
        assert getattr(answer, name) == getattr(expected, name)
    assert answer.score == pytest.approx(expected.score, abs=1e-5)
    assert answer.scores == {
        name: None if score is None else pytest.approx(score, abs=1e-5)
        for name, score in expected.scores.items()
    }
    return True


def test_an_image_that_the_first_are_sure_of_is_shown_to_nobody_else(cards, decoders, file):
    path = ensemble(cards, NARROW)
    scorer, groups, counted = endpoint(path, decoders)
    answer = asyncio.run(scorer.score(file))
    assert asked(groups) == [("cheap",)]
    assert counted.asked == [1], "what the second stage would look at is not prepared"
    assert is_that_of_the_library(answer, path, file)
    assert (answer.second_look, answer.scores["slow"], answer.detectors["slow"].abstained) == (
        None,
        None,
        NOT_REQUESTED,
    )
    assert answer.score == pytest.approx(2 * answer.scores["cheap"] + 0.5, abs=1e-5)
    assert answer.detectors["cheap"].probability == pytest.approx(answer.probability)
    assert answer.detectors["cheap"].calibrated


def test_an_image_that_they_are_not_sure_of_goes_on(cards, decoders, file):
    path = ensemble(cards, WIDE)
    scorer, groups, counted = endpoint(path, decoders)
    answer = asyncio.run(scorer.score(file))
    assert asked(groups) == [("cheap",), ("slow",)]
    assert counted.asked == [1, 1]
    assert is_that_of_the_library(answer, path, file)
    assert answer.second_look == "band"
    assert answer.score == pytest.approx(
        max(2 * answer.scores["cheap"] + 0.5, answer.scores["slow"]), abs=1e-5
    )
    assert answer.scores["slow"] != pytest.approx(answer.scores["cheap"], abs=1e-3)
