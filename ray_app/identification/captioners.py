"""Networks that predict prompts, and `load_describing`: from a describer's card to what describes
images (`captions.Describer`).

`PrefixNet`: an embedding becomes a few tokens, and GPT-2 goes on from them (ClipCap: Mokady, Hertz,
Bermano 2021, arXiv 2111.09734, its mapping by an MLP). `CaptionNet`: transformers' GIT, BLIP or a
VisionEncoderDecoder captions pixels; `architecture` of the card has `model`, one of MODELS, and its
`config`. `DialogueNet`: a vision-language model is asked one question about one image, put into
tokens as the `internvl` detector does; `architecture` has `model` (a model type of transformers,
such as internvl or llava), its `config`, `template` with the places {image} and {question}, `image`
([before, token, after]), `image_tokens` (how often the token stands for one image) and `tokens`
({begin, end, pad}). All are transformers' own classes, no code from a hub.

What a network says of one image never depends on its batch: batches always have the same number of
rows, filled up where fewer are left. Its tokenizer is from a file or from the header of its weights
(`words_of_card`), or trained on prompts (`train_words`).
"""

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import tokenizers
import torch
from torch import nn

from ray_app.detectors.checkpoint_formats import unreadable
from ray_app.detectors.detector import Normalise
from ray_app.detectors.precision import forbid_tf32
from ray_app.detectors.weights import load_strictly, read_state_dict, resolve_part
from ray_app.errors import DetectorError
from ray_app.identification.captions import Caption, Describer, Retrieval, in_batches, of_embeddings
from ray_app.identification.cards import DescriberCard

HEADER = "tokenizer"  # of the weights, in which those that were trained here keep theirs
# of a tokenizer that was trained here; texts also begin with the end
END, PAD = "<|end|>", "<|pad|>"
IGNORED = -100  # a target that no loss counts


