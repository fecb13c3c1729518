"""Build the network that a recipe trains, and convert it after training for scoring.

`build_training_network` builds the network that learns, with LoRA adapters if the recipe has them
(arXiv 2106.09685, by peft). `make_deployable` merges the adapters into the weights, and returns the
plain network that the detector's card describes.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from ray_app.detectors import load_card
from ray_app.detectors.card import DetectorCard, Output, Weights
from ray_app.detectors.checkpoints import load_strictly, read_state_dict
from ray_app.detectors.detector import build_network, load_network, rename_keys
from ray_app.detectors.families import maskclip, residual
from ray_app.detectors.registry import HEADS
from ray_app.detectors.weights import WeightSet, resolve_part
from ray_app.errors import ConfigError, DetectorError
from ray_app.training.config import PROFILING, LoraSettings, Recipe

State = Mapping[str, torch.Tensor]
WHOLE_NETWORK = "network"  # The key of `initial.weights` for the whole network.
_ADAPTER = "default"  # The name that peft gives to a single adapter.


def training_card(recipe: Recipe) -> DetectorCard:
    """Return the card of the network to train: the detector's card with the recipe's changes.

    This card is called the training card. Its weights, metrics, and size are those of the original
    detector. The export replaces them.

    Raises:
        ConfigError: The detector answers in text, which no method can train. Also if its
            preprocessing keeps the size of every image, except for `identify` and `describe`.
    """
    card = load_card(recipe.detector, recipe.card)
    if card.replies:
        raise ConfigError(
            f"{recipe.name}: {card.name} answers in text, and no method can train such a detector",
            hint="set `detector` of the recipe to another one; `touchstone detectors list` shows all names",
        )
    if card.preprocessing.shape is None and recipe.method not in PROFILING:
        raise ConfigError(f"{recipe.name}: {card.name} keeps the size of every image, but a batch needs one size",
                          hint="set a size in the recipe, such as card: {preprocessing: {center_crop: 224}}")  # fmt: skip
    return card


def build_training_network(recipe: Recipe, card: DetectorCard) -> nn.Module:
    """Build the network with its initial weights, on the CPU and in training mode.

    Parameters that learn have `requires_grad`. Random values come from `recipe.loop.seed` and are
    equal in every process.

    Raises:
        ConfigError: The recipe does not fit the network.
        DetectorError: Weights are missing or do not fit.
    """
    with seeded(recipe.loop.seed):
        network = _build(recipe, card)
        _load_initial_weights(network, recipe, card)
        return _prepare_to_learn(network, recipe, card)


def build_untrained_network(recipe: Recipe, card: DetectorCard) -> nn.Module:
    """Build the network that a recipe trains, with random weights.

    A checkpoint can be loaded into it. The recipe's initial weights are not read.
    """
    with seeded(recipe.loop.seed):
        return _prepare_to_learn(_build(recipe, card), recipe, card)


def make_deployable(network: nn.Module, card: DetectorCard) -> nn.Module:
    """Return the trained network in the form that scoring uses, in evaluation mode.

    The result has the modules that `build_network(card)` builds. LoRA adapters are added to the
    weights. Batch norms of a network `residual.ResidualNet` are folded into its convolutions. The
    given network does not change.

    Raises:
        DetectorError: The network does not fit the card.
    """
    # Folding switches the norms to evaluation mode. A copy keeps the network able to learn further.
    plain = (
        copy.deepcopy(network).without_norms()
        if isinstance(network, residual.ResidualNet)
        else network
    )
    result = build_network(card)
    load_strictly(result, merge_adapters(plain), where=f"{card.name}: trained weights")
    return result


class NetworkOutput(NamedTuple):
    """The outputs of a network for a batch of N images, from which the loss is computed.

    Attributes:
        logits: (N, 1) or (N, 2), one column per output of the network.
        mask_logits: (N, S, S), logits of altered pixels. None if the network predicts no masks.
    """

    logits: torch.Tensor
    mask_logits: torch.Tensor | None = None

    def log_odds(self, output: Output) -> torch.Tensor:
        """Compute the log-odds of fake.

        Args:
            output: The section of the detector's card that defines the meaning of the logits.

        Returns:
            (N,) log-odds as float32.
        """
        logits = self.logits.float()
        if output.sign is not None:
            return logits[:, 0] * output.sign
        fake = output.index_among(output.labels)
        return logits[:, fake] - logits[:, 1 - fake]


class TrainingModule(nn.Module):
    """Wraps a detector's network so that a call returns a `NetworkOutput`.

    The input is a batch of normalised pixels (N, 3, H, W). The wrapper is an `nn.Module` because
    DDP and FSDP act only when `forward` is called.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: torch.Tensor) -> NetworkOutput:
        """Compute the logits of a batch of normalised pixels (N, 3, H, W)."""
        return (
            NetworkOutput(*self.network.logits(pixels))
            if isinstance(self.network, maskclip.MaskClip)
            else NetworkOutput(self.network(pixels))
        )


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's global generator inside the block, and restore its state afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _build(recipe: Recipe, card: DetectorCard) -> nn.Module:
    network = build_network(card)
    if isinstance(network, residual.ResidualNet) and recipe.initial.start == "random":
        # Published weights have folded norms, so only a network of random weights can learn with
        # norms.
        return residual.ResidualNet(network.widths, norms=True)
    return network


