"""Train a describer, which is a network that predicts the prompt of an image.

`make_captioning_job` prepares the training data. It calls `make_plan`, which decides the network's
architecture and tokenizer. In each worker, `make_caption_learner` returns the `CaptionLearner` that
makes the training steps. If the network reads embeddings instead of pixels, `embedding_batches`
yields the worker's batches.
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
from ray_app.training.embeddings import read_embeddings
from ray_app.training.job import CaptionData, TrainingJob
from ray_app.training.learner import OPTIMISER, WEIGHTS, Batch, BatchLoss, Learner
from ray_app.training.networks import seeded

TOKENIZER = "tokenizer.json"


class CaptionLearner(Learner):
    """Trains the network of a describer, which predicts the prompts of images or embeddings.

    A batch of n images has the arrays `row` (n,), the row numbers in the training split, and
    `usable` (n,), whether the image could be read. It also has `image` (n, H, W, 3) uint8 or
    `embedding` (n, d). The loss is the mean cross-entropy of all prompt tokens in this process's
    batch. The prompts of unreadable images do not count.
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
        """Move the network to its device and freeze parameters that no gradient reaches.

        Args:
            recipe: The recipe.
            network: The network.
            tokenizer: The tokenizer of the prompts.
            targets: Token numbers (rows, L) of all training prompts, with IGNORED after the end.
            preprocessing: How images are prepared. None if the network reads embeddings.
            device: The device.
            total_steps: Number of steps of the whole training.
            rank: Rank of this process.
        """
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

    def prepare(self, batch: Batch) -> tuple[Batch, int]:
        """Return the batch with the array `targets` added, and the number of tokens to predict.

        `targets` (n, L) has the token numbers of each image's prompt. The number of tokens is at
        least 1.
        """
        targets = self._targets[batch["row"]].astype(np.int64)
        targets[~batch["usable"]] = IGNORED
        return {**batch, "targets": targets}, max(int((targets != IGNORED).sum()), 1)

    def answer(self, part: Batch) -> torch.Tensor:
        """Return the logits (n, L, V) of the prompt tokens of one micro-batch.

        L is the number of tokens of the longest training prompt, but at most `describe.most_tokens`.
        The other prompts are padded. V is the size of the tokenizer's vocabulary.
        """
        if self._normalise is None:
            inputs = torch.tensor(part["embedding"], device=self.device)
        else:
            # torch.tensor copies, because arrays of an object store are read-only.
            inputs = self._normalise(torch.tensor(part["image"]).to(self.device)).contiguous()
        answer: torch.Tensor = self._model(
            inputs,
            make_decoder_inputs(torch.from_numpy(part["targets"]).to(self.device), self._tokenizer),
        )
        return answer

    def loss(self, answer: torch.Tensor, part: Batch, count: int) -> BatchLoss:
        """Return the cross-entropy of the prompt tokens of one micro-batch.

        Args:
            answer: Logits (n, L, V) of the tokens.
            part: The micro-batch, with `targets`.
            count: Number of tokens in this process's batch of the step. The summed loss of the
                micro-batch is divided by it.
        """
        targets = torch.from_numpy(part["targets"]).to(self.device).flatten()
        total = nn.functional.cross_entropy(
            answer.float().flatten(0, 1), targets, ignore_index=IGNORED, reduction="sum"
        )
        return BatchLoss(total / count, {})

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Return the weights as a describer's weight file names them, and the optimiser's state."""
        return captioners.body_state(self.network), self.optimiser.state_dict()

    def restore(self, folder: Path) -> None:
        """Load the weights and the optimiser's state of a checkpoint from its local folder."""
        captioners.load_body(self.network, load_file(folder / WEIGHTS), str(folder / WEIGHTS))
        self.optimiser.load_state_dict(
            torch.load(folder / OPTIMISER, weights_only=True, map_location="cpu")
        )


def make_decoder_inputs(targets: torch.Tensor, tokenizer: CaptionTokenizer) -> torch.Tensor:
    """Return the decoder's input for teacher forcing: `targets` (n, L), shifted by one token.

    The first input of each prompt is the token `begin`. Inputs after the end of a prompt are the
    token `pad`.
    """
    begin = torch.full_like(targets[:, :1], tokenizer.begin)
    shifted = torch.cat([begin, targets[:, :-1]], dim=1)
    return shifted.masked_fill(shifted == IGNORED, tokenizer.pad)


