"""Read or train the tokenizer of a network that predicts prompts.

`read_tokenizer` reads a tokenizer from a card's files. `train_tokenizer` trains a tokenizer on
prompts.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import tokenizers

from ray_app.detectors.checkpoints import unreadable
from ray_app.detectors.weights import resolve_part
from ray_app.errors import DetectorError
from ray_app.identification.cards import DescriberCard

HEADER = "tokenizer"
"""Key of the tokenizer in the header of weights that Touchstone trained."""
END, PAD = "<|end|>", "<|pad|>"
"""Tokens of a tokenizer that Touchstone trained. Texts also begin with the end token."""
IGNORED = -100
"""Target id that the loss ignores."""


@dataclass(frozen=True)
class CaptionTokenizer:
    """A tokenizer with the ids of its special tokens.

    Attributes:
        tokenizer: The tokenizer.
        begin: Id of the token that begins a text.
        end: Id of the token that ends a text.
        pad: Id of the token that pads a text.
    """

    tokenizer: tokenizers.Tokenizer
    begin: int
    end: int
    pad: int

    def encode(self, text: str, max_tokens: int) -> list[int]:
        """Return the token ids of a text, followed by the id of the end token.

        A longer result is cut to `max_tokens` ids, and then has no end token.
        """
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return [*ids, self.end][:max_tokens]

    def encode_targets(self, texts: Sequence[str], max_tokens: int) -> npt.NDArray[np.int32]:
        """Return the token ids of n texts as an array (n, L), for training.

        Each text has up to `max_tokens` ids, as `encode` returns them. L is the largest number of
        ids. Shorter rows are padded with IGNORED, which the loss ignores.
        """
        rows = [self.encode(text, max_tokens) for text in texts]
        targets = np.full((len(rows), max(map(len, rows), default=1)), IGNORED, np.int32)
        for target, row in zip(targets, rows, strict=True):
            target[: len(row)] = row
        return targets

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of token ids up to the end token, on one line."""
        text_ids: list[int] = []
        for token_id in ids:
            if token_id == self.end:
                break
            text_ids.append(token_id)
        return " ".join(str(self.tokenizer.decode(text_ids, skip_special_tokens=True)).split())


def train_tokenizer(prompts: Sequence[str], vocabulary: int) -> CaptionTokenizer:
    """Train a byte-level BPE tokenizer (Radford et al. 2019) on prompts.

    The tokenizer has up to `vocabulary` tokens and can encode every text.
    """
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END, PAD],
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(prompts, trainer)
    return from_trained(tokenizer)


def from_trained(tokenizer: tokenizers.Tokenizer) -> CaptionTokenizer:
    """Return a tokenizer that Touchstone trained, with the ids of its END and PAD tokens.

    Raises DetectorError if the tokenizer does not have these tokens.
    """
    end, pad = tokenizer.token_to_id(END), tokenizer.token_to_id(PAD)
    if end is None or pad is None:
        raise DetectorError(
            f"the describer's tokenizer lacks the token {END if end is None else PAD}",
            hint="set architecture.tokens in the card: begin, end, and pad",
        )
    return CaptionTokenizer(tokenizer, end, end, pad)


def read_tokenizer(card: DescriberCard, weights: Path) -> CaptionTokenizer:
    """Read the tokenizer of a describer card from its own file, or from the header of `weights`.

    `architecture.tokens` of the card has the special tokens {begin, end, pad} as texts or ids.
    Without this key, the special tokens are those of `train_tokenizer`. Raises DetectorError if the
    tokenizer is unreadable or lacks one of these tokens.
    """
    path = weights if card.tokenizer is None else resolve_part(card.parts[1])
    try:
        text = _header(path) if card.tokenizer is None else path.read_text(encoding="utf-8")
        tokenizer = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # The library raises Exception for a damaged text.
        file_format: Literal["json", "safetensors"] = (
            "safetensors" if card.tokenizer is None else "json"
        )
        raise unreadable(path, f"a tokenizer of {card.name}", error, name=file_format) from None
    tokens = card.architecture.get("tokens")
    if not tokens:
        return from_trained(tokenizer)
    # An id may be outside the tokenizer, such as that of BLIP's begin token.
    begin, end, pad = (
        tokenizer.token_to_id(token) if isinstance(token, str) else token
        for token in (tokens.get("begin"), tokens.get("end"), tokens.get("pad"))
    )
    if begin is None or end is None or pad is None:
        raise DetectorError(
            f"{card.name}: {path}: the tokenizer lacks a token of architecture.tokens: {tokens}"
        )
    return CaptionTokenizer(tokenizer, begin, end, pad)


def _header(weights: Path) -> str:
    with weights.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return str(header["__metadata__"][HEADER])
