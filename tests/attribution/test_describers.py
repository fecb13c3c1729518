"""Every shipped describer: its card loads, its architecture is built as published, and without weights it says how to get them."""

import pytest
import torch

from ray_app.attribution.captioners import build_captioner, load_describing
from ray_app.attribution.cards import load_describer
from ray_app.config import named_configs
from ray_app.errors import DetectorError

NAMES = sorted(named_configs("describers"))
PARAMETERS = {"blip-base": 223_971_644, "git-base": 176_619_066, "vit-gpt2": 239_195_904}


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_card_is_the_network_that_it_says_and_without_weights_says_so(name, tmp_path, monkeypatch):
    card = load_describer(name)
    assert card.preprocessing.shape is not None
    with torch.device("meta"):
        network = build_captioner(card.name, card.architecture)
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count == pytest.approx(PARAMETERS[name], rel=0.02)
    assert card.parameters is None or card.parameters == pytest.approx(count, rel=0.02)
    monkeypatch.setenv("TOUCHSTONE_CACHE", str(tmp_path))
    monkeypatch.setenv("TOUCHSTONE_OFFLINE", "1")
    with pytest.raises(DetectorError, match=name):  # no weights
        load_describing(card)