def _freeze_without_gradient(
    network: Any, blank: torch.Tensor, tokenizer: CaptionTokenizer
) -> None:
    """Freeze parameters that no gradient reaches, such as an encoder's pooler; DDP would fail."""
    with torch.random.fork_rng(devices=[]):
        network(
            blank, torch.tensor([[tokenizer.begin, tokenizer.end]], device=blank.device)
        ).float().sum().backward()
    for parameter in network.parameters():
        parameter.requires_grad_(parameter.requires_grad and parameter.grad is not None)
        parameter.grad = None


@dataclass(frozen=True)
class DescriberPlan:
    """The architecture, tokenizer, and initial weights of a describer to train.

    A describer is a model that predicts prompts.

    Attributes:
        architecture: The key `architecture` of the describer's card, with all values filled in.
        prefix: Number of tokens into which the network turns an embedding.
        tokenizer: The tokenizer of the prompts.
        start: The card of the describer whose weights the network starts from. None for random
            weights.
    """

    architecture: dict[str, Any]
    prefix: int
    tokenizer: CaptionTokenizer
    start: DescriberCard | None = None


def require_section(config: Recipe) -> Describe:
    """Return the recipe's section `describe`. Raise ConfigError if the recipe lacks it."""
    if config.describe is None:
        raise ConfigError(
            f"{config.name}: method describe needs the section `describe`",
            hint="add the section, such as describe: {tier: prefix, architecture: …}",
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
    """Decide the architecture and tokenizer of the describer that a recipe trains.

    A describer is a model that predicts the prompt of an image.

    If the recipe's `describe.start` names a describer, its architecture and tokenizer are used.
    Otherwise the architecture is that of the recipe.

    Args:
        recipe: Name of the recipe, for errors.
        section: The recipe's section `describe`.
        width: Length of an embedding, for a describer that reads embeddings (tier prefix). None for
            one that reads pixels (tier captioner).
        prompts: Training prompts, on which a tokenizer is trained if there is none yet.
        tokenizer: JSON of the tokenizer that an earlier session of this training stored. None if
            there is none.

    Returns:
        The plan, from which `build_caption_network` builds the network.

    Raises:
        ConfigError: The card of `start` has another tier or embedding size, or the model of
            `architecture` is unknown.
        DetectorError: The files of `start` are missing or do not fit.
    """
    import tokenizers

    if section.start is not None:
        card = load_describer(section.start)
        if card.tier != section.tier:
            raise ConfigError(
                f"{recipe}: describe.start: {card.name} has the tier {card.tier}, must be {section.tier} as in describe.tier",
                hint=f"set describe.tier to {card.tier}, or describe.start to a describer of the tier {section.tier}",
            )
        if card.tier == "prefix" and card.architecture.get("width") != width:
            raise ConfigError(
                f"{recipe}: describe.start: {card.name} reads {card.architecture.get('width')} numbers per image, the detector gives {width}",
                hint="set describe.start to a describer of this detector",
            )
        start_tokenizer = read_tokenizer(card, resolve_part(card.parts[0]))
        return DescriberPlan(dict(card.architecture), card.prefix, start_tokenizer, card)
    trained = (
        train_tokenizer(prompts, section.vocabulary)
        if tokenizer is None
        else from_trained(tokenizers.Tokenizer.from_str(tokenizer))
    )
    architecture = _complete_architecture(recipe, section, trained, width)
    return DescriberPlan(architecture, section.prefix, trained)


def _complete_architecture(
    recipe: str, section: Describe, tokenizer: CaptionTokenizer, width: int | None
) -> dict[str, Any]:
    """Return the recipe's architecture with the values that tokenizer and embedding decide."""
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
        given = config.get("text_config", {})
        text["sep_token_id"] = tokenizer.end
        config["text_config"] = {"max_position_embeddings": positions, **given, **text}
    elif model == "vision-encoder-decoder":
        given = config.get("decoder", {})
        decoder = {"n_positions": positions, "is_decoder": True, "add_cross_attention": True}
        config["decoder"] = {**decoder, **given, **text}
    else:
        raise ConfigError(
            f"{recipe}: describe.architecture.model must be git, blip, or vision-encoder-decoder, got {model}"
        )
    return {**section.architecture, "config": config}


def build_caption_network(name: str, section: Describe, plan: DescriberPlan, seed: int) -> Any:
    """Build a describer's network on the CPU, with the weights of `plan.start` or random weights.

    A describer is a model that predicts the prompt of an image.

    Args:
        name: Name of the recipe, for errors.
        section: The recipe's section `describe`, whose tier decides the kind of network.
        plan: The architecture and initial weights, see `make_plan`.
        seed: Seed of random weights.

    Returns:
        The network in training mode. All of its parameters have `requires_grad`.
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


def make_captioning_job(job: TrainingJob) -> TrainingJob:
    """Return a copy of the job whose field `captions` has the training data of a describer.

    If the describer reads pixels (tier captioner), `preprocessing` of the copy's card is set as the
    describer needs it. A tokenizer that is trained here is stored in the training's directory.
    Later sessions read it from there.

    Raises:
        ConfigError: The section `describe` is invalid.
        DetectorError: Files of `describe.start` are missing or do not fit.
    """
    section = require_section(job.config)
    prompts = job.rows("train")["input"].combine_chunks().field("prompt").to_pylist()
    embedded = read_embeddings(job.out, "train") if section.tier == "prefix" else None
    width = None if embedded is None else embedded.vectors.shape[1]
    stored_tokenizer = job.out.read(TOKENIZER).decode() if job.out.exists(TOKENIZER) else None
    plan = make_plan(
        job.config.name, section, width=width, prompts=prompts, tokenizer=stored_tokenizer
    )
    if plan.start is None and stored_tokenizer is None:
        job.out.write(TOKENIZER, plan.tokenizer.tokenizer.to_str().encode())
    if job.mirror is not None and plan.start is not None:
        for part in plan.start.parts:
            publish_part(part, job.mirror)
    targets = plan.tokenizer.encode_targets(prompts, section.most_tokens)
    if embedded is not None:
        vectors = np.full((len(prompts), embedded.vectors.shape[1]), np.nan, np.float32)
        vectors[embedded.rows] = embedded.vectors
        return replace(job, captions=CaptionData(plan, targets, vectors))
    pixels = (
        section.preprocessing
        or (plan.start.preprocessing if plan.start else None)
        or job.card.preprocessing
    )
    if pixels.shape is None:
        raise ConfigError(
            f"{job.config.name}: a captioner needs images of one size, but its preprocessing keeps their sizes",
            hint="set a size, such as describe: {preprocessing: {resize: {mode: squash, size: 224}}}",
        )
    card = job.card.model_copy(update={"preprocessing": pixels})
    return replace(job, captions=CaptionData(plan, targets), card=card)


def make_caption_learner(
    job: TrainingJob, captions: CaptionData, device: str, rank: int
) -> CaptionLearner:
    """Return the learner of one worker, which makes its training steps.

    Its network has the weights that training starts from.

    Args:
        job: The job, see `make_captioning_job`.
        captions: The training data of the describer, which are `job.captions`.
        device: Device of the worker.
        rank: Rank of the worker.

    Returns:
        The learner, at step 0.
    """
    config, plan = job.config, captions.plan
    network = build_caption_network(config.name, require_section(config), plan, config.loop.seed)
    pixels = None if captions.vectors is not None else job.card.preprocessing
    return CaptionLearner(
        config, network, plan.tokenizer, captions.targets, preprocessing=pixels, device=device,
        total_steps=job.total_steps, rank=rank,
    )  # fmt: skip


def embedding_batches(
    job: TrainingJob, vectors: npt.NDArray[np.float32], first: int, rank: int, world: int
) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """Yield one worker's batches of embeddings, from step `first` to the last step.

    A batch of n images has the arrays `row`, the row numbers in the training split, `image_id`, and
    `usable`, each (n,), and `embedding` (n, d). An image that could not be read is not usable, and
    its embedding is 0.

    Args:
        job: The job.
        vectors: Embeddings (rows, d) of the training images, NaN if an image could not be read.
        first: Number of the first step.
        rank: Rank of the worker.
        world: Number of workers.
    """
    ids = job.rows("train")["image_id"].to_numpy()
    for step in range(first, job.total_steps):
        rows, _ = job.order.shard(step, rank, world)
        step_vectors = vectors[rows]
        usable = np.asarray(np.isfinite(step_vectors).all(axis=1))
        yield {
            "row": rows,
            "image_id": ids[rows],
            "usable": usable,
            "embedding": np.where(usable[:, None], step_vectors, 0),
        }
