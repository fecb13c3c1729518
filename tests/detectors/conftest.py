"""Formula-filled published networks, built once, and a small timm card for everything that needs no
published one.
"""

import functools

import pytest
import torch

from benchmarks.seeded import PUBLISHED_PREFIX, card_with_weights, seeded_state, write_weights
from ray_app.detectors import DetectorCard, load_card
from ray_app.detectors.checkpoints import load_strictly
from ray_app.detectors.detector import Detector, build_network
from tests.detectors.fill import Undrawn, fill

# What a card must say, of a network with one logit that nobody published.
UNPUBLISHED = {
    "weights": {"uri": "absent.safetensors", "unverified": "written by the test"},
    "output": {"sign": 1},
    "licence": "MIT",
    "citation": "none",
    "source": "this test",
    "training_data": {"name": "none", "licence": "none"},
}
PUBLISHED = ["community-forensics-vits384", "openfake-swinv2-small", "siglip2-open-deepfake"]


@functools.cache
def filled_state(name):
    prefix = PUBLISHED_PREFIX.get(name, "")
    with torch.device("meta"):
        network = build_network(load_card(name))
    return fill({prefix + key: tensor for key, tensor in network.state_dict().items()})


def filled_detector(name, *, precision, slots, resampler=None):
    """The published card's detector with filled weights, without a file."""
    card = load_card(name)
    if resampler is not None:
        card = card.model_copy(
            update={"preprocessing": card.preprocessing.model_copy(update={"resampler": resampler})}
        )
    prefix = PUBLISHED_PREFIX.get(name, "")
    with Undrawn():
        network = build_network(card)
    load_strictly(
        network,
        {key.removeprefix(prefix): tensor for key, tensor in filled_state(name).items()},
        name,
    )
    fake = 0 if card.output.sign else card.output.index_among(card.output.labels)
    return Detector(
        card,
        network,
        fake=fake,
        device="cpu",
        precision=precision,
        resize="exact",
        slots=slots,
        weights_sha256="0" * 64,
    )


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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
