"""The `internvl` family: a vision-language model is asked whether an image is real, by
transformers' own InternVL class.

No code from a hub. `Dialogue` is the question in the card, `answer_of` reads replies as the authors
of the published baseline do.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import tokenizers
import torch
import transformers
from pydantic import Field, ValidationError, model_validator
from torch import nn

from ray_app.config import Frozen
from ray_app.detectors.card import DetectorCard
from ray_app.detectors.checkpoints import unreadable
from ray_app.detectors.detector import Prediction
from ray_app.detectors.families.transformers import skip_initial_values
from ray_app.errors import DetectorError

TOKENIZER = "tokenizer.json"

Answer = Literal["real", "fake", "unknown"]

SCORES: dict[Answer, float] = {"real": -1.0, "fake": 1.0, "unknown": math.nan}


class AnswerWords(Frozen):
    """The words that stand for either answer; each counts with and without a leading space, where
    that is one token.
    """

    fake: tuple[str, ...] = Field(min_length=1)
    real: tuple[str, ...] = Field(min_length=1)


class Dialogue(Frozen):
    """One question about one image in the model's own chat template.

    `mode`: `reply` lets the model speak, greedily and for at most `max_new_tokens`, and reads what
    it says; `first-token` compares the logits of the two answers at the place of its first token.
    `template` has the places {image} and {question}; `image` is what stands around the image's
    tokens and the token itself; `end` closes a reply. A batch never holds more than
    `max_tokens_per_batch` tokens of prompts.
    """

    mode: Literal["reply", "first-token"]
    engine: Literal["transformers"] = "transformers"  # cards of before 0.19 name it
    template: str
    question: str
    image: tuple[str, str, str]
    end: str
    answers: AnswerWords
    max_new_tokens: int = Field(default=10, ge=1)
    max_tokens_per_batch: int = Field(default=8192, ge=1)

    @model_validator(mode="after")
    def _has_both_places(self) -> "Dialogue":
        if self.template.count("{image}") != 1 or self.template.count("{question}") != 1:
            raise ValueError("it needs {image} and {question}, once each")
        return self

    def expanded_prompt(self, image_tokens: int) -> str:
        """The whole text up to where the model speaks, with the image token repeated for each
        feature of the image, in its brackets.
        """
        return expand_template(self.template, self.image, image_tokens, self.question)


def expand_template(template: str, image: Sequence[str], image_tokens: int, question: str) -> str:
    """Return a template with the tokens of an image at {image} and the question at {question}.

    Args:
        template: Text of a dialogue.
        image: The text before the tokens of an image, the token, and the text after them.
        image_tokens: Tokens of an image.
        question: Text of the question.
    """
    before, token, after = image
    return template.replace("{image}", f"{before}{token * image_tokens}{after}").replace(
        "{question}", question
    )


class DialogueTokens(NamedTuple):
    """A dialogue in a tokenizer's numbers. `prompt` has the image's tokens in it; `fake` and `real`
    are the answers' only tokens.
    """

    tokenizer: tokenizers.Tokenizer
    prompt: list[int]
    end: int
    fake: list[int]
    real: list[int]

    def text(self, reply: list[int]) -> str:
        """The model's text, up to the end of its reply."""
        spoken = reply[: reply.index(self.end)] if self.end in reply else reply
        return str(self.tokenizer.decode(spoken, skip_special_tokens=True)).strip()


def tokenise(
    dialogue: Dialogue, files: Path, image_tokens: int, image_token_id: int
) -> DialogueTokens:
    """A dialogue in the numbers of the tokenizer that lies beside the weights. Raises DetectorError
    where the two do not fit.
    """
    path = files / TOKENIZER
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception for a missing or damaged file
        raise unreadable(path, "a tokenizer", error, name="json") from None
    prompt = tokenizer.encode(dialogue.expanded_prompt(image_tokens), add_special_tokens=False).ids
    end = tokenizer.token_to_id(dialogue.end)
    if end is None or prompt.count(image_token_id) != image_tokens:
        raise DetectorError(
            f"{path}: not the card's tokenizer: {dialogue.image[1]} is not token {image_token_id}, or {dialogue.end} is none"
        )
    fake, real = (
        _single_tokens(tokenizer, words, path)
        for words in (dialogue.answers.fake, dialogue.answers.real)
    )
    if shared := set(fake) & set(real):
        raise DetectorError(
            f"{path}: tokens {sorted(shared)} stand for both answers",
            hint="correct architecture.arguments.answers in the card",
        )
    if len(prompt) > dialogue.max_tokens_per_batch:
        raise DetectorError(
            f"one image is {len(prompt)} tokens, max_tokens_per_batch is {dialogue.max_tokens_per_batch}"
        )
    return DialogueTokens(tokenizer, prompt, end, fake, real)


def _single_tokens(
    tokenizer: tokenizers.Tokenizer, words: tuple[str, ...], path: Path
) -> list[int]:
    encoded = [
        tokenizer.encode(text, add_special_tokens=False).ids
        for word in words
        for text in (word, f" {word}")
    ]
    # The first of several tokens would count for other words too: "A" opens "AI" and "Actually".
    single = sorted({ids[0] for ids in encoded if len(ids) == 1})
    if not single:
        raise DetectorError(
            f"{path}: none of {', '.join(words)} is one token", hint="correct `answers` in the card"
        )
    return single


def answer_of(reply: str) -> Answer:
    """Which answer a reply gives, in the published order (specs/detectors.md §5).

    "real" is looked for first, anywhere, so that "not real" and "unreal" are real; then "ai" and
    "generated", inside other words too.
    """
    text = reply.lower()
    if "real" in text:
        return "real"
    return "fake" if "ai" in text or "generated" in text else "unknown"


