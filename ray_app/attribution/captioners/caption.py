"""The tier `captioner`: transformers' GIT, BLIP or a VisionEncoderDecoder captions pixels.

`architecture` of the card has `model`, one of MODELS, and its `config`.

The tier `dialogue`: a vision-language model is asked for the words; transformers' own classes, no code from a hub.

One question about one image is put into tokens as the `internvl` detector does. `architecture` of the card has `model` (a model type of
transformers, such as internvl or llava), its `config`, `template` with the places {image} and {question}, `image` ([before, token, after]),
`image_tokens` (how often the token stands for one image) and `tokens` ({begin, end, pad}).
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ray_app.attribution.captioners import networks, tokenizer
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


class Captioner(networks.PixelDescriber):
    """A describer of the tier `captioner`. Raises DetectorError where its files are missing or do not fit."""

    def __init__(self, card: DescriberCard, device: str = "cpu", cache_dir: Path | None = None, offline: bool | None = None) -> None:
        path = resolve_part(card.parts[0], cache_dir, offline)
        network = build_captioner(card.name, card.architecture)
        networks.load_body(network, networks.read_weights(card, path), f"{card.name}: {path}")
        network.eval().requires_grad_(False).to(device)
        super().__init__(card, network, tokenizer.words_of_card(card, path, cache_dir, offline), device, networks.SLOTS)


DIALOGUE_SLOTS = 1  # of models so large, where the card says nothing
_NEEDED = ("model", "config", "template", "image", "image_tokens")


class DialogueNet(nn.Module):
    """A vision-language model with the one question that it is asked about every image."""

    def __init__(self, model: Any, prompt: Sequence[int]) -> None:
        super().__init__()
        self.model, self.prompt = model, list(prompt)

    @property
    def body(self) -> nn.Module:
        """The model."""
        body: nn.Module = self.model
        return body

    def forward(self, given: torch.Tensor, spoken: torch.Tensor) -> torch.Tensor:
        """Logits (n, L, V) of the token after each of `spoken` (n, L), whose first, the begin, is not seen: the question precedes it."""
        _, asked = self.asked(given)
        ids = torch.cat([asked["input_ids"], spoken[:, 1:]], dim=1)
        logits: torch.Tensor = self.model(pixel_values=asked["pixel_values"], input_ids=ids).logits
        return logits[:, -spoken.shape[1] :]

    def asked(self, given: torch.Tensor) -> tuple[Any, dict[str, torch.Tensor]]:
        """The model, the pixels and the question."""
        ids = torch.tensor(self.prompt, device=given.device).expand(len(given), -1)
        return self.model, {"pixel_values": given.to(self.model.dtype), "input_ids": ids, "attention_mask": torch.ones_like(ids)}


def build_dialogue(name: str, architecture: Mapping[str, Any]) -> Any:
    """The transformers model that an `architecture` says, without values. Raises DetectorError."""
    from transformers import AutoConfig, AutoModelForImageTextToText
    from transformers.initialization import no_init_weights

    if missing := [key for key in _NEEDED if key not in architecture]:
        raise DetectorError(f"{name}: architecture lacks {', '.join(missing)}")
    try:
        config = AutoConfig.for_model(architecture["model"], **architecture["config"])
        with no_init_weights():
            return AutoModelForImageTextToText.from_config(config).eval()  # type: ignore[no-untyped-call]
    except Exception as error:  # transformers' validators raise a tree of their own
        raise DetectorError(f"{name}: transformers cannot build {architecture['model']}: {error}") from None


def question_tokens(card: DescriberCard, words: tokenizer.CaptionTokenizer) -> list[int]:
    """The card's question in the model's template, with the tokens of one image in it. Raises DetectorError where they do not fit."""
    architecture = card.architecture
    before, token, after = architecture["image"]
    count, template = architecture["image_tokens"], architecture["template"]
    text = template.replace("{image}", f"{before}{token * count}{after}").replace("{question}", card.question)
    ids: list[int] = words.tokenizer.encode(text, add_special_tokens=False).ids
    number = words.tokenizer.token_to_id(token)
    if number is None or ids.count(number) != count:
        raise DetectorError(f"{card.name}: {token} is not one token of its tokenizer, or not {count} times in the template")
    return ids


def published_state(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A hub checkpoint's tensors under today's names: those of transformers 4.51 are renamed (see `detectors.families.internvl`)."""
    from ray_app.detectors.families.internvl import published_keys

    return {key.removeprefix("chat."): tensor for key, tensor in published_keys(state, nn.Identity()).items()}


class DialogueDescriber(networks.PixelDescriber):
    """A describer of the tier `dialogue`, in bf16 on a GPU. Raises DetectorError where its files are missing or do not fit."""

    def __init__(self, card: DescriberCard, device: str = "cpu", cache_dir: Path | None = None, offline: bool | None = None) -> None:
        path = resolve_part(card.parts[0], cache_dir, offline)
        words = tokenizer.words_of_card(card, path, cache_dir, offline)
        network = DialogueNet(build_dialogue(card.name, card.architecture), question_tokens(card, words))
        networks.load_body(network, published_state(networks.read_weights(card, path)), f"{card.name}: {path}")
        network.eval().requires_grad_(False).to(device, torch.bfloat16 if card.precision_on(device) == "bf16" else torch.float32)
        super().__init__(card, network, words, device, DIALOGUE_SLOTS)
