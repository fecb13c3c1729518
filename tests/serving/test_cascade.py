"""A cascade behind an endpoint: the first detectors are asked of every image, the others only where
it goes on.
"""

import json
import shutil
from contextlib import closing

import pytest
import yaml

import ray_app
from ray_app.config import config_root
from ray_app.serving import ServeConfig
from ray_app.serving.answers import NOT_REQUESTED
from ray_app.serving.engine import Engine, ScoreRequest
from tests.make.images import encoded, photo

WIDE, NARROW = (-50.0, 50.0), (49.0, 50.0)


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
    card = {
        "name": "two",
        "title": "Two stages",
        "rule": "cascade",
        "cascade": {"first": 1, "band": list(band), "audit_share": 0.0, "late": {"rule": "max"}},
        "members": [
            {"detector": "cheap.yaml", "calibration": calibration},
            {"detector": "slow.yaml"},
        ],
    }
    path = cards / f"two-{band[0]}.yaml"
    path.write_text(yaml.safe_dump(card))
    return str(path)


@pytest.fixture(scope="module")
def file():
    return encoded(photo(300, 280, seed=3), "JPEG")


def answered(path, file):
    """The answer of an engine, and how many preparations of the image it made at first."""
    with closing(Engine(ServeConfig(ensembles=(path,)))) as engine:
        image = engine.decode(ScoreRequest(file))
        prepared = len(image.pixels)
        (answer,) = engine.answer([image])
    answer = json.loads(answer.body)
    expected = ray_app.load_ensemble(path).score([file])[0]
    for name in ("verdict", "verdict_reason", "verdict_detail", "second_look", "score", "scores"):
        assert answer[name] == getattr(expected, name), name
    return answer, prepared


def test_sure_image_is_not_seen_by_the_second_stage(cards, file):
    answer, prepared = answered(ensemble(cards, NARROW), file)
    assert prepared == 1, "the second stage's view of the image is not prepared"
    assert answer["second_look"] is None
    assert answer["scores"]["slow"] is None
    assert answer["detectors"]["slow"]["abstained"] == NOT_REQUESTED
    assert answer["score"] == pytest.approx(2 * answer["scores"]["cheap"] + 0.5, abs=1e-5)
    assert answer["detectors"]["cheap"]["probability"] == pytest.approx(answer["probability"])
    assert answer["detectors"]["cheap"]["calibrated"]


def test_undecided_image_is_seen_by_the_second_stage(cards, file):
    answer, prepared = answered(ensemble(cards, WIDE), file)
    assert prepared == 1
    assert answer["second_look"] == "band"
    cheap, slow = answer["scores"]["cheap"], answer["scores"]["slow"]
    assert answer["score"] == pytest.approx(max(2 * cheap + 0.5, slow), abs=1e-5)
    assert slow != pytest.approx(cheap, abs=1e-3)
