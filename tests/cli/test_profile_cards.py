"""`touchstone detectors show` of the cards of a profile."""

import json

import pytest
import yaml

from ray_app.cli.main import main
from ray_app.config import named_configs
from tests.identification.made import make_identifier

FACTS = {"width": 3}


def shown(capsys, *arguments):
    assert main(["detectors", "show", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_show_prints_the_card_of_an_identifier(tmp_path, capsys):
    card = make_identifier(
        tmp_path, ["sdxl", "sdxl_1.0/mine", "midjourney-6"], [[0] * 3] * 3, "touchstone-tiny", FACTS
    )
    assert json.loads(shown(capsys, card, "--json"))["classes"][0] == "sdxl"
    assert yaml.safe_load(shown(capsys, card))["detector"] == "touchstone-tiny"


@pytest.mark.parametrize("name", [*named_configs("identifiers"), *named_configs("describers")])
def test_every_shipped_card_can_be_shown(name, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("TOUCHSTONE_CACHE", str(tmp_path))
    assert yaml.safe_load(shown(capsys, name))["name"] == name
