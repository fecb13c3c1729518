"""The first step of touchstone-photo's training, without Ray: a probe of frozen stages, begun from a published file."""

import json
from dataclasses import dataclass

import numpy as np
import pytest
import timm
import torch

from ray_app.config import validate
from ray_app.detectors import linear_head
from ray_app.detectors.families.stages import published_keys
from ray_app.storage import Store
from ray_app.training import checkpoints, embeddings, finish, job, learner, loader, networks
from ray_app.training.config import TrainConfig, Workers
from tests.datasets.tables import labelled
from tests.detectors.fill import fill
from tests.training.small_recipes import DETECTORS
from tests.training.test_loader import rows_in

CARD, SMALL = DETECTORS["stages"]
TWO_LOGITS = {"output": {"labels": ["real", "fake"], "fake_label": "fake", "sign": None}}
IMAGES = 12


@dataclass(frozen=True)
class JobHere(job.TrainingJob):
    """A job whose rows are in this process."""

    def rows(self, split):
        return self.shared[split]


def published(folder):
    """A classifier with batch norms in PyTorch's format, as PyPI's packages have it."""
    state = fill(timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict())
    renamed = {f"layers.{place}.{key.rsplit('.', 1)[-1]}": tensor for place, (key, tensor) in enumerate(state.items())}
    torch.save(renamed, folder / "published.pth")
    return state


@pytest.fixture
def begun(tmp_path):
    """A probe whose features were computed already, in this process, block by block."""

    def made(**card):
        state = published(tmp_path)
        weights = {"network": {"uri": str(tmp_path / "published.pth"), "format": "torch", "unverified": "of this test"}}
        told = {
            "name": "head", "detector": CARD, "method": "linear-probe", "card": {**SMALL, **card},
            "initial": {"start": "pretrained", "weights": weights, "fresh": ["fc."]},
            "data": {"train": [{"at": "nowhere"}]}, "loop": {"batch": 8, "epochs": 1, "precision": "fp32"}, "out": str(tmp_path / "out"),
        }  # fmt: skip
        config = validate(told, TrainConfig, where="test")
        rows = labelled(rows_in(tmp_path, IMAGES))
        given = JobHere(config=config, card=networks.training_card(config), out=Store.open(config.out), total_steps=2,
                        layout=job.plan_workers(Workers(), cpus=2, gpus=0), milestones=frozenset([2]), shared={"train": rows})  # fmt: skip
        detector = embeddings.frozen_detector(given)
        detector.keep_embeddings()
        batches = loader.BatchLoader(rows, given.card.preprocessing, policy=None, seed=0)
        for first in range(0, IMAGES, 8):
            places = np.arange(first, min(first + 8, IMAGES))
            embeddings.keep_block(given.out, "train", first, embeddings.embed(detector, batches, places))
        return given, state

    return made


@pytest.mark.parametrize("logits", [1, 2])
def test_a_probe_is_a_head_on_the_statistics_of_the_published_network(begun, logits):
    given, state = begun(**(TWO_LOGITS if logits == 2 else {}))
    embeddings.probe(given)
    facts = json.loads(given.out.read(finish.PROBE))
    assert (facts["images"], len(facts["cross_validated_auc"])) == (IMAGES, 5)
    [entry] = checkpoints.kept(given.out)
    with checkpoints.fetched(given.out, entry.name) as folder:
        network = learner.load_trained(given.config, given.card, folder)
    assert network.fc.out_features == logits
    for key, tensor in published_keys(state, network).items():
        assert torch.equal(network.state_dict()[key], tensor), key
    found = embeddings.kept_embeddings(given.out, "train")
    assert found.vectors.shape == (IMAGES, network.fc.in_features)
    head = linear_head.fit_head(found.vectors, found.labels, embeddings.CLASSIFIER)
    with torch.no_grad():
        answer = network.fc(torch.from_numpy(found.vectors))
    scores = answer[:, 0] if logits == 1 else answer[:, 1] - answer[:, 0]
    np.testing.assert_allclose(scores, (found.vectors @ head.weight.T + head.bias)[:, 0], atol=1e-4, rtol=1e-4)
