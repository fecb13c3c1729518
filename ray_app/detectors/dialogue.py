"""What a vision-language model is asked about an image and which tokens count as its answers.

Knows texts and a tokenizer's file. Knows nothing about networks: both engines of `internvl` ask the same.
"""

from pathlib import Path
from typing import Literal, NamedTuple

import tokenizers
from pydantic import Field, model_validator

from ray_app.config import Frozen
from ray_app.detectors.file_kinds import unreadable
from ray_app.errors import DetectorError

TOKENIZER = "tokenizer.json"


class Answers(Frozen):
    """The words that stand for either answer; each counts with and without a leading space, where that is one token."""

    fake: tuple[str, ...] = Field(min_length=1)
    real: tuple[str, ...] = Field(min_length=1)


class Dialogue(Frozen):
    """One question about one image in the model's own chat template.

    `mode`: `reply` lets the model speak, greedily and for at most `max_new_tokens`, and reads what it says; `first-token` compares the
    logits of the two answers at the place of its first token. `template` has the places {image} and {question}; `image` is what stands
    around the image's tokens and the token itself; `end` closes a reply. A batch never holds more than `max_tokens_per_batch` tokens
    of prompts.
    """

    mode: Literal["reply", "first-token"]
    engine: Literal["transformers", "vllm"] = "transformers"
    template: str
    question: str
    image: tuple[str, str, str]
    end: str
    answers: Answers
    max_new_tokens: int = Field(default=10, ge=1)
    max_tokens_per_batch: int = Field(default=8192, ge=1)

    @model_validator(mode="after")
    def _has_both_places(self) -> "Dialogue":
        if self.template.count("{image}") != 1 or self.template.count("{question}") != 1:
            raise ValueError("it needs {image} and {question}, once each")
        return self

    def prompt(self, image: str) -> str:
        """The whole text up to where the model speaks, with `image` in the image's place."""
        return self.template.replace("{image}", image).replace("{question}", self.question)

    def expanded_prompt(self, image_tokens: int) -> str:
        """The prompt with the image token repeated for each feature of the image, in its brackets."""
        before, token, after = self.image
        return self.prompt(f"{before}{token * image_tokens}{after}")


class Tokens(NamedTuple):
    """A dialogue in a tokenizer's numbers. `prompt` has the image's tokens in it; `fake` and `real` are the answers' only tokens."""

    tokenizer: tokenizers.Tokenizer
    prompt: list[int]
    end: int
    fake: list[int]
    real: list[int]

    def text(self, reply: list[int]) -> str:
        """What the model said, up to the end of its reply."""
        spoken = reply[: reply.index(self.end)] if self.end in reply else reply
        return str(self.tokenizer.decode(spoken, skip_special_tokens=True)).strip()


def tokenise(dialogue: Dialogue, files: Path, image_tokens: int, image_token_id: int) -> Tokens:
    """A dialogue in the numbers of the tokenizer that lies beside the weights. Raises DetectorError where the two do not fit."""
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
    fake, real = (_single_tokens(tokenizer, words, path) for words in (dialogue.answers.fake, dialogue.answers.real))
    if shared := set(fake) & set(real):
        raise DetectorError(
            f"{path}: tokens {sorted(shared)} stand for both answers", hint="correct architecture.arguments.answers in the card"
        )
    if len(prompt) > dialogue.max_tokens_per_batch:
        raise DetectorError(f"one image is {len(prompt)} tokens, max_tokens_per_batch is {dialogue.max_tokens_per_batch}")
    return Tokens(tokenizer, prompt, end, fake, real)


def _single_tokens(tokenizer: tokenizers.Tokenizer, words: tuple[str, ...], path: Path) -> list[int]:
    encoded = [tokenizer.encode(text, add_special_tokens=False).ids for word in words for text in (word, f" {word}")]
    # The first of several tokens would count for other words too: "A" opens "AI" and "Actually".
    single = sorted({ids[0] for ids in encoded if len(ids) == 1})
    if not single:
        raise DetectorError(f"{path}: none of {', '.join(words)} is one token", hint="correct `answers` in the card")
    return single
