"""The tier `captioner`: transformers' GIT, BLIP or a VisionEncoderDecoder captions pixels.

`architecture` of the card has `model`, one of MODELS, and its `config`.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ray_app.attribution.captioners.networks import SLOTS, PixelDescriber, load_body, read_weights
from ray_app.attribution.captioners.tokenizer import words_of_card
from ray_app.attribution.cards import DescriberCard
from ray_app.detectors.weights import resolve_part
from ray_app.errors import DetectorError


class CaptionNet(nn.Module):
    """A transformers captioner: normalised pixels (n, 3, H, W) and words in, logits of words out."""

    def __init__(self, model: Any, kind: str) -> None:
        super().__init__()
        self.model, self.kind = model, kind

    @property
    def body(self) -> nn.Module:
        """The published network, whose names files use."""
        body: nn.Module = self.model
        return body

    def forward(self, given: torch.Tensor, spoken: torch.Tensor) -> torch.Tensor:
        """Logits (n, L, V) of the token after each of `spoken` (n, L)."""
        name = "decoder_input_ids" if self.kind == "vision-encoder-decoder" else "input_ids"
        logits: torch.Tensor = self.model(pixel_values=given, **{name: spoken}).logits
        return logits[:, -spoken.shape[1] :]  # GIT's logits begin with those of the image

    def asked(self, given: torch.Tensor) -> tuple[Any, dict[str, torch.Tensor]]:
        """The model and the pixels."""
        return self.model, {"pixel_values": given}


def build_captioner(name: str, architecture: Mapping[str, Any]) -> CaptionNet:
    """The network that an `architecture` says, in evaluation mode, with values from torch's generator. Raises DetectorError."""
    kind = str(architecture.get("model"))
    if kind not in MODELS:
        raise DetectorError(f"{name}: architecture.model {kind}: there are {', '.join(MODELS)}")
    try:
        return CaptionNet(MODELS[kind](architecture.get("config", {})), kind).eval()
    except Exception as error:  # transformers' validators raise a tree of their own
        raise DetectorError(f"{name}: transformers cannot build {kind}: {error}") from None


def _git(config: Mapping[str, Any]) -> Any:
    from transformers import GitConfig, GitForCausalLM

    return GitForCausalLM(GitConfig(**_known(config, GitConfig())))


def _blip(config: Mapping[str, Any]) -> Any:
    from transformers import BlipConfig, BlipForConditionalGeneration

    return BlipForConditionalGeneration(BlipConfig(**_known(config, BlipConfig())))


def _encoder_decoder(config: Mapping[str, Any]) -> Any:
    from transformers import AutoConfig, VisionEncoderDecoderConfig, VisionEncoderDecoderModel

    parts = (AutoConfig.for_model(**config[name]) for name in ("encoder", "decoder"))
    both = VisionEncoderDecoderConfig.from_encoder_decoder_configs(*parts)
    both.decoder_start_token_id, both.pad_token_id = both.decoder.bos_token_id, both.decoder.pad_token_id
    return VisionEncoderDecoderModel(config=both)


def _known(config: Mapping[str, Any], default: Any) -> Mapping[str, Any]:
    # transformers keeps a misspelt key as an attribute and builds the default network without a word.
    if unknown := [key for key in config if key not in default.to_dict()]:
        raise ValueError(f"unknown keys {', '.join(unknown)}")
    return config


MODELS: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {"git": _git, "blip": _blip, "vision-encoder-decoder": _encoder_decoder}


class Captioner(PixelDescriber):
    """A describer of the tier `captioner`. Raises DetectorError where its files are missing or do not fit."""

    def __init__(self, card: DescriberCard, device: str = "cpu", cache_dir: Path | None = None, offline: bool | None = None) -> None:
        path = resolve_part(card.parts[0], cache_dir, offline)
        network = build_captioner(card.name, card.architecture)
        load_body(network, read_weights(card, path), f"{card.name}: {path}")
        network.eval().requires_grad_(False).to(device)
        super().__init__(card, network, words_of_card(card, path, cache_dir, offline), device, SLOTS)
