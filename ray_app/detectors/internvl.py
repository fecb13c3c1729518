"""The `internvl` family: a vision-language model is asked whether an image is real; transformers' own InternVL class, no code from a hub.

Knows the network, its key names on the hub and how a batch is asked. Knows nothing about prompts' words (`dialogue`) or replies'
meaning (`reply_parsing`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from pydantic import ValidationError
from torch import nn
from transformers.initialization import no_init_weights

from ray_app.detectors.cards import DetectorCard
from ray_app.detectors.dialogue import Dialogue, Tokens, tokenise
from ray_app.detectors.prediction import Prediction
from ray_app.detectors.reply_parsing import score_of
from ray_app.errors import DetectorError


def build(card: DetectorCard) -> nn.Module:
    """The network of the card: `architecture.arguments` holds the fields of `Dialogue` and those of transformers' InternVLConfig.

    Its weights are not initialised: eight billion random numbers would take minutes and be overwritten. Raises DetectorError.
    """
    arguments = dict(card.architecture.arguments)
    try:
        dialogue = Dialogue(**{key: arguments.pop(key) for key in Dialogue.model_fields if key in arguments})
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc'])) or 'template'}: {fault['msg']}" for fault in error.errors())
        raise DetectorError(f"{card.name}: architecture.arguments: {faults}") from None
    config = _config(card.name, arguments)
    if dialogue.engine == "vllm":
        from ray_app.detectors.vllm_engine import VllmInterrogator

        return VllmInterrogator(dialogue, card.preprocessing, config.image_seq_length, config.image_token_id)
    with no_init_weights():
        chat = transformers.InternVLForConditionalGeneration(config)
    return Interrogator(chat, dialogue)


def published_keys(state: Mapping[str, torch.Tensor], network: nn.Module) -> dict[str, torch.Tensor]:
    """A hub checkpoint's tensors under this module's names, which are the same for every network.

    The hub keeps the names of transformers 4.51 (`language_model.model.*`, `language_model.lm_head.*`, `vision_tower.*`,
    `multi_modal_projector.*`), which later versions rename while they load.
    """
    moved = {"language_model.model.": "chat.model.language_model.", "language_model.lm_head.": "chat.lm_head."}
    moved |= {prefix: f"chat.model.{prefix}" for prefix in ("vision_tower.", "multi_modal_projector.")}
    renamed = {}
    for key, tensor in state.items():
        old = next((prefix for prefix in moved if key.startswith(prefix)), "")
        renamed[moved.get(old, "") + key.removeprefix(old)] = tensor
    return renamed


class Interrogator(nn.Module):
    """Asks the model about each image of a batch: (N, 3, H, W) → logits (N, 1), log-odds of fake, with the replies in mode `reply`.

    Without a tokenizer it cannot ask: `attach` the folder of the weights first.
    """

    def __init__(self, chat: Any, dialogue: Dialogue) -> None:
        super().__init__()
        self.chat = chat
        self.dialogue = dialogue
        self._tokens: Tokens | None = None

    def attach(self, files: Path) -> None:
        """Take the tokenizer that lies beside the weights. Raises DetectorError."""
        config = self.chat.config
        self._tokens = tokenise(self.dialogue, files, config.image_seq_length, config.image_token_id)

    def forward(self, pixels: torch.Tensor) -> Prediction:
        """Ask about each image; see the class for shapes. All prompts are equal, so nothing is padded."""
        if self._tokens is None:
            raise DetectorError("the network has no tokenizer", hint="attach() the folder that its weights lie in")
        ask = self._reply if self.dialogue.mode == "reply" else self._first_token
        at_once = self.dialogue.max_tokens_per_batch // len(self._tokens.prompt)
        return joined([ask(part, self._tokens) for part in torch.split(pixels, at_once)])

    def _first_token(self, pixels: torch.Tensor, tokens: Tokens) -> Prediction:
        output = self.chat(**_asked(pixels, tokens), use_cache=False, logits_to_keep=1)
        logits = output.logits[:, -1].float()
        return Prediction((logits[:, tokens.fake].logsumexp(1) - logits[:, tokens.real].logsumexp(1)).unsqueeze(1))

    def _reply(self, pixels: torch.Tensor, tokens: Tokens) -> Prediction:
        asked = _asked(pixels, tokens)
        greedy = transformers.GenerationConfig(  # type: ignore[no-untyped-call]
            do_sample=False, max_new_tokens=self.dialogue.max_new_tokens, eos_token_id=tokens.end, pad_token_id=tokens.end
        )
        spoken = self.chat.generate(**asked, generation_config=greedy)[:, len(tokens.prompt) :]
        return prediction_of([tokens.text(reply) for reply in spoken.tolist()], pixels.device)


def prediction_of(replies: list[str], device: torch.device) -> Prediction:
    """Replies and the scores that they mean."""
    return Prediction(torch.tensor([[score_of(reply)] for reply in replies], device=device), replies=tuple(replies))


def joined(parts: list[Prediction]) -> Prediction:
    """The predictions of the parts of a batch as one."""
    replies = tuple(reply for part in parts for reply in part.replies or ())
    return Prediction(torch.cat([part.logits for part in parts]), replies=replies or None)


def _asked(pixels: torch.Tensor, tokens: Tokens) -> dict[str, torch.Tensor]:
    ids = torch.tensor(tokens.prompt, device=pixels.device).expand(len(pixels), -1)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}


def _config(name: str, arguments: Mapping[str, Any]) -> transformers.InternVLConfig:
    try:
        # transformers' default ties the head to the embedding; the 8B checkpoint holds two different matrices.
        config = transformers.InternVLConfig(**{"tie_word_embeddings": False, **arguments})
    except Exception as error:  # its validators raise a tree of their own
        raise DetectorError(f"{name}: transformers cannot build InternVL: {error}") from None
    known = transformers.InternVLConfig().to_dict()
    sections = {"": (arguments, known)} | {f"{key}.": (arguments.get(key, {}), known[key]) for key in ("vision_config", "text_config")}
    # transformers keeps a misspelt key as an attribute and builds the default network without a word.
    unknown = [f"{path}{key}" for path, (given, own) in sections.items() for key in given if key not in own]
    if unknown:
        raise DetectorError(f"{name}: architecture.arguments: unknown keys for InternVL: {', '.join(unknown)}")
    return config
