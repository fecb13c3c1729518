"""A predictor of prompts from labelled images with prompts: `describe` writes OUT/describer.yaml, and `metrics.json` last.

Embeddings once (`training.embeddings`), a network by Ray Train, and a measurement of the card beside the nearest training image's words
and chance. The same command resumes. The weights are those of the last step: no validation chooses among checkpoints.

A trained prompt predictor as files: `write_card` and `write_network`, and with `with_figures` how well it predicts.

It is compared with what costs nothing (`compared`): the nearest training image's words, and words at random.
"""

import json
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import yaml

from ray_app.attribution import captions
from ray_app.attribution.captions import Caption, Describer
from ray_app.attribution.cards import DescriberCard, load_describer
from ray_app.attribution.tokenizer import HEADER
from ray_app.datasets.splits import Splits
from ray_app.detectors import DetectorCard, files_by_hash
from ray_app.errors import DetectorError
from ray_app.metrics import arrays, intervals
from ray_app.metrics.text import bleu4, rouge_l, token_f1, words_of
from ray_app.storage import Store
from ray_app.training import checkpoints, embeddings, export, finish, run_directory, validate
from ray_app.training.captioner.targets import TOKENIZER, CaptionTargets, make_targets, section_of, seen_by_captioner, share_targets
from ray_app.training.config import Recipe, TrainConfig
from ray_app.training.job import TrainingJob
from ray_app.training.loader import plain_loader

CARD, WEIGHTS = "describer.yaml", "describer.safetensors"
_PUBLISHED = {"exact": "share of prompts predicted word for word", "token_f1": "token F1", "bleu4": "BLEU-4", "rouge_l": "ROUGE-L"}
MOST = 20_000  # images that figures are made of; of more, the first so many of a drawn order
_CHANCE = 9  # names the stream of chance, beside those of order, augmentation and dropout
_WHY = "no image with both a predicted and a true prompt"


def write_index(folder: Path, recipe: Recipe, sees: Mapping[str, Any], vectors: npt.NDArray[Any], prompts: list[str]) -> DescriberCard:
    """FOLDER/describer.yaml of the tier retrieval; `sees`: `detector` and `embedding`."""
    from safetensors.numpy import save_file

    save_file(captions.index_tensors(vectors, prompts), folder / WEIGHTS)
    return write_card(folder, recipe, {"tier": "retrieval", **sees})


def write_network(folder: Path, recipe: Recipe, facts: Mapping[str, Any], state: Mapping[str, Any], tokenizer: str) -> DescriberCard:
    """FOLDER/describer.yaml of a network: `state` as files hold it, the tokenizer in the file's header; `facts`: keys of the card."""
    from safetensors.torch import save_file

    save_file(dict(state), folder / WEIGHTS, metadata={HEADER: tokenizer})
    return write_card(folder, recipe, facts)


def write_card(folder: Path, recipe: Recipe, facts: Mapping[str, Any]) -> DescriberCard:
    """The card of the file that lies in FOLDER, written and read back."""
    content = {
        "name": recipe.name,
        "title": recipe.export.title or recipe.title or recipe.name,
        "weights": {"uri": WEIGHTS, "sha256": files_by_hash.file_sha256(folder / WEIGHTS)},
        "licence": recipe.export.licence or _inherited(recipe),
        "source": recipe.source or f"touchstone train {recipe.name}",
        "training_data": {
            "name": export.data_name(recipe),
            "licence": recipe.data.licence or "none stated",
            "source": export.places_of(recipe) or None,
        },
        "notes": list(recipe.export.notes),
        **facts,
    }
    (folder / CARD).write_bytes(_yaml(DescriberCard.model_validate(content)))
    return load_describer(folder / CARD)


def _inherited(recipe: Recipe) -> str:
    """The stricter of the licences of the weights that it began from and of the data."""
    start = recipe.describe.start if recipe.describe is not None else None
    found = (load_describer(start).licence if start else None, recipe.data.licence)
    return max(filter(None, found), key=lambda licence: export.STRICTNESS.index(export.terms_of(licence)), default="none stated")


def with_figures(card: bytes, recipe: Recipe, figures: Mapping[str, Any]) -> bytes:
    """The YAML of a card with what was measured: `figures` of one split, rows of `metrics.arrays.MetricEstimate` by name."""
    content = {"set": f"{recipe.data.name or 'its own data'}, held out", "verified": True, "source": f"touchstone train {recipe.name}"}
    rows = [(name, figures[name]) for name in _PUBLISHED if figures[name]["value"] is not None]
    published = [{"metric": _PUBLISHED[name], "value": row["value"], "n": row["n"], **content} for name, row in rows]
    return _yaml(DescriberCard.model_validate(yaml.safe_load(card) | {"published": published}))


def _yaml(card: DescriberCard) -> bytes:
    content = card.model_dump(mode="json", exclude_defaults=True)
    text: str = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=140)
    return text.encode()


def compared(truth: Sequence[str], said: Mapping[str, Sequence[str] | str]) -> dict[str, dict[str, Any]]:
    """Per system its figures against the `truth` (n,), each with a 95 % interval: `exact` (the share whose words are all right and in
    order, without case and punctuation), `token_f1`, `bleu4`, `rouge_l`. A text in place of a system's words says why it has none.
    """
    return {name: _figures(truth, texts) for name, texts in said.items()}


def chance_prompts(train: Sequence[str], count: int, seed: int) -> dict[str, list[str]]:
    """What knows nothing of the image says of `count` images: `random`, any training prompt; `most_frequent`, always the same."""
    drawn = np.random.default_rng([seed, _CHANCE]).integers(len(train), size=count)
    commonest = min(Counter(train).items(), key=lambda item: (-item[1], item[0]))[0]
    return {"random": [train[place] for place in drawn], "most_frequent": [commonest] * count}


