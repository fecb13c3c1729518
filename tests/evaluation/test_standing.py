"""Whose weights made a system's scores, what an image cost, and which commands say so."""

import shlex

import pytest

from benchmarks.seeded import seeded_card
from ray_app.cli.main import touchstone
from ray_app.detectors import load_card
from ray_app.detectors.weights import stated_digest, weights_digest
from ray_app.evaluation.config import EvaluateConfig
from ray_app.evaluation.standing import cost_of, evaluate_command, measured_ms, options_of, standing_of
from ray_app.evaluation.systems import System
from ray_app.scoring.config import ScoreConfig


def system(card, name=None, kind="detector"):
    return System(name or card.name, kind, "", 0.0, strict=True, card=card)


def described(*names, weights=None, **more):
    return {"detectors": list(names), "identity": {"detectors": {name: {"weights": weights} for name in names}, **more}}


def weights_of(card, loaded, name=None):
    one = system(card, name)
    return standing_of(one, [], described(one.name, weights=loaded)).weights


@pytest.mark.parametrize(("name", "word"), [("tiny-ladeda", "other"), ("ladeda9", "unknown")])
def test_seeded_weights_under_a_shipped_name_are_not_the_published_ones(tmp_path, name, word):
    """Though their card states its own SHA-256: what counts is the file that the shipped card means, where anybody stated it."""
    card = seeded_card(name, tmp_path)
    found = weights_of(card, weights_digest(card))
    assert (found.standing, found.ranks) == (word, False)
    assert name in found.why


def test_shipped_weights_are_published_and_others_under_their_name_are_not():
    card = load_card("touchstone-photo")
    assert weights_of(card, stated_digest(card)).standing == "published"
    assert weights_of(card, "0" * 64).standing == "other"
    assert weights_of(card, None).standing == "other"
    assert weights_of(load_card("touchstone-tiny"), stated_digest(load_card("touchstone-tiny"))).standing == "demonstration"
    assert weights_of(None, "0" * 64, name="gone").standing == "unknown"


def test_a_card_of_ones_own_is_taken_at_its_word():
    card = load_card("touchstone-photo").model_copy(update={"name": "mine"})
    assert weights_of(card, stated_digest(card)).standing == "own"
    assert weights_of(card, "0" * 64).standing == "other"


def test_an_ensemble_is_as_good_as_the_weights_of_its_least_member():
    members = [system(load_card(name)) for name in ("touchstone-photo", "touchstone-photo-detail", "touchstone-tiny")]
    identity = {"detectors": {one.name: {"weights": stated_digest(one.card)} for one in members}}
    found = standing_of(system(None, "ensemble", "ensemble"), members, {"identity": identity})
    assert (found.weights.standing, found.terms, found.licence) == ("demonstration", "permissive", "Apache-2.0")
    sound = standing_of(system(None, "ensemble", "ensemble"), members[:2], {"identity": identity})
    assert (sound.weights.standing, sound.gmac) == ("published", pytest.approx(0.78))
    mixed = standing_of(system(None, "ensemble", "ensemble"), [members[0], system(load_card("maskclip"))], {"identity": identity})
    assert mixed.terms == load_card("maskclip").terms != "permissive"


SESSION = {"decoded": 50, "seconds": {"score": 3.0}, "peak_worker_bytes": 10**9}


def test_the_time_of_an_image_is_a_detectors_own_only_where_it_was_measured_alone():
    photo, tiny = system(load_card("touchstone-photo")), system(load_card("touchstone-tiny"))
    alone = cost_of(photo, described(photo.name, perturb={"jpeg:50": []}), SESSION)
    assert (alone.ms_per_image, alone.pictures, alone.process_bytes) == (30.0, 100, 10**9)
    both = described(photo.name, tiny.name)
    together = cost_of(photo, both, SESSION)
    assert (together.ms_per_image, together.of) == (None, 2)
    assert "2 detectors together" in together.why
    assert cost_of(system(None, "ensemble", "ensemble"), both, SESSION).ms_per_image == 60.0
    apart = SESSION | {"detectors": {photo.name: {"seconds": 2.0, "images": 50, "ms_per_image": 45.0}}}
    assert cost_of(photo, both, apart).ms_per_image == 45.0  # alone, with its backbone
    assert measured_ms(both, apart) == {photo.name: 45.0}
    every = SESSION | {"detectors": {name: {"seconds": 2.0, "images": 50} for name in (photo.name, tiny.name)}}
    assert measured_ms(both, every) == {photo.name: 40.0, tiny.name: 40.0}
    assert cost_of(system(None, "ensemble", "ensemble"), both, every).ms_per_image == 80.0
    assert cost_of(photo, both, {}).why


def test_the_command_of_an_evaluation_makes_the_same_settings_again():
    config = EvaluateConfig(at=("s3://key:secret@bucket/photos",), out="figures", protocol="grip", split="test", seed=3,
                            regenerated="again",
                            score=ScoreConfig(detectors=("unifd", "npr"), perturb=("standard",), limit=9, batch_slots=7))  # fmt: skip
    words = shlex.split(evaluate_command(config))
    assert "secret" not in " ".join(words)
    parsed = touchstone.commands["evaluate"].make_context("evaluate", words[2:]).params
    assert (parsed["detectors"], parsed["perturb"], parsed["limit"], parsed["protocol"]) == (("unifd", "npr"), ("standard",), 9, "grip")
    assert set(parsed["assignments"]) == {"score.batch_slots=7", "seed=3"}
    assert parsed["regenerated"] == "again"
    usual = ScoreConfig().model_dump(mode="json")
    assert options_of(usual | {"detectors": ["npr"], "ensemble": "other"}, usual) == ["--detector", "npr"]
