"""The tier `prefix`: an embedding becomes a few tokens, and a small language model goes on from them.

ClipCap: Mokady, Hertz, Bermano 2021 (arXiv 2111.09734), its mapping by an MLP; the language model is transformers' GPT-2.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ray_app.attribution.captioners import networks, registry, tokenizer
from ray_app.attribution.cards import DescriberCard
from ray_app.detectors.weights import resolve_part
from ray_app.errors import DetectorError


class PrefixNet(nn.Module):
    """Embeddings (n, width) → a unit vector each → MLP (width, H·k/2, H·k; tanh) → k tokens of H numbers before those of GPT-2.

    `config`: keys of transformers' GPT2Config. Raises DetectorError for one that it does not know.
    """

    def __init__(self, width: int, prefix: int, config: Mapping[str, Any]) -> None:
        from transformers import GPT2Config, GPT2LMHeadModel

        super().__init__()
        known = GPT2Config().to_dict()
        if unknown := [key for key in config if key not in known]:
            raise DetectorError(f"architecture.config: unknown keys for GPT-2: {', '.join(unknown)}")
        self.lm: Any = GPT2LMHeadModel(GPT2Config(**{"bos_token_id": 0, "eos_token_id": 0, **config}))
        hidden = self.lm.config.n_embd
        self.prefix, self.width = prefix, width
        self.mapper = nn.Sequential(nn.Linear(width, hidden * prefix // 2), nn.Tanh(), nn.Linear(hidden * prefix // 2, hidden * prefix))

    @property
    def body(self) -> nn.Module:
        """All of it."""
        return self

    def forward(self, given: torch.Tensor, spoken: torch.Tensor) -> torch.Tensor:
        """Logits (n, L, V) of the token after each of `spoken` (n, L); its first, the begin, is not seen: the prefix stands for it."""
        seen = torch.cat([self._before(given), self.lm.get_input_embeddings()(spoken[:, 1:])], dim=1)
        logits: torch.Tensor = self.lm(inputs_embeds=seen).logits[:, self.prefix - 1 :]
        return logits

    def asked(self, given: torch.Tensor) -> tuple[Any, dict[str, torch.Tensor]]:
        """GPT-2 and the prefixes."""
        before = self._before(given)
        return self.lm, {"inputs_embeds": before, "attention_mask": torch.ones(before.shape[:2], dtype=torch.long, device=before.device)}

    def _before(self, given: torch.Tensor) -> torch.Tensor:
        mapped: torch.Tensor = self.mapper(nn.functional.normalize(given.float(), dim=1))
        return mapped.view(len(given), self.prefix, -1)


def build_prefix(card: DescriberCard) -> PrefixNet:
    """The network of a card, without its values: `architecture` has `width`, of an embedding, and `config`. Raises DetectorError."""
    if missing := {"width", "config"} - set(card.architecture):
        raise DetectorError(f"{card.name}: architecture lacks {', '.join(sorted(missing))}")
    return PrefixNet(card.architecture["width"], card.prefix, card.architecture["config"])


class PrefixDescriber:
    """A describer of the tier `prefix`. Raises DetectorError where its files are missing or do not fit."""

    def __init__(self, card: DescriberCard, device: str = "cpu", cache_dir: Path | None = None, offline: bool | None = None) -> None:
        self.card, self._device = card, device
        path = resolve_part(card.parts[0], cache_dir, offline)
        self._network = build_prefix(card)
        networks.load_body(self._network, networks.read_weights(card, path), f"{card.name}: {path}")
        self._network.eval().requires_grad_(False).to(device)
        self._words = tokenizer.words_of_card(card, path, cache_dir, offline)

    def describe(self, given: npt.NDArray[Any]) -> Sequence[registry.Caption]:
        """(n, d) float32 → the likeliest text of each; a row of NaN has no words. Raises DetectorError for another width."""
        if given.ndim != 2 or given.shape[1] != self._network.width:
            raise DetectorError(f"{self.card.name}: embeddings of shape {given.shape}, the network takes {self._network.width} numbers")
        there = np.isfinite(given).all(axis=1)
        rows = np.where(there[:, None], given, 0).astype(np.float32)
        captions = networks.in_batches(rows, self.card.batch or networks.SLOTS, self._captions)
        return [one if known else registry.NOTHING for one, known in zip(captions, there, strict=True)]

    def _captions(self, rows: npt.NDArray[Any]) -> Sequence[registry.Caption]:
        return networks.likeliest(self._network, torch.from_numpy(rows).to(self._device), self._words, self.card)