@dataclass(frozen=True)
class CaptionTokenizer:
    """A tokenizer with the numbers of its marks: every text begins after `begin` and closes with
    `end`; `pad` fills up.
    """

    tokenizer: tokenizers.Tokenizer
    begin: int
    end: int
    pad: int

    def encoded(self, text: str, most: int) -> list[int]:
        """At most `most` numbers, the last of them `end`; a longer text is cut, and then has none."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return [*ids, self.end][:most]

    def targets(self, texts: Sequence[str], most: int) -> npt.NDArray[np.int32]:
        """(n, longest) the numbers of texts, IGNORED after their end."""
        rows = [self.encoded(text, most) for text in texts]
        table = np.full((len(rows), max(map(len, rows), default=1)), IGNORED, np.int32)
        for place, row in enumerate(rows):
            table[place, : len(row)] = row
        return table

    def text(self, ids: Iterable[int]) -> str:
        """The text up to its end, on one line."""
        kept: list[int] = []
        for number in ids:
            if number == self.end:
                break
            kept.append(number)
        return " ".join(str(self.tokenizer.decode(kept, skip_special_tokens=True)).split())


def train_words(prompts: Sequence[str], vocabulary: int) -> CaptionTokenizer:
    """A byte-level BPE tokenizer (Radford et al. 2019) of at most `vocabulary` tokens, trained on
    prompts; it can spell every text.
    """
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END, PAD],
        initial_alphabet=sorted(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(prompts, trainer)
    return own_words(tokenizer)


def own_words(tokenizer: tokenizers.Tokenizer) -> CaptionTokenizer:
    """The words of a tokenizer whose marks are END and PAD. Raises DetectorError where it has none."""
    end, pad = tokenizer.token_to_id(END), tokenizer.token_to_id(PAD)
    if end is None or pad is None:
        raise DetectorError(
            f"the tokenizer has no token {END} or {PAD}",
            hint="say in architecture.tokens which mark begins, ends and pads",
        )
    return CaptionTokenizer(tokenizer, end, end, pad)


def words_of_card(card: DescriberCard, weights: Path) -> CaptionTokenizer:
    """The words of a card: of its tokenizer's file or of the header of `weights`, with the marks
    that `architecture.tokens` names.

    `tokens`: {begin, end, pad} as texts or numbers; where they are missing, the marks of a
    tokenizer that was trained here. Raises DetectorError.
    """
    where = weights if card.tokenizer is None else resolve_part(card.parts[1])
    try:
        tokenizer = tokenizers.Tokenizer.from_str(
            _header(where) if card.tokenizer is None else where.read_text(encoding="utf-8")
        )
    except Exception as error:  # the library raises bare Exception for a damaged text
        kind: Literal["json", "safetensors"] = "safetensors" if card.tokenizer is None else "json"
        raise unreadable(where, f"a tokenizer of {card.name}", error, name=kind) from None
    named = card.architecture.get("tokens")
    if not named:
        return own_words(tokenizer)
    begin, end, pad = (_mark(tokenizer, named.get(name)) for name in ("begin", "end", "pad"))
    if min(begin, end, pad) < 0:
        raise DetectorError(
            f"{card.name}: {where}: the tokenizer lacks a token that architecture.tokens names: {named}"
        )
    return CaptionTokenizer(tokenizer, begin, end, pad)


def _mark(tokenizer: tokenizers.Tokenizer, text: str | int | None) -> int:
    """The number of a mark; -1 where there is none. A number may be beyond the tokenizer, as BLIP's
    begin is.
    """
    number = tokenizer.token_to_id(text) if isinstance(text, str) else text
    return -1 if number is None else int(number)


def _header(weights: Path) -> str:
    with weights.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return str(header["__metadata__"][HEADER])


MODELS = {
    "git": "GitForCausalLM",
    "blip": "BlipForConditionalGeneration",
    "vision-encoder-decoder": "VisionEncoderDecoderModel",
}
SLOTS, DIALOGUE_SLOTS = 8, 1  # rows of a batch where the card says nothing
_DIALOGUE_NEEDS = ("model", "config", "template", "image", "image_tokens")
# Buffers of older files, which no network reads.
_BUFFERS = (
    "position_ids",
    ".attn.bias",
    ".attn.masked_bias",
    ".crossattention.bias",
    ".crossattention.masked_bias",
)


def load_describing(card: DescriberCard, *, device: str = "cpu") -> Describer:
    """The describer of a card, its weights read and on `device`, ready to be given batches. Raises
    DetectorError.
    """
    if card.tier == "retrieval":
        return Retrieval(card)
    if device.startswith("cuda"):
        forbid_tf32()  # else its words would hang on which detectors share its process
    return NetworkDescriber(card, device)


class PrefixNet(nn.Module):
    """Embeddings (n, width) → a unit vector each → MLP (width, H·k/2, H·k; tanh) → k tokens of H
    numbers before those of GPT-2.

    `config`: keys of transformers' GPT2Config. Raises DetectorError for one that it does not know.
    """

    def __init__(self, width: int, prefix: int, config: Mapping[str, Any]) -> None:
        from transformers import GPT2Config, GPT2LMHeadModel

        super().__init__()
        _require_known(config, GPT2Config())
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

    def forward(self, given: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Logits (n, L, V) of the token after each of `tokens` (n, L); its first, the begin, is not
        seen: the prefix stands for it.
        """
        seen = torch.cat(
            [self._before(given), self.lm.get_input_embeddings()(tokens[:, 1:])], dim=1
        )
        logits: torch.Tensor = self.lm(inputs_embeds=seen).logits[:, self.prefix - 1 :]
        return logits

    def generation_inputs(self, given: torch.Tensor) -> tuple[Any, dict[str, torch.Tensor]]:
        """The transformers model to generate with, and what to give it: the prefixes."""
        before = self._before(given)
        return self.lm, {
            "inputs_embeds": before,
            "attention_mask": torch.ones(before.shape[:2], dtype=torch.long, device=before.device),
        }

    def _before(self, given: torch.Tensor) -> torch.Tensor:
        mapped: torch.Tensor = self.mapper(nn.functional.normalize(given.float(), dim=1))
        return mapped.view(len(given), self.prefix, -1)


