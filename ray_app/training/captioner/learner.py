"""Training a network that predicts prompts: `CaptionLearner` has the calls of `training.learner.Learner`, so that the same workers run it.

What happens depends on recipe, batches and (seed, step, rank) alone: a training that is saved, loaded elsewhere and continued gives the
same weights. `make_plan` and `caption_network` make network and tokenizer from a recipe's `describe`.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from ray_app.attribution.captioners import MODELS, PrefixNet, body_state, build_captioner, load_body
from ray_app.attribution.cards import DescriberCard, load_describer
from ray_app.attribution.tokenizer import IGNORED, CaptionTokenizer, own_words, train_words, words_of_card
from ray_app.detectors import precision, weights
from ray_app.detectors.detector import Normalise
from ray_app.detectors.preprocessing import Preprocessing
from ray_app.errors import ConfigError, StorageError, describe_error
from ray_app.training import learner
from ray_app.training.config import Describe, Recipe
from ray_app.training.networks import seeded

Batch = Mapping[str, npt.NDArray[Any]]
# Where the config of each captioner keeps what the tokenizer decides.
_WORDS_AT: Mapping[str, tuple[str, ...]] = {"git": (), "blip": ("text_config",), "vision-encoder-decoder": ("decoder",)}


class CaptionLearner:
    """A network that learns to say `targets` (rows, L), numbers of tokens with IGNORED after the end, about what it is given.

    `preprocessing`: of pixels; null where the batches hold embeddings. The loss is the mean cross-entropy of the tokens of a process's
    share of the batch; images that could not be read have none. Gradients are averaged over the processes.
    """

    def __init__(
        self,
        recipe: Recipe,
        network: Any,
        words: CaptionTokenizer,
        targets: npt.NDArray[np.int32],
        *,
        preprocessing: Preprocessing | None,
        device: str,
        total_steps: int,
        rank: int = 0,
    ) -> None:
        self.recipe, self.device, self.total_steps, self.rank, self.step_number = recipe, device, total_steps, rank, 0
        self.precision = precision.resolve_precision(recipe.loop.precision, device, "auto")
        if self.precision == "fp32" and torch.device(device).type == "cuda":
            precision.forbid_tf32()
        self.network = network.to(device)
        self._words, self._targets = words, targets
        self._normalise = None if preprocessing is None else Normalise(preprocessing).to(device)
        _freeze_unheard(self.network, self._blank(preprocessing), words)
        self._model: nn.Module = learner.distribute(self.network, "ddp", device)
        self._optimiser = learner.make_optimiser(recipe.optimiser, self.network)

    def _blank(self, preprocessing: Preprocessing | None) -> torch.Tensor:
        if preprocessing is None:
            return torch.ones(1, self.network.width, device=self.device)
        assert preprocessing.shape is not None, "networks that are trained have one input size"
        return torch.zeros(1, 3, *preprocessing.shape, device=self.device)

    def step(self, batch: Batch) -> learner.StepFigures:
        """Learn from this process's share of a batch: `row` (n,), `usable` (n,), and `image` (n, H, W, 3) uint8 or `embedding` (n, d).

        Raises TouchstoneError where loss or gradients are no numbers; the weights are then still those of the step before.
        """
        step = self.step_number
        rate = learner.begin_step(self.recipe, self._optimiser, step, self.total_steps, self.rank)
        found = torch.stack([self._way_back(batch), torch.tensor(float(np.count_nonzero(~batch["usable"])), device=self.device)])
        learning = [parameter for parameter in self.network.parameters() if parameter.grad is not None]
        norm = get_total_norm([parameter.grad for parameter in learning if parameter.grad is not None])
        loss, unusable = learner.averaged(found).tolist()
        figures = learner.StepFigures(step, loss, {}, rate, norm.item(), round(unusable * learner.world_size()))
        learner.require_finite(figures)
        if self.recipe.loop.clip is not None:
            clip_grads_with_norm_(learning, self.recipe.loop.clip, norm)
        self._optimiser.step()
        self.step_number += 1
        return figures

    def _way_back(self, batch: Batch) -> torch.Tensor:
        """Gradients of this process's share, in micro-batches; its loss."""
        targets = self._targets[batch["row"]].astype(np.int64)
        targets[~batch["usable"]] = IGNORED
        count, share = max(int((targets != IGNORED).sum()), 1), len(targets)
        starts = range(0, share, self.recipe.loop.micro_batch or share)
        total = torch.zeros((), device=self.device)
        for start in starts:
            part = slice(start, start + starts.step)
            wanted = torch.from_numpy(targets[part]).to(self.device)
            with learner.own_gradients(self._model, alone=start != starts[-1]):
                with precision.autocast(self.device, self.precision):
                    logits = self._model(self._given(batch, part), decoder_inputs(wanted, self._words))
                loss = (
                    nn.functional.cross_entropy(logits.float().flatten(0, 1), wanted.flatten(), ignore_index=IGNORED, reduction="sum")
                    / count
                )
                loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return total

    def _given(self, batch: Batch, part: slice) -> torch.Tensor:
        if self._normalise is None:
            return torch.tensor(batch["embedding"][part], device=self.device)
        images = torch.tensor(batch["image"][part]).to(self.device)  # a copy: arrays from an object store are read-only
        normalised: torch.Tensor = self._normalise(images)
        return normalised.contiguous()

    def save(self, folder: Path) -> None:
        """Write everything that going on needs to an existing folder; rank 0 alone writes. Raises StorageError."""
        if self.rank != 0:
            return
        try:
            save_file(body_state(self.network), folder / learner.WEIGHTS)
            torch.save(self._optimiser.state_dict(), folder / learner.OPTIMISER)
            (folder / learner.POSITION).write_text(json.dumps({"step": self.step_number}), encoding="utf-8")
        except (OSError, RuntimeError) as error:
            raise StorageError(f"{folder}: the checkpoint of step {self.step_number} cannot be written: {describe_error(error)}") from error

    def load(self, folder: Path) -> None:
        """Go on from what `save` wrote; every process reads its own folder. Raises DetectorError where it is of another network."""
        load_body(self.network, load_file(folder / learner.WEIGHTS), str(folder / learner.WEIGHTS))
        self._optimiser.load_state_dict(torch.load(folder / learner.OPTIMISER, weights_only=True, map_location="cpu"))
        self.step_number = json.loads((folder / learner.POSITION).read_text(encoding="utf-8"))["step"]


