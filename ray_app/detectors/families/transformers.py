"""The `transformers-classifier` family: image classifiers of Hugging Face transformers, from a
configuration, never from a hub.
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
    """The network of the card: `architecture.name` is the model type, `arguments` its
    configuration. Raises DetectorError.
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
    # SigLIP's, which classifies by the mean of its patches: it costs time and feeds nothing
    if getattr(vision, "use_head", False):
        vision.use_head = False
    network.register_forward_hook(_logits_only)
    return network


def published_keys(
    state: Mapping[str, torch.Tensor], network: nn.Module
) -> dict[str, torch.Tensor]:
    """A file's tensors under the network's own names, by transformers' own list of what it has
    renamed since its earlier versions.

    Published files keep the names of the version that wrote them. Names only: no tensor is changed.
    Raises DetectorError.
    """
    own = network.state_dict().keys()
    if state.keys() == own:
        return dict(state)
    renamed = _renaming(network)
    # Some patterns hit today's names too, so a key that is the network's own stays unless its new
    # name is one as well.
    names = {key: new if (new := renamed(key)) in own or key not in own else key for key in state}
    old = {name: key for key, name in names.items()}
    if twice := [f"{key} and {old[name]}" for key, name in names.items() if old[name] != key]:
        raise DetectorError(
            f"keys of the file that mean the same tensor of {type(network).__name__}: {', '.join(twice[:3])}"
        )
    return {name: state[key] for key, name in names.items()}


def _renaming(network: Any) -> Callable[[str], str]:
    """From a name of an earlier version of transformers to today's."""
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
            f"the keys are not the network's own, and transformers {transformers.__version__} does not say what it renamed: {error}",
            hint="pip install transformers==5.23.0, or write the file under the network's own names",
        ) from error
    return partial(apply_renamings, weight_renamings=renamings)


def skip_initial_values() -> AbstractContextManager[None]:
    """Return a context in which networks are built without initial values, which would be
    overwritten. Raises DetectorError.
    """
    try:
        from transformers.initialization import no_init_weights
    except ImportError as error:
        raise DetectorError(
            f"transformers {transformers.__version__} cannot build a network without initial values: {error}",
            hint="pip install transformers==5.23.0",
        ) from error
    context: AbstractContextManager[None] = no_init_weights()
    return context


@contextmanager
def quietly() -> Iterator[None]:
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


def use_headwise_attention(network: Any) -> None:
    """Let a network attend head by head, which bf16 on a CPU wants.

    Only models that read the library's attention registry can take it; the others keep their own.
    """
    if network.is_backend_compatible():
        transformers.AttentionInterface.register(_ATTENTION, headwise_attention)
        with quietly():
            network.set_attn_implementation(_ATTENTION)


def unknown_keys(
    given: Mapping[str, Any], known: Mapping[str, Any], path: str = ""
) -> Iterator[str]:
    """The keys of a configuration that the library does not know, with the path of each."""
    # transformers keeps a misspelt key as an attribute and builds the default network without a
    # word.
    for key, value in given.items():
        if key not in known:
            yield f"{path}{key}"
        elif isinstance(value, Mapping) and isinstance(known[key], Mapping):
            yield from unknown_keys(value, known[key], f"{path}{key}.")