def score_of(reply: str) -> float:
    """+1 for fake, −1 for real, NaN where the reply says neither."""
    return SCORES[answer_of(reply)]


def build(card: DetectorCard) -> nn.Module:
    """The network of the card: `architecture.arguments` holds the fields of `Dialogue` and those of
    transformers' InternVLConfig.

    Its weights are not initialised: eight billion random numbers would take minutes and be
    overwritten. Raises DetectorError.
    """
    arguments = dict(card.architecture.arguments)
    try:
        dialogue = Dialogue(
            **{key: arguments.pop(key) for key in Dialogue.model_fields if key in arguments}
        )
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc'])) or 'template'}: {fault['msg']}"
            for fault in error.errors()
        )
        raise DetectorError(f"{card.name}: architecture.arguments: {faults}") from None
    config = _config(card.name, arguments)
    with skip_initial_values():
        chat = transformers.InternVLForConditionalGeneration(config)
    return Interrogator(chat, dialogue)


def published_keys(
    state: Mapping[str, torch.Tensor], network: nn.Module
) -> dict[str, torch.Tensor]:
    """A hub checkpoint's tensors under this module's names, which are the same for every network.

    The hub keeps the names of transformers 4.51 (`language_model.model.*`,
    `language_model.lm_head.*`, `vision_tower.*`, `multi_modal_projector.*`), which later versions
    rename while they load.
    """
    moved = {
        "language_model.model.": "chat.model.language_model.",
        "language_model.lm_head.": "chat.lm_head.",
    }
    moved |= {
        prefix: f"chat.model.{prefix}" for prefix in ("vision_tower.", "multi_modal_projector.")
    }
    renamed = {}
    for key, tensor in state.items():
        old = next((prefix for prefix in moved if key.startswith(prefix)), "")
        renamed[moved.get(old, "") + key.removeprefix(old)] = tensor
    return renamed


class Interrogator(nn.Module):
    """Asks the model about each image of a batch: (N, 3, H, W) → logits (N, 1), log-odds of fake,
    with the replies in mode `reply`.

    Without a tokenizer it cannot ask: `attach` the folder of the weights first.
    """

    def __init__(self, chat: Any, dialogue: Dialogue) -> None:
        super().__init__()
        self.chat = chat
        self.dialogue = dialogue
        self._tokens: DialogueTokens | None = None

    def attach(self, files: Path) -> None:
        """Take the tokenizer that lies beside the weights. Raises DetectorError."""
        config = self.chat.config
        self._tokens = tokenise(
            self.dialogue, files, config.image_seq_length, config.image_token_id
        )

    def forward(self, pixels: torch.Tensor) -> Prediction:
        """Ask about each image; see the class for shapes. All prompts are equal, so nothing is
        padded.
        """
        if self._tokens is None:
            raise DetectorError(
                "the network has no tokenizer", hint="attach() the folder that its weights lie in"
            )
        ask = self._reply if self.dialogue.mode == "reply" else self._first_token
        at_once = self.dialogue.max_tokens_per_batch // len(self._tokens.prompt)
        return joined([ask(part, self._tokens) for part in torch.split(pixels, at_once)])

    def _first_token(self, pixels: torch.Tensor, tokens: DialogueTokens) -> Prediction:
        output = self.chat(**_inputs(pixels, tokens), use_cache=False, logits_to_keep=1)
        logits = output.logits[:, -1].float()
        return Prediction(
            (logits[:, tokens.fake].logsumexp(1) - logits[:, tokens.real].logsumexp(1)).unsqueeze(1)
        )

    def _reply(self, pixels: torch.Tensor, tokens: DialogueTokens) -> Prediction:
        inputs = _inputs(pixels, tokens)
        greedy = transformers.GenerationConfig(  # type: ignore[no-untyped-call]
            do_sample=False,
            max_new_tokens=self.dialogue.max_new_tokens,
            eos_token_id=tokens.end,
            pad_token_id=tokens.end,
        )
        spoken = self.chat.generate(**inputs, generation_config=greedy)[:, len(tokens.prompt) :]
        replies = tuple(tokens.text(reply) for reply in spoken.tolist())
        return Prediction(
            torch.tensor([[score_of(reply)] for reply in replies], device=pixels.device),
            replies=replies,
        )


def joined(parts: list[Prediction]) -> Prediction:
    """The predictions of the parts of a batch as one."""
    replies = tuple(reply for part in parts for reply in part.replies or ())
    return Prediction(torch.cat([part.logits for part in parts]), replies=replies or None)


def _inputs(pixels: torch.Tensor, tokens: DialogueTokens) -> dict[str, torch.Tensor]:
    ids = torch.tensor(tokens.prompt, device=pixels.device).expand(len(pixels), -1)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}


def _config(name: str, arguments: Mapping[str, Any]) -> transformers.InternVLConfig:
    try:
        # transformers' default ties the head to the embedding; the 8B checkpoint holds two
        # different matrices.
        config = transformers.InternVLConfig(**{"tie_word_embeddings": False, **arguments})
    except Exception as error:  # its validators raise a tree of their own
        raise DetectorError(f"{name}: transformers cannot build InternVL: {error}") from None
    known = transformers.InternVLConfig().to_dict()
    sections = {"": (arguments, known)} | {
        f"{key}.": (arguments.get(key, {}), known[key]) for key in ("vision_config", "text_config")
    }
    # transformers keeps a misspelt key as an attribute and builds the default network without a
    # word.
    unknown = [
        f"{path}{key}" for path, (given, own) in sections.items() for key in given if key not in own
    ]
    if unknown:
        raise DetectorError(
            f"{name}: architecture.arguments: unknown keys for InternVL: {', '.join(unknown)}"
        )
    return config
