"""The linear probe: `probe` fits scikit-learn's head to features of every training image, computed once by a frozen backbone.

What comes out is a checkpoint like that of any training. Features are kept in `features/`, block by block: an interrupted probe computes
no block again.
"""

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_app.detectors.linear_head import Classifier, Head, cross_validated_auc, fit_head
from ray_app.errors import ConfigError
from ray_app.training import checkpoints
from ray_app.training.embeddings import compute_embeddings, groups_of, kept_embeddings
from ray_app.training.finish import PROBE
from ray_app.training.job import TrainingJob

if TYPE_CHECKING:
    from ray_app.detectors import Detector

CLASSIFIER: Classifier = "logistic"


def probe(job: TrainingJob) -> None:
    """Compute what features are missing, fit the head, and keep network and head as the one checkpoint.

    Raises ConfigError for a card without a head on features, and for too few images of a class; TouchstoneError where too many cannot
    be read.
    """
    if job.card.family != "clip-linear":
        raise ConfigError(f"{job.card.name}: a linear probe is for cards of family clip-linear", hint="method: fine-tune")
    compute_embeddings(job, {"train": None}, make=frozen_detector)
    found = kept_embeddings(job.out, "train")
    head = fit_head(found.vectors, found.labels, CLASSIFIER)
    folds = cross_validated_auc(found.vectors, found.labels, CLASSIFIER, groups_of(job.rows("train"), found.rows))
    job.out.write(PROBE, json.dumps({"images": len(found), "cross_validated_auc": folds}).encode())
    _keep(job, head)


def frozen_detector(job: TrainingJob) -> "Detector":
    """The network as training would begin with it: its backbone is that of the recipe, its head need not exist."""
    from ray_app.training.networks import network_for
    from ray_app.training.validate import detector_for

    return detector_for(job.card, network_for(job.config, job.card).eval().requires_grad_(False), device=job.layout.device)


def _keep(job: TrainingJob, head: Head) -> None:
    """The network with its fitted head as a checkpoint of the run, as `Learner.save` names the file."""
    import torch
    from safetensors.torch import save_file

    from ray_app.training.learner import WEIGHTS
    from ray_app.training.networks import network_for

    network: Any = network_for(job.config, job.card)
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
        save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, Path(folder) / WEIGHTS)
        checkpoints.write_facts(Path(folder), step=job.total_steps, finished=True)
        checkpoints.put(job.out, Path(folder), step=job.total_steps)
