"""The tokenizer of a describer: from a file or from the header of its weights (`words_of_card`), or trained on prompts (`train_words`)."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import tokenizers

from ray_app.attribution.cards import DescriberCard
from ray_app.detectors.checkpoint_formats import unreadable
from ray_app.detectors.weights import resolve_part
from ray_app.errors import DetectorError

HEADER = "tokenizer"  # of the weights, in which those that were trained here keep theirs
END, PAD = "<|end|>", "<|pad|>"  # of a tokenizer that was trained here; texts also begin with the end
IGNORED = -100  # a target that no loss counts


@dataclass(frozen=True)
class CaptionTokenizer:
    """A tokenizer with the numbers of its marks: every text begins after `begin` and closes with `end`; `pad` fills up."""

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
    """A byte-level BPE tokenizer (Radford et al. 2019) of at most `vocabulary` tokens, trained on prompts; it can spell every text."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[END, PAD], initial_alphabet=sorted(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(prompts, trainer)
    return own_words(tokenizer)


def own_words(tokenizer: tokenizers.Tokenizer) -> CaptionTokenizer:
    """The words of a tokenizer whose marks are END and PAD. Raises DetectorError where it has none."""
    end, pad = tokenizer.token_to_id(END), tokenizer.token_to_id(PAD)
    if end is None or pad is None:
        raise DetectorError(
            f"the tokenizer has no token {END} or {PAD}", hint="say in architecture.tokens which mark begins, ends and pads"
        )
    return CaptionTokenizer(tokenizer, end, end, pad)


def words_of_card(card: DescriberCard, weights: Path) -> CaptionTokenizer:
    """The words of a card: of its tokenizer's file or of the header of `weights`, with the marks that `architecture.tokens` names.

    `tokens`: {begin, end, pad} as texts or numbers; where they are missing, the marks of a tokenizer that was trained here.
    Raises DetectorError.
    """
    where = weights if card.tokenizer is None else resolve_part(card.parts[1])
    try:
        tokenizer = tokenizers.Tokenizer.from_str(_header(where) if card.tokenizer is None else where.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises bare Exception for a damaged text
        kind: Literal["json", "safetensors"] = "safetensors" if card.tokenizer is None else "json"
        raise unreadable(where, f"a tokenizer of {card.name}", error, name=kind) from None
    named = card.architecture.get("tokens")
    if not named:
        return own_words(tokenizer)
    begin, end, pad = (_mark(tokenizer, named.get(name)) for name in ("begin", "end", "pad"))
    if min(begin, end, pad) < 0:
        raise DetectorError(f"{card.name}: {where}: the tokenizer lacks a token that architecture.tokens names: {named}")
    return CaptionTokenizer(tokenizer, begin, end, pad)


def _mark(tokenizer: tokenizers.Tokenizer, text: str | int | None) -> int:
    """The number of a mark; -1 where there is none. A number may be beyond the tokenizer, as BLIP's begin is."""
    number = tokenizer.token_to_id(text) if isinstance(text, str) else text
    return -1 if number is None else int(number)


def _header(weights: Path) -> str:
    with weights.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return str(header["__metadata__"][HEADER])
