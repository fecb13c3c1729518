"""A family from outside the tree, found by its entry point."""

import sys

import numpy as np
import pytest
import yaml

from benchmarks.seeded import seeded_card
from ray_app.detectors import load_card, load_detector
from ray_app.errors import ConfigError, DetectorError
from tests.make.cards import UNPUBLISHED

FAMILY = """
from torch import nn

def build(card):
    return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, card.output.logits))
"""
CARD = {
    "name": "from-outside",
    "title": "A family of somebody else's",
    "family": "their-family",
    "preprocessing": {"resize": {"mode": "squash", "size": 16}},
    **UNPUBLISHED,
}


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A distribution with the entry point, as pip would leave it; returns a function that writes
    its module.
    """
    info = tmp_path / "their_family-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-family\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[touchstone.families]\ntheir-family = their_family_module\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "their_family_module", raising=False)
    return lambda text: (tmp_path / "their_family_module.py").write_text(text)


def card_in(folder, **changes):
    (folder / "card.yaml").write_text(yaml.safe_dump({**CARD, **changes}))
    return load_card(folder / "card.yaml")


def test_a_family_from_outside_scores(installed, tmp_path):
    with pytest.raises(ConfigError, match=r"family: .*family must be one of timm-classifier"):
        card_in(tmp_path, family="nobody-s")
    installed(FAMILY)
    card = seeded_card(card_in(tmp_path), tmp_path)
    scores = load_detector(card, precision="fp32").score(np.zeros((2, 16, 16, 3), np.uint8))
    assert np.isfinite(scores).all()


def test_a_family_that_does_not_import_is_told(installed, tmp_path):
    installed("import no_such_package")
    with pytest.raises(
        DetectorError, match=r"\(their_family_module\): No module named 'no_such_package'"
    ):
        seeded_card(card_in(tmp_path), tmp_path)
