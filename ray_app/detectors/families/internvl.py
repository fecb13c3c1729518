"""Build the `internvl` family: a vision-language model that answers whether an image is real.

The model is the InternVL class of transformers, without code from a hub. `Dialogue` has the
question, which the card states. `Interrogator` asks this question about each image. `score_of`
turns a reply into a score by the rules of OpenFake's authors, who published this baseline.
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
    """The words that mean fake and the words that mean real as the first token of a reply.

    They are used only if `Dialogue.mode` is `first-token`, which compares the logits of their
    tokens. Each word is tried with and without a leading space. Forms that are not a single token
    are ignored.
    """

    fake: tuple[str, ...] = Field(min_length=1, description="words that mean fake")
    real: tuple[str, ...] = Field(min_length=1, description="words that mean real")


class Dialogue(Frozen):
    """Question to a vision-language model about an image, and how its reply gives a score.

    The fields are part of a card's `architecture.arguments`. They include the question, the model's
    chat template, and the words that mean real and fake.
    """

    mode: Literal["reply", "first-token"] = Field(
        description="`reply` generates a reply greedily and interprets it. `first-token` compares the "
        "logits of both answers for the first token"
    )
    engine: Literal["transformers"] = "transformers"  # Cards before 0.19 have this key.
    template: str = Field(description="chat template with {image} and {question}")
    question: str = Field(description="text of the question")
    image: tuple[str, str, str] = Field(
        description="text before the tokens of the image, the token itself, and the text after them"
    )
    end: str = Field(description="token that ends a reply")
    answers: AnswerWords = Field(
        description="words that mean either answer, for mode `first-token`"
    )
    max_new_tokens: int = Field(default=10, ge=1, description="maximum number of tokens of a reply")
    max_tokens_per_batch: int = Field(
        default=8192, ge=1, description="maximum number of prompt tokens in a batch"
    )

    @model_validator(mode="after")
    def _check_template(self) -> "Dialogue":
        if self.template.count("{image}") != 1 or self.template.count("{question}") != 1:
            raise ValueError("template must contain {image} and {question} exactly once each")
        return self

    def expanded_prompt(self, image_tokens: int) -> str:
        """Return the text of the prompt: the template with question and image placeholder.

        The placeholder has `image_tokens` repetitions of the image token, one for each feature
        vector of the image.
        """
        return expand_template(self.template, self.image, image_tokens, self.question)


def expand_template(template: str, image: Sequence[str], image_tokens: int, question: str) -> str:
    """Fill in a chat template: an image's placeholder at {image} and the question at {question}.

    Args:
        template: The chat template.
        image: Text before the image tokens, the image token, and the text after the image tokens.
        image_tokens: Number of times that the image token is repeated.
        question: Text of the question.

    Returns:
        The text of the prompt.
    """
    before, token, after = image
    return template.replace("{image}", f"{before}{token * image_tokens}{after}").replace(
        "{question}", question
    )


class DialogueTokens(NamedTuple):
    """The question about an image and the possible answers, encoded as token ids.

    Attributes:
        tokenizer: The tokenizer.
        prompt: Token ids of the prompt, with those of the image.
        end: Token id that ends a reply.
        fake: Token ids that mean fake if a reply begins with one of them.
        real: Token ids that mean real if a reply begins with one of them.
    """

    tokenizer: tokenizers.Tokenizer
    prompt: list[int]
    end: int
    fake: list[int]
    real: list[int]

    def text(self, reply: list[int]) -> str:
        """Decode the token ids of a reply to text, up to the token that ends the reply."""
        ids = reply[: reply.index(self.end)] if self.end in reply else reply
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()


def tokenise(
    dialogue: Dialogue, files: Path, image_tokens: int, image_token_id: int
) -> DialogueTokens:
    """Encode a dialogue with the tokenizer next to the weights.

    Args:
        dialogue: The question and its answers.
        files: Folder of the weights.
        image_tokens: Number of tokens of an image.
        image_token_id: Token id of the image token in the model's configuration.

    Returns:
        The dialogue as token ids.

    Raises:
        DetectorError: If the tokenizer is missing or does not fit the dialogue.
    """
    path = files / TOKENIZER
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # The library raises Exception for a missing or damaged file.
        raise unreadable(path, "a tokenizer", error, name="json") from None
    prompt = tokenizer.encode(dialogue.expanded_prompt(image_tokens), add_special_tokens=False).ids
    end = tokenizer.token_to_id(dialogue.end)
    if end is None or prompt.count(image_token_id) != image_tokens:
        raise DetectorError(
            f"{path}: the tokenizer does not fit the card: {dialogue.image[1]} must be token {image_token_id}, and {dialogue.end} must be a token",
            hint="use the tokenizer of the checkpoint, or correct architecture.arguments in the card",
        )
    fake, real = (
        _single_tokens(tokenizer, answers, path)
        for answers in (dialogue.answers.fake, dialogue.answers.real)
    )
    if shared := set(fake) & set(real):
        raise DetectorError(
            f"{path}: tokens {sorted(shared)} are in the answers for both fake and real",
            hint="correct architecture.arguments.answers in the card",
        )
    if len(prompt) > dialogue.max_tokens_per_batch:
        raise DetectorError(
            f"the prompt has {len(prompt)} tokens, but max_tokens_per_batch is {dialogue.max_tokens_per_batch}",
            hint="raise architecture.arguments.max_tokens_per_batch in the card, or shorten the prompt",
        )
    return DialogueTokens(tokenizer, prompt, end, fake, real)


def _single_tokens(
    tokenizer: tokenizers.Tokenizer, answers: tuple[str, ...], path: Path
) -> list[int]:
    encoded = [
        tokenizer.encode(text, add_special_tokens=False).ids
        for answer in answers
        for text in (answer, f" {answer}")
    ]
    # The first of several tokens would match other words too, such as "A" in "AI" and "Actually".
    single = sorted({ids[0] for ids in encoded if len(ids) == 1})
    if not single:
        raise DetectorError(
            f"{path}: none of {', '.join(answers)} is a single token, as an answer must be",
            hint="set architecture.arguments.answers in the card to words that are single tokens",
        )
    return single


def answer_of(reply: str) -> Answer:
    """Interpret a reply of the model as "real", "fake", or "unknown".

    The rules are those of OpenFake's authors. If "real" occurs anywhere, the answer is real, even
    in "not real" and "unreal". Otherwise, if "ai" or "generated" occurs anywhere, even within
    another word, the answer is fake.
    """
    text = reply.lower()
    if "real" in text:
        return "real"
    return "fake" if "ai" in text or "generated" in text else "unknown"


def score_of(reply: str) -> float:
    """Return the score of a reply: +1 for fake, −1 for real, NaN for neither answer."""
    return SCORES[answer_of(reply)]


def build(card: DetectorCard) -> nn.Module:
    """Build the network of a card.

    `architecture.arguments` has the fields of `Dialogue` and those of transformers' InternVLConfig.
    Weights are not initialised: eight billion random numbers would take minutes and be overwritten.
    Raises DetectorError if an argument is invalid.
    """
    arguments = dict(card.architecture.arguments)
    try:
        dialogue = Dialogue(
            **{key: arguments.pop(key) for key in Dialogue.model_fields if key in arguments}
        )
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, problem['loc'])) or 'template'}: {problem['msg']}"
            for problem in error.errors()
        )
        raise DetectorError(f"{card.name}: architecture.arguments: {problems}") from None
    config = _config(card.name, arguments)
    with skip_initial_values():
        chat = transformers.InternVLForConditionalGeneration(config)
    return Interrogator(chat, dialogue)


def published_keys(
    state: Mapping[str, torch.Tensor], network: nn.Module
) -> dict[str, torch.Tensor]:
    """Rename the tensors of a hub checkpoint to the names of `Interrogator`.

    The checkpoint has the names of transformers 4.51, such as `language_model.lm_head.*` and
    `vision_tower.*`. The network has those of later versions after the prefix `chat.`, such as
    `chat.lm_head.*`. `network` is not used.
    """
    new_prefixes = {
        "language_model.model.": "chat.model.language_model.",
        "language_model.lm_head.": "chat.lm_head.",
    }
    new_prefixes |= {
        prefix: f"chat.model.{prefix}" for prefix in ("vision_tower.", "multi_modal_projector.")
    }
    renamed = {}
    for key, tensor in state.items():
        old_prefix = next((prefix for prefix in new_prefixes if key.startswith(prefix)), "")
        renamed[new_prefixes.get(old_prefix, "") + key.removeprefix(old_prefix)] = tensor
    return renamed


class Interrogator(nn.Module):
    """Ask the model about each image: (N, 3, H, W) → logits (N, 1), log-odds of fake.

    `dialogue.mode` decides how the logits are computed. With `reply`, they are the scores of the
    generated replies (`score_of`), and the prediction also contains the replies. With
    `first-token`, they are the model's log-odds that the first token of a reply means fake instead
    of real. Call `attach` with the folder of the weights first, to load the tokenizer.

    Args:
        chat: The vision-language model.
        dialogue: The question and its answers.
    """

    def __init__(self, chat: Any, dialogue: Dialogue) -> None:
        super().__init__()
        self.chat = chat
        self.dialogue = dialogue
        self._tokens: DialogueTokens | None = None

    def attach(self, files: Path) -> None:
        """Load the tokenizer from the folder of the weights.

        Raises DetectorError if the tokenizer is missing or does not fit the question on the card.
        """
        config = self.chat.config
        self._tokens = tokenise(
            self.dialogue, files, config.image_seq_length, config.image_token_id
        )

    def forward(self, pixels: torch.Tensor) -> Prediction:
        """Ask the model about each image of a batch: (N, 3, H, W) → logits (N, 1).

        If `dialogue.mode` is `reply`, the prediction also has the replies. All prompts are equal,
        so nothing is padded. Raises DetectorError if `attach` was not called.
        """
        if self._tokens is None:
            raise DetectorError(
                "the network has no tokenizer", hint="call attach() with the folder of its weights"
            )
        ask = self._reply if self.dialogue.mode == "reply" else self._first_token
        batch_size = self.dialogue.max_tokens_per_batch // len(self._tokens.prompt)
        return merge_predictions(
            [ask(part, self._tokens) for part in torch.split(pixels, batch_size)]
        )

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
        generated = self.chat.generate(**inputs, generation_config=greedy)[:, len(tokens.prompt) :]
        replies = tuple(tokens.text(reply) for reply in generated.tolist())
        return Prediction(
            torch.tensor([[score_of(reply)] for reply in replies], device=pixels.device),
            replies=replies,
        )


def merge_predictions(parts: list[Prediction]) -> Prediction:
    """Merge the predictions for consecutive parts of a batch into one prediction."""
    replies = tuple(reply for part in parts for reply in part.replies or ())
    return Prediction(torch.cat([part.logits for part in parts]), replies=replies or None)


def _inputs(pixels: torch.Tensor, tokens: DialogueTokens) -> dict[str, torch.Tensor]:
    ids = torch.tensor(tokens.prompt, device=pixels.device).expand(len(pixels), -1)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}


def _config(name: str, arguments: Mapping[str, Any]) -> transformers.InternVLConfig:
    try:
        # transformers' default ties the head to the embedding, but the 8B checkpoint has two
        # different matrices.
        config = transformers.InternVLConfig(**{"tie_word_embeddings": False, **arguments})
    except Exception as error:  # The validators raise exceptions of their own.
        raise DetectorError(
            f"{name}: transformers cannot build InternVL: {error}",
            hint="correct architecture.arguments in the card",
        ) from None
    defaults = transformers.InternVLConfig().to_dict()
    sections = {"": (arguments, defaults)} | {
        f"{key}.": (arguments.get(key, {}), defaults[key])
        for key in ("vision_config", "text_config")
    }
    # transformers stores a misspelt key as an attribute and builds the default network without a
    # warning.
    unknown = [
        f"{path}{key}"
        for path, (keys, valid) in sections.items()
        for key in keys
        if key not in valid
    ]
    if unknown:
        raise DetectorError(
            f"{name}: architecture.arguments: unknown keys for InternVL: {', '.join(unknown)}"
        )
    return config
