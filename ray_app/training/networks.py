"""From a recipe to the network that learns (`network_for`), with LoRA adapters where wanted, and to
the one that a card describes (`deployable`). LoRA is arXiv 2106.09685, by peft; adapters are added
to the weights on export.
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
from ray_app.detectors.detector import build_network, load_network, own_keys
from ray_app.detectors.families import maskclip, residual
from ray_app.detectors.registry import HEADS
from ray_app.detectors.weights import WeightSet, resolve_part
from ray_app.errors import ConfigError, DetectorError
from ray_app.training.config import PROFILING, LoraSettings, Recipe

State = Mapping[str, torch.Tensor]
WHOLE = "network"  # the part of `initial.weights` that is no submodule
_ADAPTER = "default"  # peft's name for the only one


def training_card(recipe: Recipe) -> DetectorCard:
    """The card of what is trained: the recipe's detector with what its `card` changes. Raises
    ConfigError.

    Weights, figures and size on it are still those of the detector it is based on; exporting writes
    its own.
    """
    card = load_card(recipe.detector, recipe.card)
    if card.replies:
        raise ConfigError(
            f"{recipe.name}: {card.name} answers in words; there is no recipe that trains such a detector"
        )
    if card.preprocessing.shape is None and recipe.method not in PROFILING:
        raise ConfigError(f"{recipe.name}: {card.name} keeps the size of every image, and a batch has one size",
                          hint="card: {preprocessing: {center_crop: 224}}")  # fmt: skip
    return card


def network_for(recipe: Recipe, card: DetectorCard) -> nn.Module:
    """The network as training begins, on the CPU, in training mode; what learns has
    `requires_grad`. Raises ConfigError, DetectorError.

    What is drawn comes from `recipe.loop.seed`, the same in every process.
    """
    with seeded(recipe.loop.seed):
        network = _built(recipe, card)
        _start(network, recipe, card)
        return _made_to_learn(network, recipe, card)


def training_form(recipe: Recipe, card: DetectorCard) -> nn.Module:
    """The same network with whatever values it was built with: what a checkpoint's tensors are
    loaded into.
    """
    with seeded(recipe.loop.seed):
        return _made_to_learn(_built(recipe, card), recipe, card)


def deployable(network: nn.Module, card: DetectorCard) -> nn.Module:
    """What `build_network(card)` builds, in evaluation mode, with what the network has learned:
    norms folded, adapters merged.

    The learning network stays as it is. Raises DetectorError where it is not of this card.
    """
    # Folding switches the norms to evaluation: that must not happen to the network that learns
    # further.
    plain = (
        copy.deepcopy(network).without_norms()
        if isinstance(network, residual.ResidualNet)
        else network
    )
    deployed = build_network(card)
    load_strictly(deployed, merged_state(plain), where=f"{card.name}: what was trained")
    return deployed


class NetworkOutput(NamedTuple):
    """What a loss needs: `logits` (N, 1 or 2), and `mask_logits` (N, S, S) from a network that says
    where.
    """

    logits: torch.Tensor
    mask_logits: torch.Tensor | None = None

    def log_odds(self, output: Output) -> torch.Tensor:
        """(N,) float32 log-odds of fake, as the card reads the logits."""
        logits = self.logits.float()
        if output.sign is not None:
            return logits[:, 0] * output.sign
        fake = output.index_among(output.labels)
        return logits[:, fake] - logits[:, 1 - fake]


class Learning(nn.Module):
    """A network called as training calls it: (N, 3, H, W) normalised → `NetworkOutput`. One module:
    DDP and FSDP act on `forward`.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: torch.Tensor) -> NetworkOutput:
        """Answer a batch."""
        return (
            NetworkOutput(*self.network.logits(pixels))
            if isinstance(self.network, maskclip.MaskClip)
            else NetworkOutput(self.network(pixels))
        )


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """torch's own generator, which layers are built from, set for a while and then as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _built(recipe: Recipe, card: DetectorCard) -> nn.Module:
    network = build_network(card)
    if isinstance(network, residual.ResidualNet) and recipe.initial.start == "random":
        # Weights that exist were folded: only what begins anew can have norms to learn with.
        return residual.ResidualNet(network.widths, norms=True)
    return network


def _made_to_learn(network: nn.Module, recipe: Recipe, card: DetectorCard) -> nn.Module:
    """The same network in training mode, with its adapters; what learns has `requires_grad`."""
    network.requires_grad_(True).train()
    if recipe.lora is not None and card.backbone is not None:
        raise ConfigError(
            f"{recipe.name}: lora: {card.backbone.name} is a file of its own that other detectors use; it cannot learn"
        )
    if recipe.lora is not None:
        add_adapters(network, recipe.lora)
    elif isinstance(network, maskclip.MaskClip):
        maskclip.trainable_parameters(network)
    elif card.family in HEADS:
        network.get_submodule("backbone").requires_grad_(False)
    # SigLIP's pooling head is in the checkpoint and feeds nothing: no gradient ever reaches it,
    # which DDP takes for a fault.
    vision = getattr(network, "vision_model", None)
    if getattr(vision, "use_head", True) is False and isinstance(
        head := getattr(vision, "head", None), nn.Module
    ):
        head.requires_grad_(False)
    return network


def _start(network: nn.Module, recipe: Recipe, card: DetectorCard) -> None:
    """Initial weights in place: from the card, or from files by part; what is `fresh` keeps what it
    was built with.
    """
    initial = recipe.initial
    if initial.start == "card":
        _load(network, load_network(card).state_dict(), initial.fresh, where=card.name)
    elif initial.start == "pretrained" and isinstance(network, maskclip.MaskClip):
        missing = {"mae", "clip"} - set(initial.weights)
        if missing:
            raise ConfigError(
                f"{recipe.name}: initial.weights: MaskCLIP begins from mae and clip; missing: {', '.join(sorted(missing))}"
            )
        maskclip.initialise(network, *(_file(recipe, card, part) for part in ("mae", "clip")))
    elif initial.start == "pretrained":
        for part in initial.weights:
            target, prefix = (
                (network, "") if part == WHOLE else (_submodule(network, recipe, part), f"{part}.")
            )
            # As the library calls the tensors today: published files may be older.
            state = own_keys(
                card,
                {prefix + key: tensor for key, tensor in _file(recipe, card, part).items()},
                network,
            )
            own = {key.removeprefix(prefix): tensor for key, tensor in state.items()}
            _load(target, own, initial.fresh, where=f"{recipe.name}: initial.weights.{part}")


def _load(network: nn.Module, state: State, fresh: tuple[str, ...], where: str) -> None:
    """Load all but what is `fresh`, which keeps its values, whatever shape it has in the file."""
    kept = {key: tensor for key, tensor in network.state_dict().items() if key.startswith(fresh)}
    taken = {key: tensor for key, tensor in state.items() if not key.startswith(fresh)}
    load_strictly(network, kept | taken, where=where)


def _file(recipe: Recipe, card: DetectorCard, part: str) -> State:
    weights: Weights = recipe.initial.weights[part]
    try:
        return read_state_dict(
            resolve_part(WeightSet(f"{recipe.name}-{part}", weights, card.folder, recipe.name)),
            weights,
        )
    except DetectorError as error:
        hint = weights.obtain or "give initial.weights another uri, or put the file where it looks"
        raise DetectorError(f"initial.weights.{part}: {error.message}", hint=hint) from None


def _submodule(network: nn.Module, recipe: Recipe, part: str) -> nn.Module:
    try:
        return network.get_submodule(part)
    except AttributeError:
        known = ", ".join([WHOLE, *(name for name, _ in network.named_children())])
        raise ConfigError(
            f"{recipe.name}: initial.weights: the network has no part {part!r}",
            hint=f"parts: {known}",
        ) from None


def add_adapters(network: nn.Module, lora: LoraSettings) -> None:
    """Put an adapter beside every module whose name ends in one of `targets`, in place; they and
    the `whole` modules learn, nothing else.

    Adapters change nothing until they have learned. Raises ConfigError for names that no module
    has, and where peft is not installed.
    """
    try:
        import peft
    except ImportError:
        raise ConfigError(
            "adapters need peft, which is not installed",
            hint="pip install 'touchstone-forensics[lora]'",
        ) from None
    whole = [module for name, module in network.named_modules() if _ends(name, lora.whole)]
    alpha: Any = lora.alpha  # peft divides it by the rank; it says int and means a number
    config = peft.LoraConfig(
        r=lora.rank, lora_alpha=alpha, lora_dropout=lora.dropout, target_modules=list(lora.targets)
    )
    try:
        peft.inject_adapter_in_model(config, network, adapter_name=_ADAPTER)
    except ValueError as error:  # no module of that name, or one of a kind that peft cannot adapt
        raise ConfigError(
            f"lora.targets: {error}",
            hint="`targets` are the ends of names of linear or convolutional modules",
        ) from None
    if lora.whole and not whole:
        raise ConfigError(f"lora.whole: no module is called {', '.join(lora.whole)}")
    for module in whole:
        module.requires_grad_(True)


def merged_state(network: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict of the network without adapters that computes the same: their products added
    to the weights. Changes nothing.

    Equal to `network.state_dict()` where there are no adapters.
    """
    adapted = {
        name: module
        for name, module in network.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    state = {key: tensor for key, tensor in network.state_dict().items() if ".lora_" not in key}
    for name, module in adapted.items():
        own = [key for key in state if key.startswith(f"{name}.base_layer.")]
        state |= {key.replace(".base_layer.", "."): state.pop(key) for key in own}
        adapter: Any = module
        state[f"{name}.weight"] = (
            state[f"{name}.weight"] + adapter.get_delta_weight(_ADAPTER).detach()
        )
    return state


def _ends(name: str, ends: tuple[str, ...]) -> bool:
    return any(name == end or name.endswith(f".{end}") for end in ends)
