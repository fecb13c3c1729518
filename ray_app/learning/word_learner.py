"""One process's side of learning to say prompts: batches in, better weights. Knows no Ray and no files of images.

It is to a describer what `learner.Learner` is to a detector, with the same calls, so that the same workers run it: what happens depends on
recipe, batches and (seed, step, rank), and a training that is saved, loaded elsewhere and continued gives the same weights.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from ray_app.detectors.detector import Normalise
from ray_app.detectors.precision import autocast, forbid_tf32, resolve_precision
from ray_app.detectors.preprocessing import Preprocessing
from ray_app.errors import StorageError, said
from ray_app.learning.config import Recipe
from ray_app.learning.distributing import averaged, distribute, own_gradients, world_size
from ray_app.learning.learner import OPTIMISER, POSITION, WEIGHTS, StepFigures, begin_step, require_finite
from ray_app.learning.optimisers import make_optimiser
from ray_app.profiling.describing.speaking import body_state, load_body
from ray_app.profiling.describing.words import IGNORED, Words

Batch = Mapping[str, npt.NDArray[Any]]


class WordLearner:
    """A network that learns to say `targets` (rows, L), numbers of tokens with IGNORED after the end, about what it is given.

    `preprocessing`: of pixels; null where the batches hold embeddings. The loss is the mean cross-entropy of the tokens of a process's
    share of the batch; images that could not be read have none. Gradients are averaged over the processes.
    """

    def __init__(
        self,
        recipe: Recipe,
        network: Any,
        words: Words,
        targets: npt.NDArray[np.int32],
        *,
        preprocessing: Preprocessing | None,
        device: str,
        total_steps: int,
        rank: int = 0,
    ) -> None:
        self.recipe, self.device, self.total_steps, self.rank, self.step_number = recipe, device, total_steps, rank, 0
        self.precision = resolve_precision(recipe.loop.precision, device, "auto")
        if self.precision == "fp32" and torch.device(device).type == "cuda":
            forbid_tf32()
        self.network = network.to(device)
        self._words, self._targets = words, targets
        self._normalise = None if preprocessing is None else Normalise(preprocessing).to(device)
        _freeze_unheard(self.network, self._blank(preprocessing), words)
        self._model: nn.Module = distribute(self.network, "ddp", device)
        self._optimiser = make_optimiser(recipe.optimiser, self.network)

    def _blank(self, preprocessing: Preprocessing | None) -> torch.Tensor:
        if preprocessing is None:
            return torch.ones(1, self.network.width, device=self.device)
        assert preprocessing.shape is not None, "networks that are trained have one input size"
        return torch.zeros(1, 3, *preprocessing.shape, device=self.device)

    def step(self, batch: Batch) -> StepFigures:
        """Learn from this process's share of a batch: `row` (n,), `usable` (n,), and `image` (n, H, W, 3) uint8 or `embedding` (n, d).

        Raises TouchstoneError where loss or gradients are no numbers; the weights are then still those of the step before.
        """
        step = self.step_number
        rate = begin_step(self.recipe, self._optimiser, step, self.total_steps, self.rank)
        told = torch.stack([self._way_back(batch), torch.tensor(float(np.count_nonzero(~batch["usable"])), device=self.device)])
        learning = [parameter for parameter in self.network.parameters() if parameter.grad is not None]
        norm = get_total_norm([parameter.grad for parameter in learning if parameter.grad is not None])
        loss, unusable = averaged(told).tolist()
        figures = StepFigures(step, loss, {}, rate, norm.item(), round(unusable * world_size()))
        require_finite(figures)
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
            with own_gradients(self._model, alone=start != starts[-1]):
                with autocast(self.device, self.precision):
                    logits = self._model(self._given(batch, part), spoken_before(wanted, self._words))
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
            save_file(body_state(self.network), folder / WEIGHTS)
            torch.save(self._optimiser.state_dict(), folder / OPTIMISER)
            (folder / POSITION).write_text(json.dumps({"step": self.step_number}), encoding="utf-8")
        except (OSError, RuntimeError) as error:
            raise StorageError(f"{folder}: the checkpoint of step {self.step_number} cannot be written: {said(error)}") from error

    def load(self, folder: Path) -> None:
        """Go on from what `save` wrote; every process reads its own folder. Raises DetectorError where it is of another network."""
        load_body(self.network, load_file(folder / WEIGHTS), str(folder / WEIGHTS))
        self._optimiser.load_state_dict(torch.load(folder / OPTIMISER, weights_only=True, map_location="cpu"))
        self.step_number = json.loads((folder / POSITION).read_text(encoding="utf-8"))["step"]


def spoken_before(targets: torch.Tensor, words: Words) -> torch.Tensor:
    """(n, L) what was said before each target: the begin, then the targets; fillings are the pad."""
    begin = torch.full_like(targets[:, :1], words.begin)
    before = torch.cat([begin, targets[:, :-1]], dim=1)
    return before.masked_fill(before == IGNORED, words.pad)


def _freeze_unheard(network: Any, blank: torch.Tensor, words: Words) -> None:
    """What no gradient reaches, such as an encoder's pooler, which DDP takes for a fault, does not learn."""
    with torch.random.fork_rng(devices=[]):
        network(blank, torch.tensor([[words.begin, words.end]], device=blank.device)).float().sum().backward()
    for parameter in network.parameters():
        parameter.requires_grad_(parameter.requires_grad and parameter.grad is not None)
        parameter.grad = None
