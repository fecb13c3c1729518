"""`touchstone detectors show` of the cards of a profile."""

import json

import pytest
import yaml

from ray_app.cli.main import main
from ray_app.config import named_configs
from tests.attribution.made import make_identifier

FACTS = {"width": 3}


def shown(capsys, *arguments):
    assert main(["detectors", "show", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_an_identifier_says_which_generators_it_knows_and_when_it_abstains(tmp_path, capsys):
    rule = {"method": "energy", "threshold": 2.0, "abstains": 0.05, "n": 400}
    card = make_identifier(tmp_path, ["sdxl", "sdxl_1.0/mine", "midjourney-6"], [[0] * 3] * 3, "touchstone-tiny", FACTS, open_set=rule)
    words = shown(capsys, card)
    assert "3 generators of 2 families" in words
    assert "Stable Diffusion XL: Stable Diffusion XL 1.0, sdxl_1.0/mine" in words
    assert "asked for 5 % of known ones, on 400 images" in " ".join(words.split())
    assert json.loads(shown(capsys, card, "--json"))["classes"][0] == "sdxl"
    assert yaml.safe_load(shown(capsys, card, "--yaml"))["detector"] == "touchstone-tiny"


@pytest.mark.parametrize("name", [*named_configs("identifiers"), *named_configs("describers")])
def test_every_shipped_card_can_be_shown(name, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("TOUCHSTONE_CACHE", str(tmp_path))
    assert shown(capsys, name).startswith(name)
