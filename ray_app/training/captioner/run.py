"""A predictor of prompts from labelled images with prompts: `describe` writes OUT/describer.yaml, and `metrics.json` last.

Embeddings once (`training.embeddings`), a network by Ray Train, and a measurement of the card beside the nearest training image's words
and chance. The same command resumes. The weights are those of the last step: no validation chooses among checkpoints.
"""

import json
import tempfile
import time
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_app.attribution.captioners import Caption, Describer
from ray_app.datasets.splits import Splits
from ray_app.detectors import DetectorCard
from ray_app.errors import DetectorError
from ray_app.storage import Store
from ray_app.training import checkpoints
from ray_app.training.captioner.export import CARD, WEIGHTS, chance_prompts, compared, with_figures, write_index, write_network
from ray_app.training.captioner.targets import TOKENIZER, Taught, make_taught, put_taught, section_of, seen_by_captioner
from ray_app.training.config import TrainConfig
from ray_app.training.embeddings import column_of, compute_embeddings, embedding_of, kept_embeddings, require_own_weights
from ray_app.training.finish import METRICS, rows_file
from ray_app.training.job import TrainingJob
from ray_app.training.loader import plain_loader
from ray_app.training.run_directory import recipe_of
from ray_app.training.validate import chosen_rows, on_checkpoint, on_ray

SCHEMA = 1
EXAMPLES = 20  # prompts that `metrics.json` shows beside what was said
_AT_ONCE = 64
Rows = npt.NDArray[np.int64]


class CaptionedRows(NamedTuple):
    """The predictions for some rows of a split."""

    rows: Rows
    words: list[Caption]


def describe(job: TrainingJob, findings: Mapping[str, Any], claim: Mapping[str, Any], fit: Any) -> dict[str, Any]:
    """Compute embeddings, learn, measure and write; returns the content of `metrics.json`. `claim` is that of `train.json`; `fit(job)`
    trains by Ray Train, unless all is trained.

    Raises ConfigError for a recipe without `describe`, DetectorError for a detector without embeddings where they are needed, and what
    training raises.
    """
    section, began = section_of(job.config), time.monotonic()
    if section.tier != "captioner":
        require_own_weights(job)
    nearest = _nearest_or_why(job, needed=section.tier != "captioner")
    if section.tier == "retrieval":
        assert not isinstance(nearest, str)
        said = nearest
    else:
        learning = _taught(job)
        fit(learning)
        said = on_checkpoint(learning, checkpoints.kept(job.out)[-1].name, said_by_network)
    facts = _metrics(job, findings, claim, said, nearest)
    facts["seconds"] = round(time.monotonic() - began, 2)
    published = facts["figures"]["test" if "test" in said else "validation"]["describer"]
    job.out.write(CARD, with_figures(job.out.read(CARD), job.config, published))
    job.out.write(METRICS, json.dumps(facts, indent=2, ensure_ascii=False).encode())
    return facts


def planned(config: TrainConfig, card: DetectorCard, splits: Splits, steps: int) -> dict[str, Any]:
    """The dry run: what would be made, of how many images with prompts."""
    section = section_of(config)
    counts = {name: found["images"] for name, found in splits.findings["splits"].items()}
    content = {"method": config.method, "name": config.name, "tier": section.tier, "detector": card.name, "images": counts}
    return {**content, "steps": 0 if section.tier == "retrieval" else steps, "batch": config.loop.batch, "data": dict(splits.findings)}


def _nearest_or_why(job: TrainingJob, *, needed: bool) -> dict[str, CaptionedRows] | str:
    """What the nearest training images' words are for the other splits, or why nobody knows."""
    try:
        compute_embeddings(job, {"train": None, **{split: _rows(job, split) for split in _judged(job)}})
        found: dict[str, CaptionedRows] = on_ray(job, said_by_neighbours)
    except DetectorError as error:
        if needed:
            raise
        return f"{job.card.name} gives no embeddings to look up: {error.message}"
    return found


def said_by_neighbours(job: TrainingJob) -> dict[str, CaptionedRows]:
    """Build the index of the training images and ask it; it is written where the recipe's tier is retrieval."""
    from ray_app.attribution.captioners.registry import load_describing

    found = kept_embeddings(job.out, "train")
    with tempfile.TemporaryDirectory(prefix="touchstone-") as folder:
        prompts = column_of(job.rows("train"), found.rows, "prompt")
        sees = {"detector": job.card.name, "embedding": embedding_of(job.card, found)}
        describer = load_describing(write_index(Path(folder), job.config, sees, found.vectors, prompts))
        if section_of(job.config).tier == "retrieval":
            _hand_out(job.out, Path(folder))
        return {split: _predicted_from_embeddings(job, describer, split) for split in _judged(job)}


