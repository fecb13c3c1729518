"""How a network learns to predict prompts: what it will be (`make_plan`, `caption_network`), its
step (`CaptionLearner`), and what workers are given for it (`captioning_job`, `caption_learner`,
`embedding_batches`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file
from torch import nn

from ray_app.detectors.checkpoints import read_state_dict
from ray_app.detectors.detector import Normalise
from ray_app.detectors.precision import resolve_precision
from ray_app.detectors.preprocessing import Preprocessing
from ray_app.detectors.weights import publish_part, resolve_part
from ray_app.errors import ConfigError
from ray_app.identification import captioners
from ray_app.identification.cards import DescriberCard, load_describer
from ray_app.identification.tokenizer import (
    IGNORED,
    CaptionTokenizer,
    from_trained,
    read_tokenizer,
    train_tokenizer,
)
from ray_app.training.config import Describe, Recipe
from ray_app.training.embeddings import kept_embeddings
from ray_app.training.job import CaptionData, TrainingJob
from ray_app.training.learner import OPTIMISER, WEIGHTS, Batch, BatchLoss, Learner
from ray_app.training.networks import seeded

TOKENIZER = "tokenizer.json"


class CaptionLearner(Learner):
    """A network that learns to say `targets` (rows, L), numbers of tokens with IGNORED after the
    end, about what it is given.

    Batches hold `row` (n,), `usable` (n,), and `image` (n, H, W, 3) uint8 or, where `preprocessing`
    is None, `embedding` (n, d). The loss is the mean cross-entropy of the tokens of a process's
    share of the batch; images that could not be read have none.
    """

    def __init__(
        self,
        recipe: Recipe,
        network: Any,
        tokenizer: CaptionTokenizer,
        targets: npt.NDArray[np.int32],
        *,
        preprocessing: Preprocessing | None,
        device: str,
        total_steps: int,
        rank: int = 0,
    ) -> None:
        self._tokenizer, self._targets = tokenizer, targets
        self._normalise = None if preprocessing is None else Normalise(preprocessing).to(device)
        network.to(device)
        blank = (
            torch.ones(1, network.width)
            if preprocessing is None
            else torch.zeros(1, 3, *(preprocessing.shape or ()))
        )
        _freeze_without_gradient(network, blank.to(device), tokenizer)
        precision = resolve_precision(recipe.loop.precision, device, "auto")
        super().__init__(
            recipe, network, device=device, precision=precision, total_steps=total_steps, rank=rank
        )

    def prepared(self, batch: Batch) -> tuple[Batch, int]:
        """The share with its targets; its tokens are counted."""
        targets = self._targets[batch["row"]].astype(np.int64)
        targets[~batch["usable"]] = IGNORED
        return {**batch, "targets": targets}, max(int((targets != IGNORED).sum()), 1)

    def answer(self, part: Batch) -> torch.Tensor:
        """(n, L, V) logits of the tokens."""
        if self._normalise is None:
            given = torch.tensor(part["embedding"], device=self.device)
        else:
            # a copy: arrays of a store are read-only
            given = self._normalise(torch.tensor(part["image"]).to(self.device)).contiguous()
        answer: torch.Tensor = self._model(
            given,
            decoder_inputs(torch.from_numpy(part["targets"]).to(self.device), self._tokenizer),
        )
        return answer

    def loss(self, answer: torch.Tensor, part: Batch, count: int) -> BatchLoss:
        """Cross-entropy of the tokens, summed over the part."""
        wanted = torch.from_numpy(part["targets"]).to(self.device).flatten()
        total = nn.functional.cross_entropy(
            answer.float().flatten(0, 1), wanted, ignore_index=IGNORED, reduction="sum"
        )
        return BatchLoss(total / count, {})

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Weights as a describer's file holds them."""
        return captioners.body_state(self.network), self.optimiser.state_dict()

    def restore(self, folder: Path) -> None:
        """Every process reads its own folder."""
        captioners.load_body(self.network, load_file(folder / WEIGHTS), str(folder / WEIGHTS))
        self.optimiser.load_state_dict(
            torch.load(folder / OPTIMISER, weights_only=True, map_location="cpu")
        )


