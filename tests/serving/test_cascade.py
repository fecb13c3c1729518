"""A cascade behind an endpoint: the first detectors are asked of every image, the others only where it goes on."""

import asyncio
import shutil

import pytest
import yaml

import ray_app
from ray_app.config import config_root
from ray_app.serving import ServeConfig
from ray_app.serving.engine import EndpointScorer
from ray_app.serving.http.responses import NOT_REQUESTED
from tests.images.factory import encoded, photo
from tests.serving.in_process import CountingMeter, loaded_group

WIDE, NARROW = (-50.0, 50.0), (49.0, 50.0)


class Counted:
    """A group, or the decoders, and what they were asked for."""

    def __init__(self, real):
        self.real, self.asked = real, []

    async def score(self, ask):
        self.asked.append(ask.detectors)
        return await self.real.score(ask)

    async def prepare(self, data, preprocessings, resize, **asked):
        self.asked.append(len(preprocessings))
        return await self.real.prepare(data, preprocessings, resize, **asked)

    async def describe(self):
        return await self.real.describe()


@pytest.fixture(scope="module")
def cards(tmp_path_factory):
    """Two detectors that say different things of an image: the second sees its centre 128 pixels."""
    folder = tmp_path_factory.mktemp("cards")
    shipped = config_root() / "detectors"
    shutil.copy(shipped / "touchstone-tiny.safetensors", folder)
    card = yaml.safe_load((shipped / "touchstone-tiny.yaml").read_text())
    closer = {**card["preprocessing"], "center_crop": 128}
    for name, own in (("slow", True), ("beside", False)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({**card, "name": name, "own_pool": own, "preprocessing": closer}))
    (folder / "cheap.yaml").write_text(yaml.safe_dump({**card, "name": "cheap"}))
    return folder


def ensemble(cards, band, *, second="slow", audit=0.0):
    """The path of a cascade's card."""
    calibration = {"slope": 2.0, "intercept": 0.5}
    cascade = {"first": 1, "band": list(band), "audit_share": audit, "late": {"rule": "max"}}
    members = [{"detector": "cheap.yaml", "calibration": calibration}, {"detector": f"{second}.yaml"}]
    card = {"name": "two", "title": "Two stages", "rule": "cascade", "cascade": cascade, "members": members}
    path = cards / f"two-{band[0]}-{second}-{audit}.yaml"
    path.write_text(yaml.safe_dump(card))
    return str(path)


@pytest.fixture(scope="module")
def file():
    return encoded(photo(300, 280, seed=3), "JPEG")


def endpoint(path, decoders, *names):
    config = ServeConfig(ensembles=(path,))
    groups = {name: Counted(loaded_group(name, config)) for name in names}
    counted = Counted(decoders)
    return EndpointScorer(config, groups, counted, CountingMeter()), groups, counted


def asked(groups):
    return [detectors for group in groups.values() for detectors in group.asked]


def test_an_image_that_the_first_are_sure_of_is_shown_to_nobody_else(cards, decoders, file):
    path = ensemble(cards, NARROW)
    scorer, groups, counted = endpoint(path, decoders, "detectors", "slow")
    answer = asyncio.run(scorer.score(file))
    assert asked(groups) == [("cheap",)]
    assert counted.asked == [1], "what the second stage would look at is not prepared"
    assert (answer.second_look, answer.scores["slow"]) == (None, None)
    assert answer.detectors["slow"].abstained == NOT_REQUESTED
    assert answer.verdict_reason is None
    assert answer.score == pytest.approx(2 * answer.scores["cheap"] + 0.5, abs=1e-5)
    assert answer.detectors["cheap"].probability == pytest.approx(answer.probability)
    assert answer.detectors["cheap"].calibrated


def test_an_image_that_they_are_not_sure_of_goes_on(cards, decoders, file):
    path = ensemble(cards, WIDE)
    scorer, groups, counted = endpoint(path, decoders, "detectors", "slow")
    answer = asyncio.run(scorer.score(file))
    assert asked(groups) == [("cheap",), ("slow",)]
    assert counted.asked == [1, 1]
    assert answer.second_look == "band"
    assert answer.score == pytest.approx(max(2 * answer.scores["cheap"] + 0.5, answer.scores["slow"]), abs=1e-5)
    assert answer.scores["slow"] != pytest.approx(answer.scores["cheap"], abs=1e-3)
    assert answer.timings.total >= answer.timings.score > 0


def test_the_audit_draws_by_bytes(cards, decoders, file):
    scorer, groups, _ = endpoint(ensemble(cards, NARROW, audit=1.0), decoders, "detectors", "slow")
    answer = asyncio.run(scorer.score(file))
    assert (answer.second_look, len(asked(groups))) == ("audit", 2)
    assert answer.scores["slow"] is not None


def test_stages_that_share_a_process_are_asked_one_after_the_other(cards, decoders, file):
    scorer, groups, _ = endpoint(ensemble(cards, WIDE, second="beside"), decoders, "detectors")
    alone, _, _ = endpoint(ensemble(cards, WIDE), decoders, "detectors", "slow")
    answer = asyncio.run(scorer.score(file))
    assert asked(groups) == [("cheap",), ("beside",)]
    assert answer.score == pytest.approx(asyncio.run(alone.score(file)).score, abs=1e-5)


def test_readiness_asks_everyone(cards, decoders):
    scorer, groups, _ = endpoint(ensemble(cards, NARROW), decoders, "detectors", "slow")
    assert [name.name for name in asyncio.run(scorer.ready())] == ["two"]
    assert asked(groups) == [("cheap",), ("slow",)]


@pytest.mark.parametrize("band", [NARROW, WIDE])
def test_the_answer_is_that_of_the_library(cards, decoders, file, band):
    path = ensemble(cards, band)
    expected = ray_app.load_ensemble(path).score([file])[0]
    answer = asyncio.run(endpoint(path, decoders, "detectors", "slow")[0].score(file))
    for name in ("verdict", "verdict_reason", "verdict_detail", "second_look"):
        assert getattr(answer, name) == getattr(expected, name)
    assert answer.score == pytest.approx(expected.score, abs=1e-5)
    assert answer.scores == {name: None if score is None else pytest.approx(score, abs=1e-5) for name, score in expected.scores.items()}


def test_groups_that_update_one_after_the_other_answer_all_the_time(cards, decoders, file):
    """Thresholds change: an image that goes on is answered whichever group has moved, and whoever was asked first."""
    before = ServeConfig(ensembles=(ensemble(cards, WIDE),))
    after = ServeConfig(ensembles=(ensemble(cards, (-49.0, 50.0)),))
    for first, second in (("detectors", "slow"), ("slow", "detectors")):
        groups = {name: loaded_group(name, before) for name in ("detectors", "slow")}
        scorer = EndpointScorer(before, groups, decoders, CountingMeter())

        async def update(scorer, *order):
            async with asyncio.timeout(60):
                answers = [await scorer.score(file)]
                for group in order:
                    group.load(after)
                    answers.append(await scorer.score(file))
                return answers

        answers = asyncio.run(update(scorer, groups[first], groups[second]))
        assert [answer.second_look for answer in answers] == ["band"] * 3
        assert answers[0].ensemble.fingerprint != answers[2].ensemble.fingerprint