def _figures(truth: Sequence[str], texts: Sequence[str] | str) -> dict[str, Any]:
    if isinstance(texts, str):
        return {name: arrays.undefined(texts).row() for name in ("exact", "token_f1", "bleu4", "rouge_l")}
    if len(truth) > MOST:
        places = np.random.default_rng(_CHANCE).permutation(len(truth))[:MOST]
        truth, texts = [truth[place] for place in places], [texts[place] for place in places]
    exact = sum(words_of(one) == words_of(other) for one, other in zip(texts, truth, strict=True))
    return {
        "exact": intervals.proportion(exact, len(truth), _WHY).row(),
        "token_f1": token_f1(texts, truth).row(),
        "bleu4": bleu4(texts, truth).row(),
        "rouge_l": rouge_l(texts, truth).row(),
    }


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
        embeddings.require_own_weights(job)
    nearest = _nearest_or_why(job, needed=section.tier != "captioner")
    if section.tier == "retrieval":
        assert not isinstance(nearest, str)
        said = nearest
    else:
        learning = _taught(job)
        fit(learning)
        said = validate.on_checkpoint(learning, checkpoints.kept(job.out)[-1].name, captions_by_network)
        finish.write_curves(job.out, list(run_directory.read_history(job.out, run_directory.HISTORY)), [])
    facts = _metrics(job, findings, claim, said, nearest)
    facts["seconds"] = round(time.monotonic() - began, 2)
    published = facts["figures"]["test" if "test" in said else "validation"]["describer"]
    job.out.write(CARD, with_figures(job.out.read(CARD), job.config, published))
    job.out.write(finish.METRICS, json.dumps(facts, indent=2, ensure_ascii=False).encode())
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
        embeddings.compute_embeddings(job, {"train": None, **{split: _rows(job, split) for split in _judged(job)}})
        found: dict[str, CaptionedRows] = validate.on_ray(job, captions_by_retrieval)
    except DetectorError as error:
        if needed:
            raise
        return f"{job.card.name} gives no embeddings to look up: {error.message}"
    return found


def captions_by_retrieval(job: TrainingJob) -> dict[str, CaptionedRows]:
    """Build the index of the training images and ask it; it is written where the recipe's tier is retrieval."""
    from ray_app.attribution.captioners import load_describing

    found = embeddings.kept_embeddings(job.out, "train")
    with tempfile.TemporaryDirectory(prefix="touchstone-") as folder:
        prompts = embeddings.column_of(job.rows("train"), found.rows, "prompt")
        sees = {"detector": job.card.name, "embedding": embeddings.embedding_of(job.card, found)}
        describer = load_describing(write_index(Path(folder), job.config, sees, found.vectors, prompts))
        if section_of(job.config).tier == "retrieval":
            _hand_out(job.out, Path(folder))
        return {split: _predicted_from_embeddings(job, describer, split) for split in _judged(job)}


def captions_by_network(job: TrainingJob, folder: Path) -> dict[str, CaptionedRows]:
    """Export the network of a checkpoint's folder to the run, and ask the describer that it became."""
    import ray
    from safetensors.torch import load_file

    from ray_app.attribution.captioners import load_describing
    from ray_app.training.captioner.learner import describer_facts, tokenizer_json
    from ray_app.training.learner import WEIGHTS as LEARNED

    taught: CaptionTargets = ray.get(job.shared["taught"])
    plan, section = taught.plan(job.config), section_of(job.config)
    sees: dict[str, Any] = {"preprocessing": job.card.preprocessing.model_dump(mode="json")}
    if section.tier == "prefix":
        sees = {"detector": job.card.name, "embedding": embeddings.embedding_of(job.card, embeddings.kept_embeddings(job.out, "train"))}
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
    found = embeddings.kept_embeddings(job.out, "train") if section_of(job.config).tier == "prefix" else None
    kept = job.out.read(TOKENIZER).decode() if job.out.exists(TOKENIZER) else None
    taught = make_targets(job.config, prompts, None if found is None else found.vectors.shape[1], kept)
    if kept is None and taught.tokenizer is not None:
        job.out.write(TOKENIZER, taught.tokenizer.encode())
    return share_targets(job if found is not None else seen_by_captioner(job), taught, found)


def _predicted_from_embeddings(job: TrainingJob, describer: Describer, split: str) -> CaptionedRows:
    found = embeddings.kept_embeddings(job.out, split)
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
    return validate.chosen_rows(job) if split == "validation" else np.arange(len(job.rows(split)))


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
        truth = embeddings.column_of(job.rows(split), one.rows, "prompt")
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
        "recipe": run_directory.recipe_of(job.config),
        "environment": {**claim["environment"], "workers": job.layout.workers},
    }


def _by_row(said: CaptionedRows, rows: Rows) -> list[str]:
    texts = {int(row): found.text for row, found in zip(said.rows, said.words, strict=True)}
    return [texts.get(int(row), "") for row in rows]


def _predictions(job: TrainingJob, split: str, said: CaptionedRows) -> bytes:
    """Per image the prompt and the prediction: columns as result rows have them."""
    columns = {
        "prompt": pa.array(embeddings.column_of(job.rows(split), said.rows, "prompt"), pa.string()),
        "predicted_prompt": pa.array([found.text for found in said.words], pa.string()),
        "prompt_likelihood": pa.array([found.likelihood for found in said.words], pa.float32()),
    }
    return finish.rows_file(job.rows(split).take(pa.array(said.rows)), columns)