def _prepare_to_learn(network: nn.Module, recipe: Recipe, card: DetectorCard) -> nn.Module:
    """Return the network in training mode, with its adapters, and set `requires_grad`."""
    network.requires_grad_(True).train()
    if recipe.lora is not None and card.backbone is not None:
        raise ConfigError(
            f"{recipe.name}: lora: the backbone {card.backbone.name} cannot learn, because other detectors share its weights file",
            hint="remove `lora` from the recipe",
        )
    if recipe.lora is not None:
        add_adapters(network, recipe.lora)
    elif isinstance(network, maskclip.MaskClip):
        maskclip.trainable_parameters(network)
    elif card.family in HEADS:
        network.get_submodule("backbone").requires_grad_(False)
    # SigLIP's pooling head is in the checkpoint, but its output is not used. DDP would fail,
    # because no gradient reaches it.
    vision = getattr(network, "vision_model", None)
    if getattr(vision, "use_head", True) is False and isinstance(
        head := getattr(vision, "head", None), nn.Module
    ):
        head.requires_grad_(False)
    return network


def _load_initial_weights(network: nn.Module, recipe: Recipe, card: DetectorCard) -> None:
    """Load the weights of the card, or of files by part. Fresh tensors keep their values."""
    initial = recipe.initial
    if initial.start == "card":
        _load(network, load_network(card).state_dict(), initial.fresh, where=card.name)
    elif initial.start == "pretrained" and isinstance(network, maskclip.MaskClip):
        missing = {"mae", "clip"} - set(initial.weights)
        if missing:
            raise ConfigError(
                f"{recipe.name}: initial.weights: MaskCLIP needs files for its parts mae and clip, but lacks {', '.join(sorted(missing))}",
                hint="name both files: initial.weights: {mae: {uri: FILE}, clip: {uri: FILE}}",
            )
        maskclip.initialise(network, *(_read_part(recipe, card, part) for part in ("mae", "clip")))
    elif initial.start == "pretrained":
        for part in initial.weights:
            target, prefix = (
                (network, "")
                if part == WHOLE_NETWORK
                else (_get_submodule(network, recipe, part), f"{part}.")
            )
            # Published files may use older names than the library does today.
            state = rename_keys(
                card,
                {prefix + key: tensor for key, tensor in _read_part(recipe, card, part).items()},
                network,
            )
            part_state = {key.removeprefix(prefix): tensor for key, tensor in state.items()}
            _load(target, part_state, initial.fresh, where=f"{recipe.name}: initial.weights.{part}")


