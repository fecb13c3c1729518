"""Build the `transformers-classifier` family: image classifiers of Hugging Face transformers.

Networks are built from a configuration, never downloaded from a hub.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
import transformers
from torch import nn

from ray_app.detectors.card import DetectorCard
from ray_app.detectors.families.mae import headwise_attention
from ray_app.errors import DetectorError

_ATTENTION = "touchstone-headwise"


def build(card: DetectorCard) -> nn.Module:
    """Build the network of a card.

    `architecture.name` is a model type of transformers, such as "vit". `architecture.arguments` are
    the values of its configuration. Raises DetectorError if the configuration has unknown keys.
    """
    arguments = dict(card.architecture.arguments)
    with quietly():
        config = transformers.AutoConfig.for_model(
            card.architecture.name, num_labels=card.output.logits, **arguments
        )
        unknown = list(unknown_keys(arguments, type(config)().to_dict()))
    if unknown:
        raise DetectorError(
            f"{card.name}: architecture.arguments: unknown keys for {card.architecture.name}: {', '.join(unknown)}"
        )
    network: nn.Module = transformers.AutoModelForImageClassification.from_config(config)  # type: ignore[no-untyped-call]
    use_headwise_attention(network)
    vision: Any = getattr(network, "vision_model", None)
    # SigLIP classifies by the mean of its patches, so its pooling head is unused.
    if getattr(vision, "use_head", False):
        vision.use_head = False
    network.register_forward_hook(_logits_only)
    return network


def published_keys(
    state: Mapping[str, torch.Tensor], network: nn.Module
) -> dict[str, torch.Tensor]:
    """Rename a file's tensors to the names of this version of transformers.

    Published files have the names of the version that wrote them. transformers has a list of
    renamings, which is used here. Raises DetectorError if several keys are renamed to the same
    name, or if this version has no list of renamings.
    """
    network_keys = network.state_dict().keys()
    if state.keys() == network_keys:
        return dict(state)
    rename = _renaming(network)
    # Some patterns match present names too, so a key of the network stays unless its new name is a
    # key of the network as well.
    names = {
        key: new if (new := rename(key)) in network_keys or key not in network_keys else key
        for key in state
    }
    key_by_name = {name: key for key, name in names.items()}
    if duplicates := [
        f"{key} and {key_by_name[name]}" for key, name in names.items() if key_by_name[name] != key
    ]:
        raise DetectorError(
            f"several keys of the weights file mean the same tensor of {type(network).__name__}: {', '.join(duplicates[:3])}",
            hint="remove one key of each pair from the file",
        )
    return {name: state[key] for key, name in names.items()}


def _renaming(network: Any) -> Callable[[str], str]:
    """Return a function that maps key names of earlier transformers versions to present names."""
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightRenaming, apply_renamings

        renamings = [
            step
            for step in get_model_conversion_mapping(network)
            if isinstance(step, WeightRenaming)
        ]
    except (ImportError, AttributeError, TypeError) as error:
        raise DetectorError(
            f"the keys are not those of the network, and transformers {transformers.__version__} has no list of renamings: {error}",
            hint="run pip install transformers==5.23.0, or rename the keys in the file",
        ) from error
    return partial(apply_renamings, weight_renamings=renamings)


def skip_initial_values() -> AbstractContextManager[None]:
    """Return a context in which networks are built without initial values.

    Initial values take time, and a weight file overwrites them. Raises DetectorError if this
    version of transformers does not support such a context.
    """
    try:
        from transformers.initialization import no_init_weights
    except ImportError as error:
        raise DetectorError(
            f"transformers {transformers.__version__} cannot build a network without initial values: {error}",
            hint="run pip install transformers==5.23.0",
        ) from error
    context: AbstractContextManager[None] = no_init_weights()
    return context


@contextmanager
def quietly() -> Iterator[None]:
    """Suppress transformers' warnings in a `with` block.

    Without it, transformers warns about parts that a classifier lacks, such as SigLIP's text tower.
    """
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)


def _logits_only(network: nn.Module, inputs: Any, output: Any) -> torch.Tensor:
    logits: torch.Tensor = output.logits
    return logits


def use_headwise_attention(network: Any) -> None:
    """Make a network of transformers use `headwise_attention`, which is faster in bf16 on a CPU.

    Only models that read the attention registry of transformers support it. Other models stay
    unchanged.
    """
    if network.is_backend_compatible():
        transformers.AttentionInterface.register(_ATTENTION, headwise_attention)
        with quietly():
            network.set_attn_implementation(_ATTENTION)


def unknown_keys(
    given: Mapping[str, Any], known: Mapping[str, Any], path: str = ""
) -> Iterator[str]:
    """Yield the keys of a configuration that transformers does not know, such as a misspelt key.

    transformers itself would ignore them without a warning.

    Args:
        given: The configuration.
        known: The default configuration, which has all keys.
        path: Prefix of the keys, such as "vision_config.". The function calls itself with it.

    Yields:
        An unknown key, with the names of the sections that contain it: "vision_config.hiddensize".
    """
    # transformers stores a misspelt key as an attribute and builds the default network without a
    # warning.
    for key, value in given.items():
        if key not in known:
            yield f"{path}{key}"
        elif isinstance(value, Mapping) and isinstance(known[key], Mapping):
            yield from unknown_keys(value, known[key], f"{path}{key}.")
