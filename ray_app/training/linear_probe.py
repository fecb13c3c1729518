"""Train a linear head on frozen features for the method `linear-probe`: `probe`.

The head is fitted to stored embeddings, and the network with this head is stored as a checkpoint.
"""

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ray_app.detectors.checkpoints import write_safetensors
from ray_app.detectors.registry import HEADS
from ray_app.errors import ConfigError
from ray_app.training import checkpoints, embeddings, export, learner, networks, validate
from ray_app.training.head import (
    LogOddsHead,
    cross_validate_auc,
    even_weights,
    fit_head,
    require_enough,
)
from ray_app.training.job import TrainingJob

if TYPE_CHECKING:
    from ray_app.detectors import Detector


def probe(job: TrainingJob) -> None:
    """Compute missing embeddings, fit the head, and store the whole network as a checkpoint."""
    if job.card.family not in HEADS:
        raise ConfigError(
            f"{job.card.name}: a linear probe needs a card of the family {' or '.join(HEADS)}, got {job.card.family}",
            hint="set method: fine-tune",
        )
    embeddings.compute_embeddings(job, {"train": None}, load_detector=load_frozen_detector)
    embedded = embeddings.read_embeddings(job.out, "train")
    require_enough(embedded.labels)
    rows = job.rows("train")
    generators = [
        name or "" for name in embeddings.get_label_column(rows, embedded.rows, "generator")
    ]
    weights = even_weights(embedded.labels, generators, job.config.sampling.generators)
    head = fit_head(embedded.vectors, embedded.labels, weights=weights)
    groups = embeddings.get_groups(rows, embedded.rows)
    aucs = cross_validate_auc(embedded.vectors, embedded.labels, groups=groups, weights=weights)
    facts = {"images": len(embedded), "cross_validated_auc": aucs}
    job.out.write(export.PROBE, json.dumps(facts).encode())
    _store(job, head.as_log_odds())


def load_frozen_detector(job: TrainingJob) -> "Detector":
    """Load a detector that computes embeddings with the recipe's backbone, to fit a head to them.

    The head of this detector is not trained, so its scores mean nothing.
    """
    network = networks.build_training_network(job.config, job.card).eval().requires_grad_(False)
    return validate.build_detector(job.card, network, device=job.layout.device)


def _store(job: TrainingJob, head: LogOddsHead) -> None:
    """Store the network with its fitted head as a checkpoint, in the files of `Learner.save`."""
    network: Any = networks.build_training_network(job.config, job.card)
    weight, bias = torch.from_numpy(head.weight), torch.tensor([head.bias])
    output = job.card.output
    with torch.no_grad():
        if output.sign is not None:
            network.fc.weight.copy_(output.sign * weight)
            network.fc.bias.copy_(output.sign * bias)
        else:  # The difference of two logits is the score.
            fake = output.index_among(output.labels)
            for index, side in ((fake, 0.5), (1 - fake, -0.5)):
                network.fc.weight[index].copy_(side * weight[0])
                network.fc.bias[index].copy_(side * bias[0])
    with tempfile.TemporaryDirectory(prefix="touchstone-") as folder:
        write_safetensors(Path(folder) / learner.WEIGHTS, network.state_dict())
        checkpoints.save_checkpoint(
            job.out, Path(folder), checkpoints.make_checkpoint_name(job.total_steps), finished=True
        )