def decoder_inputs(targets: torch.Tensor, tokenizer: CaptionTokenizer) -> torch.Tensor:
    """(n, L) the tokens before each target: the begin, then the targets; fillings are the pad."""
    begin = torch.full_like(targets[:, :1], tokenizer.begin)
    before = torch.cat([begin, targets[:, :-1]], dim=1)
    return before.masked_fill(before == IGNORED, tokenizer.pad)


def _freeze_without_gradient(
    network: Any, blank: torch.Tensor, tokenizer: CaptionTokenizer
) -> None:
    """What no gradient reaches, such as an encoder's pooler, which DDP takes for a fault, does not
    learn.
    """
    with torch.random.fork_rng(devices=[]):
        network(
            blank, torch.tensor([[tokenizer.begin, tokenizer.end]], device=blank.device)
        ).float().sum().backward()
    for parameter in network.parameters():
        parameter.requires_grad_(parameter.requires_grad and parameter.grad is not None)
        parameter.grad = None


@dataclass(frozen=True)
class DescriberPlan:
    """The network of a describer to train.

    Attributes:
        architecture: The complete `architecture` of its card.
        prefix: Tokens of a prefix.
        tokenizer: Its tokenizer.
        start: The card whose weights it begins with.
    """

    architecture: dict[str, Any]
    prefix: int
    tokenizer: CaptionTokenizer
    start: DescriberCard | None = None


def section_of(config: Recipe) -> Describe:
    """The recipe's `describe`. Raises ConfigError where there is none."""
    if config.describe is None:
        raise ConfigError(
            f"{config.name}: method describe needs a section describe",
            hint="describe: {tier: prefix, architecture: …}",
        )
    return config.describe


def make_plan(
    recipe: str,
    section: Describe,
    *,
    width: int | None,
    prompts: Sequence[str] = (),
    tokenizer: str | None = None,
) -> DescriberPlan:
    """Return the plan of a recipe.

    Args:
        recipe: Its name, for errors.
        section: Its `describe`.
        width: Numbers of an embedding, for the tier prefix.
        prompts: Training prompts, on which a tokenizer is trained if there is none yet.
        tokenizer: JSON of the tokenizer that an earlier session trained.

    Raises:
        ConfigError: The section does not fit.
        DetectorError: The files of `start` are missing or do not fit.
    """
    import tokenizers

    if section.start is not None:
        card = load_describer(section.start)
        if card.tier != section.tier:
            raise ConfigError(
                f"{recipe}: describe.start: {card.name} is of the tier {card.tier}, not {section.tier}"
            )
        if card.tier == "prefix" and card.architecture.get("width") != width:
            raise ConfigError(
                f"{recipe}: describe.start: {card.name} reads other embeddings than the recipe's detector makes"
            )
        start_tokenizer = read_tokenizer(card, resolve_part(card.parts[0]))
        return DescriberPlan(dict(card.architecture), card.prefix, start_tokenizer, card)
    own = (
        train_tokenizer(prompts, section.vocabulary)
        if tokenizer is None
        else from_trained(tokenizers.Tokenizer.from_str(tokenizer))
    )
    architecture = _complete_architecture(recipe, section, own, width)
    return DescriberPlan(architecture, section.prefix, own)


def _complete_architecture(
    recipe: str, section: Describe, tokenizer: CaptionTokenizer, width: int | None
) -> dict[str, Any]:
    """Return the recipe's architecture with what the tokenizer and the embedding decide."""
    config = dict(section.architecture.get("config", {}))
    positions = section.most_tokens + 1
    text = {
        "vocab_size": tokenizer.tokenizer.get_vocab_size(),
        "bos_token_id": tokenizer.begin,
        "eos_token_id": tokenizer.end,
        "pad_token_id": tokenizer.pad,
    }
    if section.tier == "prefix":
        config = {"n_positions": positions + section.prefix, **config, **text}
        return {"width": width, "config": config}
    model = section.architecture.get("model")
    if model == "git":
        config = {"max_position_embeddings": positions, **config, **text}
    elif model == "blip":
        own = config.get("text_config", {})
        text["sep_token_id"] = tokenizer.end
        config["text_config"] = {"max_position_embeddings": positions, **own, **text}
    elif model == "vision-encoder-decoder":
        own = config.get("decoder", {})
        decoder = {"n_positions": positions, "is_decoder": True, "add_cross_attention": True}
        config["decoder"] = {**decoder, **own, **text}
    else:
        raise ConfigError(
            f"{recipe}: describe.architecture.model must be git, blip, or vision-encoder-decoder, got {model}"
        )
    return {**section.architecture, "config": config}