def decoder_inputs(targets: torch.Tensor, words: CaptionTokenizer) -> torch.Tensor:
    """(n, L) the tokens before each target: the begin, then the targets; fillings are the pad."""
    begin = torch.full_like(targets[:, :1], words.begin)
    before = torch.cat([begin, targets[:, :-1]], dim=1)
    return before.masked_fill(before == IGNORED, words.pad)


def _freeze_unheard(network: Any, blank: torch.Tensor, words: CaptionTokenizer) -> None:
    """What no gradient reaches, such as an encoder's pooler, which DDP takes for a fault, does not learn."""
    with torch.random.fork_rng(devices=[]):
        network(blank, torch.tensor([[words.begin, words.end]], device=blank.device)).float().sum().backward()
    for parameter in network.parameters():
        parameter.requires_grad_(parameter.requires_grad and parameter.grad is not None)
        parameter.grad = None


class DescriberPlan(NamedTuple):
    """What a describer will be: the finished `architecture` of its card, tokens of a prefix, its words, and the card it starts from."""

    architecture: dict[str, Any]
    prefix: int
    words: CaptionTokenizer
    start: DescriberCard | None = None


def starting_card(recipe: str, wanted: Describe) -> DescriberCard | None:
    """The card that a recipe begins with. Raises ConfigError where it is of another tier."""
    if wanted.start is None:
        return None
    card = load_describer(wanted.start)
    if card.tier != wanted.tier:
        raise ConfigError(f"{recipe}: describe.start: {card.name} is of the tier {card.tier}, not {wanted.tier}")
    return card


