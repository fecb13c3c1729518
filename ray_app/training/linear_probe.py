"""The method `linear-probe`: a head on embeddings of the training images, as a checkpoint like that
of any training.
"""

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

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
    """Compute what embeddings are missing, fit the head, and keep network and head as the one
    checkpoint.

    Raises:
        ConfigError: The card has no head on features, or a class has too few images.
        TouchstoneError: Too many images cannot be read.
    """
    if job.card.family not in HEADS:
        raise ConfigError(
            f"{job.card.name}: a linear probe is for cards of the families {' and '.join(HEADS)}",
            hint="method: fine-tune",
        )
    embeddings.compute_embeddings(job, {"train": None}, make=frozen_detector)
    found = embeddings.kept_embeddings(job.out, "train")
    require_enough(found.labels)
    rows = job.rows("train")
    generators = [name or "" for name in embeddings.column_of(rows, found.rows, "generator")]
    weights = even_weights(found.labels, generators, job.config.sampling.generators)
    head = fit_head(found.vectors, found.labels, weights=weights)
    groups = embeddings.groups_of(rows, found.rows)
    aucs = cross_validate_auc(found.vectors, found.labels, groups=groups, weights=weights)
    facts = {"images": len(found), "cross_validated_auc": aucs}
    job.out.write(export.PROBE, json.dumps(facts).encode())
    _keep(job, head.as_log_odds())


def frozen_detector(job: TrainingJob) -> "Detector":
    """The network as training would begin with it: its backbone is that of the recipe, its head
    need not exist.
    """
    network = networks.network_for(job.config, job.card).eval().requires_grad_(False)
    return validate.detector_for(job.card, network, device=job.layout.device)


def _keep(job: TrainingJob, head: LogOddsHead) -> None:
    """Keep the network with its fitted head as a checkpoint of the run, as `Learner.save` names the
    file.
    """
    from safetensors.torch import save_file

    network: Any = networks.network_for(job.config, job.card)
    weight, bias = torch.from_numpy(head.weight), torch.tensor([head.bias])
    output = job.card.output
    with torch.no_grad():
        if output.sign is not None:
            network.fc.weight.copy_(output.sign * weight)
            network.fc.bias.copy_(output.sign * bias)
        else:  # two logits, whose difference is the score
            fake = output.index_among(output.labels)
            for index, side in ((fake, 0.5), (1 - fake, -0.5)):
                network.fc.weight[index].copy_(side * weight[0])
                network.fc.bias[index].copy_(side * bias[0])
    with tempfile.TemporaryDirectory(prefix="touchstone-") as folder:
        save_file(
            {name: tensor.contiguous() for name, tensor in network.state_dict().items()},
            Path(folder) / learner.WEIGHTS,
        )
        checkpoints.save_checkpoint(
            job.out, Path(folder), checkpoints.new_name(job.total_steps), finished=True
        )
