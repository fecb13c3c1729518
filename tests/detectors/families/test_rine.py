"""RINE: the authors' own logits on a narrow tower, and one run of CLIP for all that read it."""

import pytest
import torch

from benchmarks.seeded import card_with_weights, local_weights, seeded_card, write_weights
from ray_app.detectors import load_card, load_detector
from ray_app.detectors.detector import build_network
from ray_app.detectors.shared_backbone import share_backbones
from tests.detectors.golden import check_scores
from tests.make.networks.fill import fill, source, with_arguments, with_tower
from tests.make.networks.small_zoo import small

NARROW = {"width": 128, "layers": 3, "heads": 2, "embed_dim": 64}


def louder(key, tensor):
    """What lets every part of the head count: layers weighed unequally, and no signal that dies
    away.
    """
    return tensor * (40 if key == "alpha" else 1.8 if tensor.dim() > 1 else 1)


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rine")
    card = with_arguments(with_tower(load_card("rine"), **NARROW), {"projections": 2, "width": 48})
    network = build_network(card)
    tower = fill({f"visual.{key}": tensor for key, tensor in network.backbone.state_dict().items()})
    own = fill(
        {
            key: tensor
            for key, tensor in network.state_dict().items()
            if not key.startswith("backbone.")
        }
    )
    weights = local_weights(card.backbone.weights, write_weights(folder / "tower.pth", tower))
    head = write_weights(
        folder / "head.pth", {key: louder(key, tensor) for key, tensor in own.items()}
    )
    card = card.model_copy(
        update={"backbone": card.backbone.model_copy(update={"weights": weights})}
    )
    return load_detector(card_with_weights(card, head), precision="fp32", slots=1)


def test_scores_are_the_authors(detector):
    check_scores(detector, "rine narrow")


def test_clip_runs_once_for_all_that_read_it(tmp_path):
    cards = [
        seeded_card(small(name), tmp_path / name.replace(":", "-"))
        for name in ("unifd", "rine", "rine:1class")
    ]
    detectors = [load_detector(card, precision="fp32", slots=2) for card in cards]
    pixels = torch.from_numpy(detectors[0].prepare(source("301x227"))[None].repeat(2, axis=0))
    alone = [detector.score(pixels) for detector in detectors]
    (tower,) = share_backbones(detectors)
    normalised = detectors[0].normalise(pixels)
    together = [detector.read(normalised).scores.numpy() for detector in detectors]
    assert (tower.asked, tower.runs) == (3, 1)
    assert all((one == other).all() for one, other in zip(alone, together, strict=True))