def said_by_network(job: TrainingJob, folder: Path) -> dict[str, CaptionedRows]:
    """Export the network of a checkpoint's folder to the run, and ask the describer that it became."""
    import ray
    from safetensors.torch import load_file

    from ray_app.attribution.captioners.registry import load_describing
    from ray_app.training.captioner.learner import describer_facts, tokenizer_json
    from ray_app.training.learner import WEIGHTS as LEARNED

    taught: Taught = ray.get(job.shared["taught"])
    plan, section = taught.plan(job.config), section_of(job.config)
    sees: dict[str, Any] = {"preprocessing": job.card.preprocessing.model_dump(mode="json")}
    if section.tier == "prefix":
        sees = {"detector": job.card.name, "embedding": embedding_of(job.card, kept_embeddings(job.out, "train"))}
    with tempfile.TemporaryDirectory(prefix="touchstone-") as scratch:
        facts = describer_facts(section, plan, sees)
        card = write_network(Path(scratch), job.config, facts, load_file(folder / LEARNED), tokenizer_json(plan))
        describer = load_describing(card, device=job.layout.judging_device)
        _hand_out(job.out, Path(scratch))
        ask = _predicted_from_embeddings if section.tier == "prefix" else _predicted_from_pixels
        return {split: ask(job, describer, split) for split in _judged(job)}


def _taught(job: TrainingJob) -> TrainingJob:
    """The job that workers are given to teach words; the tokenizer is trained once, and kept."""
    prompts = job.rows("train")["input"].combine_chunks().field("prompt").to_pylist()
    found = kept_embeddings(job.out, "train") if section_of(job.config).tier == "prefix" else None
    kept = job.out.read(TOKENIZER).decode() if job.out.exists(TOKENIZER) else None
    taught = make_taught(job.config, prompts, None if found is None else found.vectors.shape[1], kept)
    if kept is None and taught.tokenizer is not None:
        job.out.write(TOKENIZER, taught.tokenizer.encode())
    return put_taught(job if found is not None else seen_by_captioner(job), taught, found)


def _predicted_from_embeddings(job: TrainingJob, describer: Describer, split: str) -> CaptionedRows:
    found = kept_embeddings(job.out, split)
    return CaptionedRows(found.rows, list(describer.describe(found.vectors)))


def _predicted_from_pixels(job: TrainingJob, describer: Describer, split: str) -> CaptionedRows:
    loader, rows = plain_loader(job, split), _rows(job, split)
    read: list[Rows] = []
    words: list[Caption] = []
    for start in range(0, len(rows), _AT_ONCE):
        batch = loader.load(rows[start : start + _AT_ONCE], rows[start : start + _AT_ONCE])
        read.append(batch["row"][batch["usable"]])
        words += describer.describe(batch["image"][batch["usable"]])
        job.board.beat.remote()
    return CaptionedRows(np.concatenate(read), words)


def _judged(job: TrainingJob) -> list[str]:
    return [split for split in ("validation", "test") if split in job.shared]


def _rows(job: TrainingJob, split: str) -> Rows:
    return chosen_rows(job) if split == "validation" else np.arange(len(job.rows(split)))


def _hand_out(out: Store, folder: Path) -> None:
    for name in (WEIGHTS, CARD):
        out.write_file(name, folder / name)


def _metrics(
    job: TrainingJob,
    findings: Mapping[str, Any],
    claim: Mapping[str, Any],
    said: Mapping[str, CaptionedRows],
    nearest: Mapping[str, CaptionedRows] | str,
) -> dict[str, Any]:
    train = job.rows("train")["input"].combine_chunks().field("prompt").to_pylist()
    figures, likelihood, examples = {}, {}, {}
    for split, one in said.items():
        truth = column_of(job.rows(split), one.rows, "prompt")
        words = [found.text for found in one.words]
        near = nearest if isinstance(nearest, str) else _by_row(nearest[split], one.rows)
        figures[split] = compared(truth, {"describer": words, "retrieval": near, **chance_prompts(train, len(truth), job.config.loop.seed)})
        likely = [found.likelihood for found in one.words if found.likelihood is not None]
        likelihood[split] = float(np.mean(likely)) if likely else None
        shown = zip(truth, one.words, [None] * len(truth) if isinstance(near, str) else near, strict=True)
        examples[split] = [
            {"prompt": prompt, "predicted": found.text, "likelihood": found.likelihood, "nearest": other}
            for prompt, found, other in islice(shown, EXAMPLES)
        ]
        job.out.write(f"predictions/{split}.parquet", _predictions(job, split, one))
    return {
        "schema": SCHEMA,
        "method": job.config.method,
        "name": job.config.name,
        "title": job.config.title,
        "out": job.out.url,
        "tier": section_of(job.config).tier,
        "detector": job.card.name,
        "steps": 0 if section_of(job.config).tier == "retrieval" else job.total_steps,
        "n": {split: len(one.rows) for split, one in said.items()},
        "figures": figures,
        "mean_likelihood": likelihood,
        "examples": examples,
        "data": dict(findings),
        "recipe": recipe_of(job.config),
        "environment": {**claim["environment"], "workers": job.layout.workers},
    }


def _by_row(said: CaptionedRows, rows: Rows) -> list[str]:
    texts = {int(row): found.text for row, found in zip(said.rows, said.words, strict=True)}
    return [texts.get(int(row), "") for row in rows]


def _predictions(job: TrainingJob, split: str, said: CaptionedRows) -> bytes:
    """Per image the prompt and the prediction: columns as result rows have them."""
    columns = {
        "prompt": pa.array(column_of(job.rows(split), said.rows, "prompt"), pa.string()),
        "predicted_prompt": pa.array([found.text for found in said.words], pa.string()),
        "prompt_likelihood": pa.array([found.likelihood for found in said.words], pa.float32()),
    }
    return rows_file(job.rows(split).take(pa.array(said.rows)), columns)
