"""The `transformers-classifier` family: image classifiers of Hugging Face transformers, from a configuration, never from a hub."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from torch import nn

from ray_app.detectors.attention import headwise_attention
from ray_app.detectors.cards import DetectorCard
from ray_app.errors import DetectorError

_ATTENTION = "touchstone-headwise"


def build(card: DetectorCard) -> nn.Module:
    """The network of the card: `architecture.name` is the model type, `arguments` its configuration. Raises DetectorError."""
    arguments = dict(card.architecture.arguments)
    try:
        with _quietly():
            config = transformers.AutoConfig.for_model(card.architecture.name, num_labels=card.output.logits, **arguments)
            unknown = list(_unknown_keys(arguments, type(config)().to_dict()))
        if unknown:
            raise DetectorError(f"{card.name}: architecture.arguments: unknown keys for {card.architecture.name}: {', '.join(unknown)}")
        network: nn.Module = transformers.AutoModelForImageClassification.from_config(config)  # type: ignore[no-untyped-call]
    except (RuntimeError, TypeError, ValueError) as error:
        raise DetectorError(f"{card.name}: transformers cannot build {card.architecture.name}: {error}") from error
    _use_headwise_attention(network)
    _drop_unused_pooling(network)
    network.register_forward_hook(_logits_only)
    return network


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep back warnings about parts that a classifier does not build, such as SigLIP's text tower."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)


def _logits_only(network: nn.Module, inputs: Any, output: Any) -> torch.Tensor:
    logits: torch.Tensor = output.logits
    return logits


def _use_headwise_attention(network: Any) -> None:
    """Only models that read the library's attention registry can take it; the others keep their own."""
    if getattr(network, "_supports_attention_backend", False):
        transformers.AttentionInterface.register(_ATTENTION, headwise_attention)
        with _quietly():
            network.set_attn_implementation(_ATTENTION)


def _drop_unused_pooling(network: Any) -> None:
    """SigLIP classifies by the mean of its patches; the pooling head is in the checkpoint, costs time and feeds nothing."""
    vision: Any = getattr(network, "vision_model", None)
    if getattr(vision, "use_head", False):
        vision.use_head = False


def _unknown_keys(given: Mapping[str, Any], known: Mapping[str, Any], path: str = "") -> Iterator[str]:
    # transformers keeps a misspelt key as an attribute and builds the default network without a word.
    for key, value in given.items():
        if key not in known:
            yield f"{path}{key}"
        elif isinstance(value, Mapping) and isinstance(known[key], Mapping):
            yield from _unknown_keys(value, known[key], f"{path}{key}.")
