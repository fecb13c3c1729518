"""What Ray Train's workers need to teach words: `share_targets` shares targets, tokenizer and embeddings; `word_learner` and
`embedding_batches` use them.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ray_app.datasets.sampling import SampleOrder
from ray_app.detectors.weights import publish_part
from ray_app.errors import ConfigError
from ray_app.training.captioner.learner import CaptionLearner, DescriberPlan, caption_network, make_plan, starting_card, tokenizer_json
from ray_app.training.config import Describe, TrainConfig
from ray_app.training.embeddings import Embeddings
from ray_app.training.job import TrainingJob

TOKENIZER = "tokenizer.json"
Batch = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class CaptionTargets:
    """What is the same for all workers. `tokenizer`: JSON of the trained one, None where the recipe starts from a card; `width`: of an
    embedding, for prefix; `targets` (rows of training, L).
    """

    tokenizer: str | None
    width: int | None
    targets: npt.NDArray[np.int32]

    def plan(self, config: TrainConfig) -> DescriberPlan:
        """The plan of the recipe."""
        return make_plan(config.name, section_of(config), width=self.width, tokenizer=self.tokenizer)


def section_of(config: TrainConfig) -> Describe:
    """The recipe's `describe`. Raises ConfigError where there is none."""
    if config.describe is None:
        raise ConfigError(f"{config.name}: method describe needs a section describe", hint="describe: {tier: prefix, architecture: …}")
    return config.describe


def seen_by_captioner(job: TrainingJob) -> TrainingJob:
    """The same job with the pixels that a captioner sees on its card. Raises ConfigError where they have no one size."""
    section = section_of(job.config)
    start = starting_card(job.config.name, section)
    pixels = section.preprocessing or (start.preprocessing if start else None) or job.card.preprocessing
    if pixels.shape is None:
        raise ConfigError(
            f"{job.config.name}: a captioner's pixels have one size", hint="describe: {preprocessing: {resize: {mode: squash, size: 224}}}"
        )
    return replace(job, card=job.card.model_copy(update={"preprocessing": pixels}))


def make_targets(config: TrainConfig, prompts: list[str], width: int | None, tokenizer: str | None) -> CaptionTargets:
    """From the prompts of the training rows, in their order; `tokenizer`: one that an earlier session of the command has trained."""
    section = section_of(config)
    plan = make_plan(config.name, section, width=width, prompts=prompts, tokenizer=tokenizer)
    trained = None if plan.start is not None else tokenizer_json(plan)
    return CaptionTargets(trained, width, plan.words.targets(prompts, section.most_tokens))


def share_targets(job: TrainingJob, taught: CaptionTargets, found: Embeddings | None) -> TrainingJob:
    """The job with it in the object store; `found`: of the training split, for prefix."""
    import ray

    start = starting_card(job.config.name, section_of(job.config))
    if job.mirror is not None and start is not None:
        for part in start.parts:
            publish_part(part, job.mirror)
    shared = {**job.shared, "taught": ray.put(taught)}
    if found is not None:
        shared["vectors"] = ray.put(embeddings_by_row(found, len(taught.targets)))
    return replace(job, shared=shared)


def embeddings_by_row(found: Embeddings, count: int) -> npt.NDArray[np.float32]:
    """(count, d) the embeddings by row; NaN where an image could not be read."""
    vectors = np.full((count, found.vectors.shape[1]), np.nan, np.float32)
    vectors[found.rows] = found.vectors
    return vectors


def word_learner(job: TrainingJob, device: str, rank: int) -> CaptionLearner:
    """The learner of one worker, as training begins."""
    import ray

    taught: CaptionTargets = ray.get(job.shared["taught"])
    return make_learner(job.config, taught, None if "vectors" in job.shared else job.card.preprocessing, device, job.total_steps, rank)


def make_learner(
    config: TrainConfig, taught: CaptionTargets, preprocessing: Any, device: str, total_steps: int, rank: int = 0
) -> CaptionLearner:
    """The same without Ray."""
    plan = taught.plan(config)
    network = caption_network(config.name, section_of(config), plan, config.loop.seed)
    return CaptionLearner(
        config, network, plan.words, taught.targets, preprocessing=preprocessing, device=device, total_steps=total_steps, rank=rank
    )


def embedding_batches(job: TrainingJob, first: int, rank: int, world: int) -> Iterator[Batch]:
    """The batches of one rank from step `first` to the last, of embeddings: what `ray_data.batches` is for pixels."""
    import ray

    vectors, ids = ray.get(job.shared["vectors"]), job.rows("train")["image_id"].to_numpy()
    for step in range(first, job.total_steps):
        yield embedding_batch(vectors, ids, job.order(), step, rank, world)


def embedding_batch(
    vectors: npt.NDArray[np.float32], ids: npt.NDArray[np.int64], order: SampleOrder, step: int, rank: int, world: int
) -> Batch:
    """A rank's share of a step: `row`, `image_id` (n,), `usable` (n,), `embedding` (n, d) and `detail` (n,)."""
    rows, _ = order.share(step, rank, world)
    given = vectors[rows]
    usable = np.asarray(np.isfinite(given).all(axis=1))
    detail = np.where(usable, "", "could not be read when features were made")
    return {"row": rows, "image_id": ids[rows], "usable": usable, "embedding": np.where(usable[:, None], given, 0), "detail": detail}