def caption_network(name: str, section: Describe, plan: DescriberPlan, seed: int) -> Any:
    """Return the network as training begins, on the CPU: drawn from the seed, or with the weights
    that it starts from.
    """
    with seeded(seed):
        network: Any = (
            captioners.build_prefix(name, plan.architecture, plan.prefix)
            if section.tier == "prefix"
            else captioners.build_captioner(name, plan.architecture)
        )
    if plan.start is not None:
        path = resolve_part(plan.start.parts[0])
        captioners.load_body(
            network, read_state_dict(path, plan.start.weights), f"{plan.start.name}: {path}"
        )
    return network.requires_grad_(True).train()


def captioning_job(job: TrainingJob) -> TrainingJob:
    """Return the job with what a describer learns from; for a captioner with its pixels on the
    card. The tokenizer is trained once, and kept. Raises ConfigError, DetectorError.
    """
    section = section_of(job.config)
    prompts = job.rows("train")["input"].combine_chunks().field("prompt").to_pylist()
    found = kept_embeddings(job.out, "train") if section.tier == "prefix" else None
    width = None if found is None else found.vectors.shape[1]
    kept = job.out.read(TOKENIZER).decode() if job.out.exists(TOKENIZER) else None
    plan = make_plan(job.config.name, section, width=width, prompts=prompts, tokenizer=kept)
    if plan.start is None and kept is None:
        job.out.write(TOKENIZER, plan.tokenizer.tokenizer.to_str().encode())
    if job.mirror is not None and plan.start is not None:
        for part in plan.start.parts:
            publish_part(part, job.mirror)
    targets = plan.tokenizer.encode_targets(prompts, section.most_tokens)
    if found is not None:
        vectors = np.full((len(prompts), found.vectors.shape[1]), np.nan, np.float32)
        vectors[found.rows] = found.vectors
        return replace(job, captions=CaptionData(plan, targets, vectors))
    pixels = (
        section.preprocessing
        or (plan.start.preprocessing if plan.start else None)
        or job.card.preprocessing
    )
    if pixels.shape is None:
        raise ConfigError(
            f"{job.config.name}: a captioner's pixels have one size",
            hint="describe: {preprocessing: {resize: {mode: squash, size: 224}}}",
        )
    card = job.card.model_copy(update={"preprocessing": pixels})
    return replace(job, captions=CaptionData(plan, targets), card=card)


def caption_learner(
    job: TrainingJob, captions: CaptionData, device: str, rank: int
) -> CaptionLearner:
    """Return the learner of one worker, as training begins."""
    config, plan = job.config, captions.plan
    network = caption_network(config.name, section_of(config), plan, config.loop.seed)
    pixels = None if captions.vectors is not None else job.card.preprocessing
    return CaptionLearner(
        config, network, plan.tokenizer, captions.targets, preprocessing=pixels, device=device,
        total_steps=job.total_steps, rank=rank,
    )  # fmt: skip


def embedding_batches(
    job: TrainingJob, vectors: npt.NDArray[np.float32], first: int, rank: int, world: int
) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """Yield the batches of one rank from step `first` to the last, of embeddings.

    `row`, `image_id` (n,), `usable` (n,), and `embedding` (n, d).
    """
    ids = job.rows("train")["image_id"].to_numpy()
    for step in range(first, job.total_steps):
        rows, _ = job.order.share(step, rank, world)
        given = vectors[rows]
        usable = np.asarray(np.isfinite(given).all(axis=1))
        yield {
            "row": rows,
            "image_id": ids[rows],
            "usable": usable,
            "embedding": np.where(usable[:, None], given, 0),
        }
