"""The ensemble `wild` on small seeded backbones: fitted heads under the shipped names, and one of them astray."""

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from benchmarks.seeded import write_card
from ray_app import load_ensemble
from ray_app.config import named_configs
from ray_app.detectors import load_card, load_detector
from ray_app.detectors.detector import build_network
from ray_app.detectors.linear_head import Head, install_head, save_head
from tests.detectors.small_frozen import seeded_frozen
from tests.training.made import picture

ASTRAY = 50.0  # log-odds that the last member's head adds


@pytest.fixture(scope="module")
def wild(tmp_path_factory):
    """wild.yaml as shipped with small members, whose heads were installed; and its folder, which holds two pictures."""
    folder = tmp_path_factory.mktemp("wild")
    facts = yaml.safe_load(named_configs("ensembles")["wild"].read_text())
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("TOUCHSTONE_CACHE", str(folder / "cache"))
        patched.setenv("HF_HUB_OFFLINE", "1")
        for seed, member in enumerate(facts["members"]):
            name = member["detector"]
            card = seeded_frozen(name, folder / "seeded")
            card = card.model_copy(update={"weights": load_card(name).weights})
            with torch.device("meta"):
                width = build_network(card).fc.in_features
            weight = np.random.default_rng(seed).normal(size=(1, width)).astype(np.float32)
            save_head(folder / "head.pth", Head(weight, ASTRAY * (seed == len(facts["members"]) - 1)))
            install_head(card, folder / "head.pth")
            member["detector"] = str(write_card(card, folder / f"{name.replace(':', '-')}.yaml"))
        (folder / "wild.yaml").write_text(yaml.safe_dump(facts))
        for number in range(2):
            picture(number, 96, 80).save(folder / f"{number}.png")
        yield folder, facts


def test_an_outlier_among_the_heads_is_left_out_and_each_scores_as_alone(wild):
    folder, facts = wild
    images = [folder / "0.png", folder / "1.png"]
    for path, result in zip(images, load_ensemble(folder / "wild.yaml", precision="fp32").score(images), strict=True):
        assert result.status == "ok"
        scores = np.array(list(result.scores.values()))
        assert scores[-1] > ASTRAY - 10 > abs(scores[:-1]).max()
        assert result.score == pytest.approx(scores[:-1].mean(), abs=1e-4)
        for member, score in zip(facts["members"], scores, strict=True):
            detector = load_detector(member["detector"], precision="fp32")
            pixels = detector.prepare(Image.open(path).convert("RGB"))[None]
            assert detector.score(pixels)[0] == pytest.approx(score, abs=1e-4)
