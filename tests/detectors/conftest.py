"""A small timm card for everything that needs no published network."""

import pytest

from benchmarks.seeded import card_with_weights, seeded_state, write_weights
from ray_app.detectors import DetectorCard
from tests.make.cards import UNPUBLISHED


@pytest.fixture(scope="module", autouse=True)
def _one_thread(one_thread):
    """Every test of this folder."""


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """The test's own cache of weights; no mirror, no hub."""
    monkeypatch.setenv("TOUCHSTONE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TOUCHSTONE_WEIGHTS_MIRROR", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def small_card(tmp_path_factory):
    """A ViT of 0.4 M parameters, 64 × 64 pixels, one logit, with seeded weights in a safetensors
    file.
    """
    card = DetectorCard.model_validate(
        {
            "name": "small",
            "title": "A small ViT for tests",
            "family": "timm-classifier",
            "architecture": {"name": "test_vit", "arguments": {"img_size": 64}},
            "preprocessing": {"resize": {"mode": "squash", "size": 64}, "filter": "bicubic"},
            **UNPUBLISHED,
        }
    )
    path = write_weights(
        tmp_path_factory.mktemp("weights") / "small.safetensors", seeded_state(card)
    )
    return card_with_weights(card, path)
