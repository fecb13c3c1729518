"""Score stored embeddings with a detector's linear head, without the images (`LinearHead`).

An embedding is the input of the last linear layer of a detector's network, and the head is that
layer. A detector's head can score stored embeddings only if the detector's `embedding_facts` equal
those that are stored with the embeddings. `ray_app.training.head` fits heads.
"""

import functools
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from ray_app.detectors import weights as weight_files
from ray_app.detectors.card import DetectorCard
from ray_app.detectors.checkpoints import checkpoint_config, read_state_dict
from ray_app.detectors.detector import (
    Prediction,
    build_bare_network,
    fake_index,
    log_odds,
    rename_keys,
)
from ray_app.detectors.precision import (
    EmbeddingHook,
    ResolvedPrecision,
    find_head,
    make_embedding_error,
)
from ray_app.detectors.preprocessing import ResizeMode
from ray_app.detectors.registry import HEADS
from ray_app.detectors.weights import hash_file
from ray_app.errors import DetectorError

Vectors = npt.NDArray[np.float32]
_SIDE_PX = 224  # Side of the test image for networks that keep the size of images.


class LinearHead:
    """Score stored embeddings with the last linear layer of a detector, in fp32 on a CPU.

    The weights of the backbone are not read. The constructor raises DetectorError if the card's
    network has no linear layer, or if the weights of the layer are missing or do not fit.

    Args:
        card: The detector card.
    """

    def __init__(self, card: DetectorCard) -> None:
        network = build_bare_network(card)
        name, layer = find_head(card.name, network)
        part = weight_files.list_parts(card)[0]
        path = weight_files.resolve_part(part)
        state = rename_keys(card, read_state_dict(path, part.weights), network)
        shapes = {
            key: tuple(getattr(layer, key).shape)
            for key in ("weight", "bias")
            if getattr(layer, key) is not None
        }
        tensors = {key: state[f"{name}.{key}"] for key in shapes if f"{name}.{key}" in state}
        own_shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
        if own_shapes != shapes:
            raise DetectorError(
                f"{card.name}: {path}: the linear head must have the shapes {shapes}, got {own_shapes or 'none'}",
                hint="set `weights` in the card to the file of this head",
            )
        self.card = card
        self._fake = fake_index(card, checkpoint_config(card, path))
        self._weight, self._bias = (
            tensors["weight"].float(),
            tensors["bias"].float() if "bias" in tensors else None,
        )

    @torch.inference_mode()
    def score(self, vectors: Vectors) -> Vectors:
        """Return the log-odds of fake of embeddings: (N, d) float32 → (N,) float32.

        A row of NaN gets the score NaN.
        """
        logits = functional.linear(torch.from_numpy(vectors), self._weight, self._bias)
        scores: Vectors = log_odds(self.card, self._fake, logits, len(vectors)).numpy()
        return scores


def embedding_facts(
    card: DetectorCard, *, precision: ResolvedPrecision, resize: ResizeMode
) -> dict[str, Any]:
    """Return all settings that affect the embeddings of a detector, as plain JSON.

    An embedding is the input of the head, the last linear layer of the network. If two cards have
    equal settings, their embeddings of an image are equal. The head of one can then score stored
    embeddings of the other.

    Args:
        card: The detector card.
        precision: Precision of the network.
        resize: "exact" or "fast", see `Preprocessing.with_resize`.

    Returns:
        The settings. `sha256` is the digest of all weights before the head, with those of the
            backbone. Weight files are read only if the SHA-256 values on the card do not suffice.
            `width` is the length of an embedding.

    Raises:
        DetectorError: If the detector has no embedding, or if weights are missing.
    """
    width = _width(card)
    architecture = dict(card.architecture_facts)
    if card.family in HEADS:
        architecture.pop("name")  # It names the classifier that the head was fitted as.
    return {
        "backbone": card.backbone.name if card.backbone else None,
        "sha256": _body_sha256(card),
        "architecture": architecture,
        "preprocessing": card.preprocessing.model_dump(mode="json"),
        "precision": precision,
        "resize": resize,
        "width": width,
    }


def _width(card: DetectorCard) -> int:
    """Return the length of an embedding, by running the network without weight data.

    Raises DetectorError if the head's input is not a single vector per image.
    """
    network = build_bare_network(card)
    _, head = find_head(card.name, network)
    if head.out_features != card.output.logits:
        raise make_embedding_error(card.name)
    hook = EmbeddingHook(card.name, network)
    height, width = card.preprocessing.shape or (_SIDE_PX, _SIDE_PX)
    try:
        with torch.device("meta"), torch.inference_mode():
            output = network(torch.empty(1, 3, height, width))
    # Some networks do not run without weight data. The first batch raises the error for them.
    except (RuntimeError, NotImplementedError):
        return head.in_features
    hook.take_embedding((output if isinstance(output, Prediction) else Prediction(output)).logits)
    return head.in_features


def _body_sha256(card: DetectorCard) -> str:
    head, *shared = weight_files.list_parts(card)
    digests = [_part_sha256(part) for part in shared]
    if (
        card.family not in HEADS
    ):  # In `HEADS`, the file contains only the head and may not exist yet.
        path = weight_files.resolve_part(head)
        if body_digest := _hash_body(card.model_dump_json(), path, hash_file(path)):
            digests.append(body_digest)
    return weight_files.combine_digests(digests)


def _part_sha256(part: weight_files.WeightSet) -> str:
    """Return the SHA-256 of a part without reading its file if the card states it.

    Heads that score stored embeddings do not need the backbone's file.
    """
    digest = part.weights.sha256
    if digest is not None and not part.weights.beside:
        return digest
    return weight_files.verify_part(part, weight_files.resolve_part(part))


@functools.cache
def _hash_body(card_json: str, path: Path, file_digest: str) -> str:
    """Return the SHA-256 of all tensors in a card's main file except those of its head.

    Args:
        card_json: The card as JSON.
        path: The main file.
        file_digest: SHA-256 of the file, as a cache key. The file is read once per process.

    Returns:
        The SHA-256 in hex. "" if there are no other tensors.
    """
    card = DetectorCard.model_validate_json(card_json)
    network = build_bare_network(card)
    name, _ = find_head(card.name, network)
    state = rename_keys(card, read_state_dict(path, card.weights), network)
    body = {key: tensor for key, tensor in state.items() if not key.startswith(f"{name}.")}
    digest = hashlib.sha256()
    for key, tensor in sorted(body.items()):
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest() if body else ""