def _load(network: nn.Module, state: State, fresh: tuple[str, ...], where: str) -> None:
    """Load all tensors but the fresh ones, which keep their values and shapes."""
    fresh_state = {
        key: tensor for key, tensor in network.state_dict().items() if key.startswith(fresh)
    }
    loaded_state = {key: tensor for key, tensor in state.items() if not key.startswith(fresh)}
    load_strictly(network, fresh_state | loaded_state, where=where)


def _read_part(recipe: Recipe, card: DetectorCard, part: str) -> State:
    weights: Weights = recipe.initial.weights[part]
    try:
        return read_state_dict(
            resolve_part(WeightSet(f"{recipe.name}-{part}", weights, card.folder, recipe.name)),
            weights,
        )
    except DetectorError as error:
        hint = weights.obtain or "set another uri in initial.weights, or put the file at that path"
        raise DetectorError(f"initial.weights.{part}: {error.message}", hint=hint) from None


def _get_submodule(network: nn.Module, recipe: Recipe, part: str) -> nn.Module:
    try:
        return network.get_submodule(part)
    except AttributeError:
        parts = ", ".join([WHOLE_NETWORK, *(name for name, _ in network.named_children())])
        raise ConfigError(
            f"{recipe.name}: initial.weights: the network has no part {part!r}",
            hint=f"use one of {parts}",
        ) from None


def add_adapters(network: nn.Module, lora: LoraSettings) -> None:
    """Add LoRA adapters to a network in place, so that few parameters learn.

    Every module whose name ends in one of `lora.targets` gets an adapter. Only the adapters and the
    modules that `lora.whole` names learn. New adapters do not change the output.

    Raises:
        ConfigError: No module has such a name, or peft is not installed.
    """
    try:
        import peft
    except ImportError:
        raise ConfigError(
            "adapters need peft, which is not installed",
            hint="run pip install 'touchstone-forensics[lora]'",
        ) from None
    whole_modules = [
        module for name, module in network.named_modules() if _has_suffix(name, lora.whole)
    ]
    alpha: Any = lora.alpha  # peft's annotation is int, but any number works.
    config = peft.LoraConfig(
        r=lora.rank, lora_alpha=alpha, lora_dropout=lora.dropout, target_modules=list(lora.targets)
    )
    try:
        peft.inject_adapter_in_model(config, network, adapter_name=_ADAPTER)
    except ValueError as error:  # No module has that name, or peft cannot adapt its type.
        raise ConfigError(
            f"lora.targets: {error}",
            hint="set targets to the ends of names of linear or convolutional modules",
        ) from None
    if lora.whole and not whole_modules:
        raise ConfigError(
            f"lora.whole: no module name of the network ends in {' or '.join(lora.whole)}",
            hint="set lora.whole to the ends of names of modules, or remove it",
        )
    for module in whole_modules:
        module.requires_grad_(True)


def merge_adapters(network: nn.Module) -> dict[str, torch.Tensor]:
    """Return the state dict of an equivalent network without adapters.

    The product of the two matrices of each LoRA adapter is added to the weight that it adapts. The
    network itself does not change. Without adapters, the result equals `network.state_dict()`.
    """
    adapted = {
        name: module
        for name, module in network.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    state = {key: tensor for key, tensor in network.state_dict().items() if ".lora_" not in key}
    for name, module in adapted.items():
        keys = [key for key in state if key.startswith(f"{name}.base_layer.")]
        state |= {key.replace(".base_layer.", "."): state.pop(key) for key in keys}
        adapter: Any = module
        state[f"{name}.weight"] = (
            state[f"{name}.weight"] + adapter.get_delta_weight(_ADAPTER).detach()
        )
    return state


def _has_suffix(name: str, suffixes: tuple[str, ...]) -> bool:
    return any(name == suffix or name.endswith(f".{suffix}") for suffix in suffixes)
