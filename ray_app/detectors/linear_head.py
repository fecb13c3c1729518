"""Apply a linear head to embeddings that outlive their images (`LinearHead`).

`embedding_facts` shows which heads suit an embedding. Heads are fitted by `ray_app.training.head`.
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
from ray_app.detectors.detector import Prediction, bare_network, fake_index, log_odds, own_keys
from ray_app.detectors.precision import ResolvedPrecision, Tap, head_of, no_embedding
from ray_app.detectors.preprocessing import ResizeMode
from ray_app.detectors.registry import HEADS
from ray_app.detectors.weights import file_sha256
from ray_app.errors import DetectorError

Vectors = npt.NDArray[np.float32]
_SIDE_PX = 224  # of the image that a network is tried with where images keep their sizes


class LinearHead:
    """The head of a card alone: embeddings in, log-odds of fake out, in fp32 on a CPU. The
    backbone's weights are not read.

    Raises DetectorError where the card's network has no such head, or its weights are missing or do
    not fit.
    """

    def __init__(self, card: DetectorCard) -> None:
        network = bare_network(card)
        name, layer = head_of(card.name, network)
        own = weight_files.parts_of(card)[0]
        path = weight_files.resolve_part(own)
        state = own_keys(card, read_state_dict(path, own.weights), network)
        wanted = {
            key: getattr(layer, key).shape
            for key in ("weight", "bias")
            if getattr(layer, key) is not None
        }
        found = {key: state[f"{name}.{key}"] for key in wanted if f"{name}.{key}" in state}
        if {key: tensor.shape for key, tensor in found.items()} != wanted:
            raise DetectorError(
                f"{card.name}: {path}: no head of the shape that the card says, {dict(wanted)}"
            )
        self.card = card
        self._fake = fake_index(card, checkpoint_config(card, path))
        self._weight, self._bias = (
            found["weight"].float(),
            found["bias"].float() if "bias" in found else None,
        )

    @torch.inference_mode()
    def score(self, vectors: Vectors) -> Vectors:
        """(N, d) float32 → (N,) float32 log-odds of fake; NaN for a row of NaN."""
        logits = functional.linear(torch.from_numpy(vectors), self._weight, self._bias)
        scores: Vectors = log_odds(self.card, self._fake, logits, len(vectors)).numpy()
        return scores


def embedding_facts(
    card: DetectorCard, *, precision: ResolvedPrecision, resize: ResizeMode
) -> dict[str, Any]:
    """All that decides an embedding beside the image, as plain JSON; cards for which it is equal
    have equal embeddings.

    `sha256`: of the weights before the head: the backbone's file, where the card names one.
    `width`: numbers per image. Reads weights, builds no network with values. Raises DetectorError
    where the detector has no embedding, or weights are missing.
    """
    width = _width(card)
    architecture = dict(card.architecture_facts)
    if card.family in HEADS:
        architecture.pop("name")  # of the classifier that the head was fitted as
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
    """Numbers per image, of a network that was tried without values. Raises DetectorError where its
    head takes no single vector.
    """
    network = bare_network(card)
    _, head = head_of(card.name, network)
    if head.out_features != card.output.logits:
        raise no_embedding(card.name)
    tap = Tap(card.name, network)
    height, width = card.preprocessing.shape or (_SIDE_PX, _SIDE_PX)
    try:
        with torch.device("meta"), torch.inference_mode():
            given = network(torch.empty(1, 3, height, width))
    # some do not run without values; the first batch will tell
    except (RuntimeError, NotImplementedError):
        return head.in_features
    tap.taken((given if isinstance(given, Prediction) else Prediction(given)).logits)
    return head.in_features


def _body_sha256(card: DetectorCard) -> str:
    own, *shared = weight_files.parts_of(card)
    digests = [_digest_of(part) for part in shared]
    if card.family not in HEADS:  # Their own file is the head alone, and need not exist yet.
        path = weight_files.resolve_part(own)
        if rest := _rest_sha256(card.model_dump_json(), path, file_sha256(path)):
            digests.append(rest)
    return weight_files.digest_of_all(digests)


def _digest_of(part: weight_files.WeightSet) -> str:
    """Return the digest of a file. One that the card states needs no file: heads that score stored
    embeddings leave the backbone out.
    """
    digest = part.weights.sha256
    if digest is not None and not part.weights.beside:
        return digest
    return weight_files.digest_of(part, weight_files.resolve_part(part))


@functools.cache
def _rest_sha256(described: str, path: Path, file_digest: str) -> str:
    """Of all tensors in a card's own file but those of its head, by their names in the network; ""
    where there are none.

    `described`: the card as JSON. `file_digest` stands for the content of the file, which is read
    once per process.
    """
    card = DetectorCard.model_validate_json(described)
    network = bare_network(card)
    name, _ = head_of(card.name, network)
    state = own_keys(card, read_state_dict(path, card.weights), network)
    body = {key: tensor for key, tensor in state.items() if not key.startswith(f"{name}.")}
    digest = hashlib.sha256()
    for key, tensor in sorted(body.items()):
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest() if body else ""