class CaptionNet(nn.Module):
    """A transformers captioner: normalised pixels (n, 3, H, W) and words in, logits of words out."""

    def __init__(self, model: Any, kind: str) -> None:
        super().__init__()
        self.model, self.kind = model, kind

    def forward(self, given: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Logits (n, L, V) of the token after each of `tokens` (n, L)."""
        name = "decoder_input_ids" if self.kind == "vision-encoder-decoder" else "input_ids"
        logits: torch.Tensor = self.model(pixel_values=given, **{name: tokens}).logits
        return logits[:, -tokens.shape[1] :]  # GIT's logits begin with those of the image

    def generation_inputs(self, given: torch.Tensor) -> tuple[Any, dict[str, torch.Tensor]]:
        """The model to generate with, and the pixels."""
        return self.model, {"pixel_values": given}


class DialogueNet(nn.Module):
    """A vision-language model with the tokens of the one question that it is asked about every
    image.
    """

    def __init__(self, model: Any, prompt: Sequence[int]) -> None:
        super().__init__()
        self.model, self.prompt = model, list(prompt)

    def forward(self, given: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Logits (n, L, V) of the token after each of `tokens` (n, L), whose first, the begin, is
        not seen: the question precedes it.
        """
        _, inputs = self.generation_inputs(given)
        ids = torch.cat([inputs["input_ids"], tokens[:, 1:]], dim=1)
        logits: torch.Tensor = self.model(pixel_values=inputs["pixel_values"], input_ids=ids).logits
        return logits[:, -tokens.shape[1] :]

    def generation_inputs(self, given: torch.Tensor) -> tuple[Any, dict[str, torch.Tensor]]:
        """The model to generate with, the pixels and the question."""
        ids = torch.tensor(self.prompt, device=given.device).expand(len(given), -1)
        return self.model, {
            "pixel_values": given.to(self.model.dtype),
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
        }


CaptionNetwork = PrefixNet | CaptionNet | DialogueNet


def build_prefix(card: DescriberCard) -> PrefixNet:
    """The network of a card, without its values: `architecture` has `width`, of an embedding, and
    `config`. Raises DetectorError.
    """
    if missing := {"width", "config"} - set(card.architecture):
        raise DetectorError(f"{card.name}: architecture lacks {', '.join(sorted(missing))}")
    return PrefixNet(card.architecture["width"], card.prefix, card.architecture["config"])


def build_captioner(name: str, architecture: Mapping[str, Any]) -> CaptionNet:
    """The network that an `architecture` says, in evaluation mode, with values from torch's
    generator. Raises DetectorError.
    """
    kind = str(architecture.get("model"))
    if kind not in MODELS:
        raise DetectorError(f"{name}: architecture.model {kind}: there are {', '.join(MODELS)}")
    try:
        return CaptionNet(_captioning_model(kind, architecture.get("config", {})), kind).eval()
    except Exception as error:  # transformers' validators raise a tree of their own
        raise DetectorError(f"{name}: transformers cannot build {kind}: {error}") from None


def _captioning_model(kind: str, config: Mapping[str, Any]) -> Any:
    import transformers

    model = getattr(transformers, MODELS[kind])
    if kind != "vision-encoder-decoder":
        _require_known(config, model.config_class())
        return model(model.config_class(**config))
    parts = (transformers.AutoConfig.for_model(**config[name]) for name in ("encoder", "decoder"))
    both = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(*parts)
    both.decoder_start_token_id, both.pad_token_id = (
        both.decoder.bos_token_id,
        both.decoder.pad_token_id,
    )
    return model(config=both)


def _require_known(config: Mapping[str, Any], default: Any) -> None:
    # transformers keeps a misspelt key as an attribute and builds the default network without a
    # word.
    if unknown := [key for key in config if key not in default.to_dict()]:
        raise DetectorError(
            f"architecture.config: unknown keys {', '.join(unknown)} for {type(default).__name__}"
        )


def build_dialogue(name: str, architecture: Mapping[str, Any]) -> Any:
    """The transformers model that an `architecture` says, without values. Raises DetectorError."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    from ray_app.detectors.families.transformers import skip_initial_values

    if missing := [key for key in _DIALOGUE_NEEDS if key not in architecture]:
        raise DetectorError(f"{name}: architecture lacks {', '.join(missing)}")
    without_values = skip_initial_values()
    try:
        config = AutoConfig.for_model(architecture["model"], **architecture["config"])
        with without_values:
            return AutoModelForImageTextToText.from_config(config).eval()  # type: ignore[no-untyped-call]
    except Exception as error:  # transformers' validators raise a tree of their own
        raise DetectorError(
            f"{name}: transformers cannot build {architecture['model']}: {error}"
        ) from None


def question_tokens(card: DescriberCard, words: CaptionTokenizer) -> list[int]:
    """The card's question in the model's template, with the tokens of one image in it. Raises
    DetectorError where they do not fit.
    """
    architecture = card.architecture
    before, token, after = architecture["image"]
    count, template = architecture["image_tokens"], architecture["template"]
    text = template.replace("{image}", f"{before}{token * count}{after}").replace(
        "{question}", card.question
    )
    ids: list[int] = words.tokenizer.encode(text, add_special_tokens=False).ids
    number = words.tokenizer.token_to_id(token)
    if number is None or ids.count(number) != count:
        raise DetectorError(
            f"{card.name}: {token} is not one token of its tokenizer, or not {count} times in the template"
        )
    return ids


def body_of(network: nn.Module) -> nn.Module:
    """The part of a captioning network whose tensors a file of weights holds: the published model,
    or all of it.
    """
    body: nn.Module = getattr(network, "model", network)
    return body


def load_body(network: nn.Module, state: Mapping[str, torch.Tensor], where: str) -> None:
    """Load weights of which every key and shape fits; of tensors that are one in the network, the
    file may hold one.

    Raises DetectorError that names what does not fit.
    """
    from transformers import PreTrainedModel

    from ray_app.detectors.families.transformers import published_keys

    body = body_of(network)
    own = body.state_dict()
    named = published_keys(state, body) if isinstance(body, PreTrainedModel) else state
    found = {
        key: tensor for key, tensor in named.items() if key in own or not key.endswith(_BUFFERS)
    }
    held = {own[key].data_ptr(): tensor for key, tensor in found.items() if key in own}
    tied = {
        key: held[tensor.data_ptr()]
        for key, tensor in own.items()
        if key not in found and tensor.data_ptr() in held
    }
    load_strictly(body, found | tied, where)


def body_state(network: nn.Module) -> dict[str, torch.Tensor]:
    """Weights as a file holds them: each tensor once, contiguous, on the CPU."""
    once: dict[int, tuple[str, torch.Tensor]] = {}
    for key, tensor in body_of(network).state_dict().items():
        once.setdefault(tensor.data_ptr(), (key, tensor))
    return {key: tensor.detach().to("cpu").contiguous() for key, tensor in once.values()}


def generated_captions(
    network: CaptionNetwork, given: torch.Tensor, words: CaptionTokenizer, card: DescriberCard
) -> list[Caption]:
    """What a network says of each row of `given`: beams, no repeated n-grams, at most so many
    tokens, as the card says.

    Likelihood: the mean of the log-probabilities of its tokens, the end included, as the network
    gave them before the search forbade repetitions; None where one of them is no number.
    """
    from transformers import GenerationConfig

    model, inputs = network.generation_inputs(given)
    config = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False, num_beams=card.beams, no_repeat_ngram_size=card.no_repeat, max_new_tokens=card.most_tokens,
        bos_token_id=words.begin, decoder_start_token_id=words.begin, eos_token_id=words.end, pad_token_id=words.pad,
        return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    with torch.inference_mode(), warnings.catch_warnings():
        # of a prefix, in which there are no words to repeat
        warnings.filterwarnings("ignore", message="Passing `no_repeat_ngram_size`")
        found = model.generate(**inputs, generation_config=config)
        scores = model.compute_transition_scores(
            found.sequences,
            found.logits,
            getattr(found, "beam_indices", None),
            normalize_logits=True,
        )
    captions = []
    for ids, chances in zip(
        found.sequences[:, -scores.shape[1] :].tolist(), scores.float().tolist(), strict=True
    ):
        length = ids.index(words.end) + 1 if words.end in ids else len(ids)
        mean = float(np.mean(chances[:length]))
        captions.append(Caption(words.text(ids), min(mean, 0.0) if np.isfinite(mean) else None))
    return captions


class NetworkDescriber:
    """A describer with a network; a dialogue's is in bf16 on a GPU. Raises DetectorError where its
    files are missing or do not fit.
    """

    def __init__(self, card: DescriberCard, device: str = "cpu") -> None:
        self.card, self._device = card, device
        path = resolve_part(card.parts[0])
        self._words, state = words_of_card(card, path), read_state_dict(path, card.weights)
        if card.tier == "prefix":
            self._network: CaptionNetwork = build_prefix(card)
        elif card.tier == "captioner":
            self._network = build_captioner(card.name, card.architecture)
        else:
            from ray_app.detectors.families.internvl import published_keys

            self._network = DialogueNet(
                build_dialogue(card.name, card.architecture), question_tokens(card, self._words)
            )
            # A hub checkpoint's tensors under today's names: those of transformers 4.51 are
            # renamed.
            state = {
                key.removeprefix("chat."): tensor
                for key, tensor in published_keys(state, nn.Identity()).items()
            }
        load_body(self._network, state, f"{card.name}: {path}")
        self._network.eval().requires_grad_(False).to(
            device, torch.bfloat16 if card.precision_on(device) == "bf16" else torch.float32
        )
        self._slots = card.batch or (DIALOGUE_SLOTS if card.tier == "dialogue" else SLOTS)
        self._normalise = (
            None if card.preprocessing is None else Normalise(card.preprocessing).to(device)
        )

    def describe(self, given: npt.NDArray[Any]) -> Sequence[Caption]:
        """Embeddings (n, d) float32, or (n, H, W, 3) uint8 as the card prepares them → the
        likeliest text of each; see `Describer`.

        Raises DetectorError for other shapes.
        """
        if isinstance(self._network, PrefixNet):
            return of_embeddings(self.card, given, self._network.width, self._slots, self._captions)
        if given.ndim != 4 or given.shape[3] != 3:
            raise DetectorError(
                f"{self.card.name}: pixels of shape {given.shape}, not (n, H, W, 3)"
            )
        return in_batches(given, self._slots, self._captions)

    def _captions(self, rows: npt.NDArray[Any]) -> Sequence[Caption]:
        seen = torch.from_numpy(rows).to(self._device)
        return generated_captions(
            self._network,
            seen if self._normalise is None else self._normalise(seen).contiguous(),
            self._words,
            self.card,
        )
