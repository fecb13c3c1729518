"""Low-rank adapters (LoRA, arXiv 2106.09685) by peft: put into a network, and added to its weights when it is exported.

Knows modules and peft. Knows nothing about cards or training.
"""

from typing import Any

import torch
from torch import nn

from ray_app.errors import ConfigError
from ray_app.learning.config import Lora

_ADAPTER = "default"  # peft's name for the only one


def add_adapters(network: nn.Module, lora: Lora) -> None:
    """Put an adapter beside every module whose name ends in one of `targets`, in place; they and the `whole` modules learn, nothing else.

    Adapters change nothing until they have learned. Raises ConfigError for names that no module has, and where peft is not installed.
    """
    try:
        import peft
    except ImportError:
        raise ConfigError("adapters need peft, which is not installed", hint="pip install 'touchstone[lora]'") from None
    whole = [module for name, module in network.named_modules() if _ends(name, lora.whole)]
    alpha: Any = lora.alpha  # peft divides it by the rank; it says int and means a number
    config = peft.LoraConfig(r=lora.rank, lora_alpha=alpha, lora_dropout=lora.dropout, target_modules=list(lora.targets))
    try:
        peft.inject_adapter_in_model(config, network, adapter_name=_ADAPTER)
    except ValueError as error:  # no module of that name, or one of a kind that peft cannot adapt
        raise ConfigError(f"lora.targets: {error}", hint="`targets` are the ends of names of linear or convolutional modules") from None
    if lora.whole and not whole:
        raise ConfigError(f"lora.whole: no module is called {', '.join(lora.whole)}")
    for module in whole:
        module.requires_grad_(True)


def merged_state(network: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict of the network without adapters that computes the same: their products added to the weights. Changes nothing.

    Equal to `network.state_dict()` where there are no adapters.
    """
    adapted = {name: module for name, module in network.named_modules() if hasattr(module, "get_delta_weight")}
    state = {key: tensor for key, tensor in network.state_dict().items() if ".lora_" not in key}
    for name, module in adapted.items():
        own = [key for key in state if key.startswith(f"{name}.base_layer.")]
        state |= {key.replace(".base_layer.", "."): state.pop(key) for key in own}
        adapter: Any = module
        state[f"{name}.weight"] = state[f"{name}.weight"] + adapter.get_delta_weight(_ADAPTER).detach()
    return state


def _ends(name: str, ends: tuple[str, ...]) -> bool:
    return any(name == end or name.endswith(f".{end}") for end in ends)
