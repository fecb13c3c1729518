"""Predict the prompts from which images were generated, with a network (`NetworkDescriber`).

A describer predicts prompts. `build_describer` loads the describer of a card: one with a network,
or an index of prompts (`Retrieval`).

There are two kinds of networks. A `PrefixNetwork` turns an embedding into a few tokens that GPT-2
continues (ClipCap: Mokady, Hertz, Bermano 2021, arXiv 2111.09734, its mapping by an MLP). A
`CaptionNetwork` is a model of the library transformers that reads pixels: GIT, BLIP, an
encoder-decoder, or a vision-language model that gets a question. No code is downloaded from a hub.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ray_app.detectors.checkpoints import load_strictly, read_state_dict
from ray_app.detectors.detector import Normalise
from ray_app.detectors.precision import forbid_tf32
from ray_app.detectors.weights import resolve_part
from ray_app.errors import DetectorError
from ray_app.identification.captions import (
    Caption,
    Describer,
    Retrieval,
    describe_embeddings,
    describe_in_batches,
)
from ray_app.identification.cards import DescriberCard
from ray_app.identification.tokenizer import CaptionTokenizer, read_tokenizer

BATCH, DIALOGUE_BATCH = 8, 1
"""Images per batch if the card has no `batch`, without and with a dialogue."""
_DIALOGUE_KEYS = ("model", "config", "template", "image", "image_tokens")
# Unused buffers in files of earlier versions of transformers.
_BUFFERS = (
    "position_ids",
    ".attn.bias",
    ".attn.masked_bias",
    ".crossattention.bias",
    ".crossattention.masked_bias",
)


def build_describer(card: DescriberCard, *, device: str = "cpu") -> Describer:
    """Load a describer, which predicts prompts of images, onto a device with its weights.

    Args:
        card: The describer card.
        device: Device, such as "cpu" or "cuda:0".

    Raises:
        DetectorError: If the card's files are missing or do not fit.
    """
    if card.tier == "retrieval":
        return Retrieval(card)
    if device.startswith("cuda"):
        forbid_tf32()  # Otherwise its captions would depend on which detectors share its process.
    return NetworkDescriber(card, device)


class NetworkDescriber:
    """Predict the prompts of images with the network of a describer card.

    A vision-language model (the card's tier `dialogue`) runs in bf16 on a GPU. All other networks
    run in fp32. All batches are padded to the same number of rows, so the predicted prompt of an
    image never depends on the other images of its batch.

    Args:
        card: The describer card.
        device: Device, such as "cpu" or "cuda:0".

    Raises:
        DetectorError: If the card's files are missing or do not fit.
    """

    def __init__(self, card: DescriberCard, device: str = "cpu") -> None:
        self.card, self._device = card, device
        path = resolve_part(card.parts[0])
        self._tokenizer = read_tokenizer(card, path)
        self._network = build_network(card, self._tokenizer)
        load_body(self._network, read_state_dict(path, card.weights), f"{card.name}: {path}")
        self._network.eval().requires_grad_(False).to(
            device, torch.bfloat16 if card.precision_on(device) == "bf16" else torch.float32
        )
        self._batch = card.batch or (DIALOGUE_BATCH if card.tier == "dialogue" else BATCH)
        self._normalise = (
            None if card.preprocessing is None else Normalise(card.preprocessing).to(device)
        )

    def describe(self, images: npt.NDArray[Any]) -> Sequence[Caption]:
        """Predict the prompt of each image. See `Describer.describe`.

        Raises DetectorError if the shape of `images` does not fit the network.
        """
        if isinstance(self._network, PrefixNetwork):
            return describe_embeddings(
                self.card, images, self._network.width, self._batch, self._describe_batch
            )
        if images.ndim != 4 or images.shape[3] != 3:
            raise DetectorError(
                f"{self.card.name}: pixels must have the shape (n, H, W, 3), got {images.shape}"
            )
        return describe_in_batches(images, self._batch, self._describe_batch)

    def _describe_batch(self, images: npt.NDArray[Any]) -> Sequence[Caption]:
        """Find the most likely text of each image with beam search, without repeated n-grams.

        The likelihood is the mean log-probability of the tokens, including the end token, before
        the search forbids repetitions. The likelihood is None if a log-probability is not finite.
        """
        from transformers import GenerationConfig

        card, tokens = self.card, self._tokenizer
        inputs = torch.from_numpy(images).to(self._device)
        if self._normalise is not None:
            inputs = self._normalise(inputs).contiguous()
        model, arguments = self._network.generation_inputs(inputs)
        config = GenerationConfig(  # type: ignore[no-untyped-call]
            do_sample=False, num_beams=card.beams, no_repeat_ngram_size=card.no_repeat, max_new_tokens=card.most_tokens,
            bos_token_id=tokens.begin, decoder_start_token_id=tokens.begin, eos_token_id=tokens.end, pad_token_id=tokens.pad,
            return_dict_in_generate=True, output_logits=True,
        )  # fmt: skip
        with torch.inference_mode(), warnings.catch_warnings():
            # A prefix has no tokens to repeat.
            warnings.filterwarnings("ignore", message="Passing `no_repeat_ngram_size`")
            output = model.generate(**arguments, generation_config=config)
            scores = model.compute_transition_scores(
                output.sequences,
                output.logits,
                getattr(output, "beam_indices", None),
                normalize_logits=True,
            )
        captions = []
        sequences = output.sequences[:, -scores.shape[1] :].tolist()
        for ids, log_probabilities in zip(sequences, scores.float().tolist(), strict=True):
            length = ids.index(tokens.end) + 1 if tokens.end in ids else len(ids)
            mean = float(np.mean(log_probabilities[:length]))
            likelihood = min(mean, 0.0) if np.isfinite(mean) else None
            captions.append(Caption(tokens.decode(ids), likelihood))
        return captions


class PrefixNetwork(nn.Module):
    """Predict a prompt from an embedding: an MLP maps it to tokens, which GPT-2 continues.

    The MLP maps the embedding, scaled to unit length, to k token vectors of H numbers. It has two
    linear layers, with H·k/2 and H·k outputs, and tanh between them.

    Args:
        width: Length of an embedding.
        prefix: Number k of tokens per embedding.
        config: Keys of transformers' GPT2Config.
    """

    def __init__(self, width: int, prefix: int, config: Mapping[str, Any]) -> None:
        from transformers import GPT2Config, GPT2LMHeadModel

        super().__init__()
        self.lm: Any = GPT2LMHeadModel(
            GPT2Config(**{"bos_token_id": 0, "eos_token_id": 0, **config})
        )
        hidden = self.lm.config.n_embd
        self.prefix, self.width = prefix, width
        self.mapper = nn.Sequential(
            nn.Linear(width, hidden * prefix // 2),
            nn.Tanh(),
            nn.Linear(hidden * prefix // 2, hidden * prefix),
        )

    def forward(self, embeddings: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Return the logits of the next token after each token of n prompts, for training.

        Args:
            embeddings: Embeddings of the images (n, width).
            tokens: Token ids of their prompts (n, L). The prefix from the embedding replaces the
                first token, which is the begin token.

        Returns:
            Logits (n, L, V) over the vocabulary of V tokens.
        """
        text = self.lm.get_input_embeddings()(tokens[:, 1:])
        inputs = torch.cat([self._prefixes(embeddings), text], dim=1)
        logits: torch.Tensor = self.lm(inputs_embeds=inputs).logits[:, self.prefix - 1 :]
        return logits

    def generation_inputs(self, embeddings: torch.Tensor) -> tuple[Any, dict[str, torch.Tensor]]:
        """Return the model to generate prompts with, and the inputs for its method `generate`.

        `embeddings` (n, width) are those of the images.
        """
        prefixes = self._prefixes(embeddings)
        mask = torch.ones(prefixes.shape[:2], dtype=torch.long, device=prefixes.device)
        return self.lm, {"inputs_embeds": prefixes, "attention_mask": mask}

    def _prefixes(self, embeddings: torch.Tensor) -> torch.Tensor:
        mapped: torch.Tensor = self.mapper(nn.functional.normalize(embeddings.float(), dim=1))
        return mapped.view(len(embeddings), self.prefix, -1)


class CaptionNetwork(nn.Module):
    """Predict a prompt from normalised pixels (n, 3, H, W), with a model of transformers.

    Args:
        model: An image-text-to-text model.
        question: Token ids of the question, including the tokens of an image. They precede each
            text. Empty for a model that captions without a question.
    """

    def __init__(self, model: Any, question: Sequence[int] = ()) -> None:
        super().__init__()
        self.model, self.question = model, list(question)

    def forward(self, pixels: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Return the logits of the next token after each token of n prompts, for training.

        Args:
            pixels: Normalised pixels of the images (n, 3, H, W).
            tokens: Token ids of their prompts (n, L).

        Returns:
            Logits (n, L, V) over the vocabulary of V tokens.
        """
        name = "decoder_input_ids" if self.model.config.is_encoder_decoder else "input_ids"
        logits: torch.Tensor = self.model(pixel_values=pixels, **{name: tokens}).logits
        return logits[:, -tokens.shape[1] :]  # The logits of GIT begin with those of the image.

    def generation_inputs(self, pixels: torch.Tensor) -> tuple[Any, dict[str, torch.Tensor]]:
        """Return the model to generate prompts with, and the inputs for its method `generate`.

        `pixels` (n, 3, H, W) are the normalised pixels of the images.
        """
        inputs = {"pixel_values": pixels.to(self.model.dtype)}
        if self.question:
            ids = torch.tensor(self.question, device=pixels.device).expand(len(pixels), -1)
            inputs |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        return self.model, inputs


Network = PrefixNetwork | CaptionNetwork


def build_network(card: DescriberCard, tokenizer: CaptionTokenizer) -> Network:
    """Build the network of a describer card, without its weights.

    Raises DetectorError if the card's `architecture` does not describe a network.
    """
    if card.tier == "prefix":
        return build_prefix(card.name, card.architecture, card.prefix)
    if card.tier == "captioner":
        return build_captioner(card.name, card.architecture)
    from ray_app.detectors.families.transformers import skip_initial_values

    _require_keys(card.name, card.architecture, _DIALOGUE_KEYS)
    with skip_initial_values():  # Billions of random numbers would take minutes.
        model = _build_model(card.name, _build_config(card.name, card.architecture))
    return CaptionNetwork(model, question_tokens(card, tokenizer))


def build_prefix(name: str, architecture: Mapping[str, Any], prefix: int) -> PrefixNetwork:
    """Build the network for a describer card of the tier `prefix`: GPT-2 that reads an embedding.

    Args:
        name: Name of the describer card, for errors.
        architecture: The `width` of an embedding, and GPT-2's `config`.
        prefix: Number of tokens per embedding.

    Raises:
        DetectorError: If a key is missing, or if `config` has an unknown key.
    """
    from transformers import GPT2Config

    _require_keys(name, architecture, ("width", "config"))
    _require_known(name, architecture["config"], GPT2Config())
    return PrefixNetwork(architecture["width"], prefix, architecture["config"])


def build_captioner(name: str, architecture: Mapping[str, Any]) -> CaptionNetwork:
    """Build the network for a describer card of the tier `captioner`, which reads pixels.

    Args:
        name: Name of the describer card, for errors.
        architecture: The `model` type of transformers, such as "git", and its `config`.

    Returns:
        The network in evaluation mode, without trained weights.

    Raises:
        DetectorError: If `model` is missing, if transformers cannot build it, or if `config` has an
            unknown key.
    """
    _require_keys(name, architecture, ("model",))
    config = _build_config(name, architecture)
    if architecture["model"] != "vision-encoder-decoder":  # It has no default configuration.
        _require_known(name, architecture.get("config", {}), type(config)())
    return CaptionNetwork(_build_model(name, config))


def _build_config(name: str, architecture: Mapping[str, Any]) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.for_model(architecture["model"], **architecture.get("config", {}))
    except Exception as error:  # The validators of transformers raise exceptions of their own.
        raise DetectorError(
            f"{name}: transformers cannot build {architecture['model']}: {error}",
            hint="correct `model` and `config` in the section `architecture`",
        ) from None


def _build_model(name: str, config: Any) -> Any:
    from transformers import AutoModelForImageTextToText

    try:
        return AutoModelForImageTextToText.from_config(config).eval()  # type: ignore[no-untyped-call]
    except Exception as error:
        raise DetectorError(
            f"{name}: transformers cannot build {config.model_type}: {error}",
            hint="correct `model` and `config` in the section `architecture`",
        ) from None


def _require_keys(name: str, architecture: Mapping[str, Any], keys: Sequence[str]) -> None:
    if missing := [key for key in keys if key not in architecture]:
        raise DetectorError(
            f"{name}: architecture: keys are missing: {', '.join(missing)}",
            hint="add these keys to the section `architecture`",
        )


def _require_known(name: str, config: Mapping[str, Any], default: Any) -> None:
    # transformers stores a misspelt key as an attribute and builds the default network without a
    # warning.
    if unknown := [key for key in config if key not in default.to_dict()]:
        raise DetectorError(
            f"{name}: architecture.config: unknown keys {', '.join(unknown)} for {type(default).__name__}",
            hint="correct the spelling of these keys, or remove them",
        )


def question_tokens(card: DescriberCard, tokenizer: CaptionTokenizer) -> list[int]:
    """Tokenize the question that a vision-language model gets about each image.

    The question is put into the chat template of the model.

    Args:
        card: A describer card of the tier `dialogue`.
        tokenizer: Its tokenizer.

    Returns:
        Token ids. They include the tokens in place of the image.

    Raises:
        DetectorError: If the template and the tokenizer do not fit together.
    """
    from ray_app.detectors.families.internvl import expand_template

    architecture = card.architecture
    token, count = architecture["image"][1], architecture["image_tokens"]
    text = expand_template(architecture["template"], architecture["image"], count, card.question)
    ids: list[int] = tokenizer.tokenizer.encode(text, add_special_tokens=False).ids
    token_id = tokenizer.tokenizer.token_to_id(token)
    occurrences = 0 if token_id is None else ids.count(token_id)
    if token_id is None or occurrences != count:
        raise DetectorError(
            f"{card.name}: {token} must be a single token, and occur {count} times in the tokens of the question, got {occurrences}",
            hint="correct `image`, `image_tokens`, or `template` in the section `architecture` of the card",
        )
    return ids


def load_body(network: nn.Module, state: Mapping[str, torch.Tensor], source: str) -> None:
    """Load weights into the network of a describer if all keys and shapes fit.

    If the network shares a tensor between layers (tied weights), `state` may have it only once.

    Args:
        network: A network of this module.
        state: Weights from a file, possibly with names of earlier versions of transformers.
        source: Name of the file, for errors.

    Raises:
        DetectorError: If a key or shape does not fit.
    """
    from transformers import PreTrainedModel

    from ray_app.detectors.families.transformers import published_keys

    body = _body(network)
    body_tensors = body.state_dict()
    tensors = published_keys(state, body) if isinstance(body, PreTrainedModel) else dict(state)
    tensors = {
        key: tensor
        for key, tensor in tensors.items()
        if key in body_tensors or not key.endswith(_BUFFERS)
    }
    by_memory = {
        body_tensors[key].data_ptr(): tensor
        for key, tensor in tensors.items()
        if key in body_tensors
    }
    tied = {
        key: by_memory[tensor.data_ptr()]
        for key, tensor in body_tensors.items()
        if key not in tensors and tensor.data_ptr() in by_memory
    }
    load_strictly(body, tensors | tied, source)


def body_state(network: nn.Module) -> dict[str, torch.Tensor]:
    """Return the weights of a describer's network for saving, by key.

    Each tensor is contiguous and on the CPU. A tensor that layers share is included only once.
    """
    by_memory: dict[int, tuple[str, torch.Tensor]] = {}
    for key, tensor in _body(network).state_dict().items():
        by_memory.setdefault(tensor.data_ptr(), (key, tensor))
    return {key: tensor.detach().to("cpu").contiguous() for key, tensor in by_memory.values()}


def _body(network: nn.Module) -> nn.Module:
    """Return the part of a network that files contain: the published model, or all of it."""
    body: nn.Module = getattr(network, "model", network)
    return body