def make_plan(
    recipe: str, wanted: Describe, *, width: int | None, prompts: Sequence[str] = (), tokenizer: str | None = None
) -> DescriberPlan:
    """The plan of a recipe. `width`: of an embedding, for prefix; `tokenizer`: JSON of one that was trained before, else it is trained on
    `prompts`. Raises ConfigError, DetectorError.
    """
    import tokenizers

    if (card := starting_card(recipe, wanted)) is not None:
        if card.tier == "prefix" and card.architecture.get("width") != width:
            raise ConfigError(f"{recipe}: describe.start: {card.name} reads other embeddings than the recipe's detector makes")
        words = words_of_card(card, weights.resolve_part(card.parts[0]))
        return DescriberPlan(dict(card.architecture), card.prefix, words, card)
    words = train_words(prompts, wanted.vocabulary) if tokenizer is None else own_words(tokenizers.Tokenizer.from_str(tokenizer))
    return DescriberPlan(_completed(recipe, wanted, words, width), wanted.prefix, words)


def _completed(recipe: str, wanted: Describe, words: CaptionTokenizer, width: int | None) -> dict[str, Any]:
    """The recipe's architecture with what the tokenizer and the embedding decide."""
    facts: dict[str, Any] = dict(wanted.architecture)
    config = dict(facts.get("config", {}))
    longest = wanted.most_tokens + 1 + (wanted.prefix if wanted.tier == "prefix" else 0)
    decided = {
        "vocab_size": words.tokenizer.get_vocab_size(),
        "bos_token_id": words.begin,
        "eos_token_id": words.end,
        "pad_token_id": words.pad,
    }
    if wanted.tier == "prefix":
        return {"width": width, "config": {"n_positions": longest, **config, **decided}}
    if (model := str(facts.get("model"))) not in MODELS:
        raise ConfigError(f"{recipe}: describe.architecture.model {model}: there are {', '.join(MODELS)}")
    if model == "blip":
        decided["sep_token_id"] = words.end
    at = _WORDS_AT[model]
    positions = {"n_positions": longest} if model == "vision-encoder-decoder" else {"max_position_embeddings": longest}
    if not at:
        config = {**positions, **config, **decided}
    else:
        more = {"is_decoder": True, "add_cross_attention": True} if model == "vision-encoder-decoder" else {}
        config[at[0]] = {**positions, **more, **config.get(at[0], {}), **decided}
    return {**facts, "config": config}


def caption_network(name: str, wanted: Describe, plan: DescriberPlan, seed: int) -> Any:
    """The network as training begins, on the CPU, drawn from the seed or with the weights of what it starts from."""
    with seeded(seed):
        if wanted.tier == "prefix":
            network: Any = PrefixNet(plan.architecture["width"], plan.prefix, plan.architecture["config"])
        else:
            network = build_captioner(name, plan.architecture)
    if plan.start is not None:
        path = weights.resolve_part(plan.start.parts[0])
        load_body(network, weights.read_state_dict(path, plan.start.weights), f"{plan.start.name}: {path}")
    assert isinstance(network, nn.Module)
    return network.requires_grad_(True).train()


def describer_facts(wanted: Describe, plan: DescriberPlan, sees: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of the card of what was trained; `sees`: `preprocessing`, or `detector` and `embedding`."""
    search = {"beams": wanted.beams, "no_repeat": wanted.no_repeat, "most_tokens": wanted.most_tokens}
    return {"tier": wanted.tier, "architecture": plan.architecture, "prefix": plan.prefix, **sees, **search}


def tokenizer_json(plan: DescriberPlan) -> str:
    """The tokenizer as the header of the weights keeps it."""
    return str(plan.words.tokenizer.to_str())
