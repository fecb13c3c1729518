"""Cards of profiles with files that were made for them: a retrieval describer of given prompts, an
identifier of a given head.
"""

import hashlib
from pathlib import Path

import numpy as np
import yaml
from safetensors.numpy import save_file

from ray_app.identification.captions import index_tensors


def make_retrieval(folder, vectors, prompts, detector, embedding, **changes) -> Path:
    """FOLDER/describer.yaml: the prompt of the nearest of `vectors` (n, d), embeddings of
    `detector` as `embedding` says.

    `embedding`: what `ray_app.detectors.linear_head.embedding_facts` tells of the detector;
    `changes`: further keys of the card.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        index_tensors(np.asarray(vectors, np.float32), prompts), folder / "describer.safetensors"
    )
    told = {
        "name": "nearest",
        "title": "Nearest prompts",
        "tier": "retrieval",
        "detector": detector,
        "embedding": dict(embedding),
    }
    return _card(folder / "describer.yaml", folder / "describer.safetensors", told | changes)


def make_identifier(folder, classes, weight, detector, embedding, bias=None, **changes) -> Path:
    """FOLDER/identifier.yaml: a head `weight` (C, d), `bias` (C,), over `classes`, on embeddings of
    `detector`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {"weight": np.ascontiguousarray(weight, np.float32)}
    tensors |= {} if bias is None else {"bias": np.ascontiguousarray(bias, np.float32)}
    return make_head(
        folder,
        tensors,
        classes=list(classes),
        detector=detector,
        embedding=dict(embedding),
        **changes,
    )


def make_head(folder, tensors, **told) -> Path:
    """FOLDER/identifier.yaml: a head of these tensors, whatever they are."""
    save_file(tensors, folder / "head.safetensors")
    return _card(
        folder / "identifier.yaml",
        folder / "head.safetensors",
        {"name": "named", "title": "Named", **told},
    )


def _card(path, weights, told) -> Path:
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    common = {
        "weights": {"uri": weights.name, "sha256": digest},
        "licence": "mine",
        "source": "tests",
        "training_data": {"name": "drawn", "licence": "none"},
    }
    path.write_text(yaml.safe_dump(common | told))
    return path
