"""A predictor of prompts from labelled images with prompts: `describe` writes OUT/describer.yaml,
and `metrics.json` last.

Embeddings once (`training.embeddings`), a network by the training loop, and a measurement of the card
beside what costs nothing: the nearest training image's words, and words at random. The same command
resumes. The weights are those of the last step: no validation chooses among checkpoints.
"""

import json
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_app.config import parse_mapping
from ray_app.datasets.splits import Splits
from ray_app.detectors import DetectorCard
from ray_app.detectors.card_writer import card_text, write_card
from ray_app.errors import DetectorError
from ray_app.identification.captions import Caption, Describer, index_tensors
from ray_app.identification.cards import DescriberCard, load_describer
from ray_app.identification.tokenizer import HEADER
from ray_app.metrics import intervals, values
from ray_app.runs.rows import described_columns
from ray_app.training import checkpoints, embeddings, export, file_notes, run_directory, validate
from ray_app.training.captioner import DescriberPlan, captioning_job, section_of
from ray_app.training.config import Recipe, TrainConfig
from ray_app.training.job import TrainingJob
from ray_app.training.loader import plain_loader

SCHEMA = 1
CARD, WEIGHTS = "describer.yaml", "describer.safetensors"
EXAMPLES = 20
"""Prompts in `metrics.json` with their predictions."""
MAX_IMAGES = 20_000
"""Images that are measured. Of more, as many are drawn."""
_EXACT = "share of prompts predicted word for word"
_WORD = re.compile(r"[^\W_]+")
_CHANCE = 9
"""The random stream of this module, apart from those of order, augmentation, and dropout."""
_BATCH = 64
Rows = npt.NDArray[np.int64]


class CaptionedRows(NamedTuple):
    """The predictions for some rows of a split."""

    rows: Rows
    captions: list[Caption]


def describe(
    job: TrainingJob,
    findings: Mapping[str, Any],
    claim: Mapping[str, Any],
    fit: Callable[[TrainingJob], None],
) -> dict[str, Any]:
    """Compute embeddings, learn, measure and write; returns the content of `metrics.json`. `claim`
    is that of `train.json`; `fit(job)` trains by Ray Train, unless all is trained.

    Raises ConfigError for a recipe without `describe`, DetectorError for a detector without
    embeddings where they are needed, and what training raises.
    """
    section, began = section_of(job.config), time.monotonic()
    if section.tier != "captioner":
        embeddings.require_own_weights(job)
    nearest = _nearest_or_why(job, needed=section.tier != "captioner")
    if section.tier == "retrieval":
        assert not isinstance(nearest, str)
        predicted = nearest
    else:
        learning = captioning_job(job)
        fit(learning)
        log = file_notes.FileLog(job.out)
        predicted = validate.on_checkpoint(
            learning, checkpoints.list_checkpoints(job.out)[-1].name, captions_by_network
        )
        log.print_new()
        export.write_curves(
            job.out, list(run_directory.read_history(job.out, run_directory.HISTORY)), []
        )
    facts = _write_metrics(job, findings, claim, predicted, nearest)
    facts["seconds"] = round(time.monotonic() - began, 2)
    facts["unreadable"] = len(file_notes.write_unreadable(job.out))
    published = facts["figures"]["test" if "test" in predicted else "validation"]["describer"]
    job.out.write(CARD, add_published(job.out.read(CARD), job.config, published))
    job.out.write(export.METRICS, json.dumps(facts, indent=2, ensure_ascii=False).encode())
    return facts


def planned(config: TrainConfig, card: DetectorCard, splits: Splits, steps: int) -> dict[str, Any]:
    """The dry run: what would be made, of how many images with prompts."""
    section = section_of(config)
    counts = {name: found["images"] for name, found in splits.findings["splits"].items()}
    content = {
        "method": config.method,
        "name": config.name,
        "tier": section.tier,
        "detector": card.name,
        "images": counts,
    }
    return {
        **content,
        "steps": 0 if section.tier == "retrieval" else steps,
        "batch": config.loop.batch,
        "data": dict(splits.findings),
    }


def _nearest_or_why(job: TrainingJob, *, needed: bool) -> dict[str, CaptionedRows] | str:
    """What the nearest training images' words are for the other splits, or why nobody knows."""
    try:
        embeddings.compute_embeddings(
            job, {"train": None, **{split: _rows(job, split) for split in _judged(job)}}
        )
        found: dict[str, CaptionedRows] = validate.on_device(job, captions_by_retrieval)
    except DetectorError as error:
        if needed:
            raise
        return f"{job.card.name} gives no embeddings to look up: {error.message}"
    return found


def captions_by_retrieval(job: TrainingJob) -> dict[str, CaptionedRows]:
    """Build the index of the training images and ask it; it is written where the recipe's tier is
    retrieval.
    """
    found = embeddings.kept_embeddings(job.out, "train")
    prompts = embeddings.column_of(job.rows("train"), found.rows, "prompt")
    with tempfile.TemporaryDirectory(prefix="touchstone-") as folder:
        card = write_index(
            Path(folder), job.config, _sees_embeddings(job, found), found.vectors, prompts
        )
        return _asked(job, card, Path(folder), is_result=section_of(job.config).tier == "retrieval")


def captions_by_network(job: TrainingJob, folder: Path) -> dict[str, CaptionedRows]:
    """Export the network of a checkpoint's folder to the run, and ask the describer that it became."""
    from safetensors.torch import load_file

    from ray_app.training.learner import WEIGHTS as LEARNED

    assert job.captions is not None, "a network learned from captions"
    sees: dict[str, Any] = {"preprocessing": job.card.preprocessing.model_dump(mode="json")}
    if section_of(job.config).tier == "prefix":
        sees = _sees_embeddings(job, embeddings.kept_embeddings(job.out, "train"))
    with tempfile.TemporaryDirectory(prefix="touchstone-") as scratch:
        card = write_network(
            Path(scratch),
            job.config,
            job.captions.plan,
            sees,
            load_file(folder / LEARNED),
        )
        return _asked(job, card, Path(scratch), is_result=True)


def _sees_embeddings(job: TrainingJob, found: embeddings.Embeddings) -> dict[str, Any]:
    return {"detector": job.card.name, "embedding": embeddings.embedding_of(job.card, found)}


def _asked(
    job: TrainingJob, card: DescriberCard, folder: Path, *, is_result: bool
) -> dict[str, CaptionedRows]:
    """What the describer in FOLDER says of each split but the training one; its files go to the run
    where it is the result.
    """
    from ray_app.identification.captioners import build_describer

    describer = build_describer(card, device=job.layout.device)
    for name in (WEIGHTS, CARD) if is_result else ():
        job.out.write_file(name, folder / name)
    return {split: _predict(job, describer, split) for split in _judged(job)}


def _predict(job: TrainingJob, describer: Describer, split: str) -> CaptionedRows:
    if describer.card.detector is not None:
        embedded = embeddings.kept_embeddings(job.out, split)
        return CaptionedRows(embedded.rows, list(describer.describe(embedded.vectors)))
    loader, rows = plain_loader(job, split), _rows(job, split)
    usable_rows: list[Rows] = []
    captions: list[Caption] = []
    unreadable: dict[int, str] = {}
    for start in range(0, len(rows), _BATCH):
        part = rows[start : start + _BATCH]
        batch = loader.load(part, part)
        usable_rows.append(batch["row"][batch["usable"]])
        for slot in (~batch["usable"]).nonzero()[0]:
            unreadable[int(batch["row"][slot])] = str(batch["detail"][slot])
        captions += describer.describe(batch["image"][batch["usable"]])
    notes = file_notes.note_images(job.rows(split), split, unreadable)
    file_notes.write_notes(job.out, run_directory.UNREADABLE, split, notes)
    return CaptionedRows(np.concatenate(usable_rows), captions)


def _judged(job: TrainingJob) -> list[str]:
    return [split for split in ("validation", "test") if split in job.tables]


def _rows(job: TrainingJob, split: str) -> Rows:
    return validate.chosen_rows(job) if split == "validation" else np.arange(len(job.rows(split)))


def write_index(
    folder: Path,
    recipe: Recipe,
    sees: Mapping[str, Any],
    vectors: npt.NDArray[Any],
    prompts: list[str],
) -> DescriberCard:
    """FOLDER/describer.yaml of the tier retrieval; `sees`: `detector` and `embedding`."""
    from safetensors.numpy import save_file

    save_file(index_tensors(vectors, prompts), folder / WEIGHTS)
    return write_describer(folder, recipe, {"tier": "retrieval", **sees})


def write_network(
    folder: Path,
    recipe: Recipe,
    plan: DescriberPlan,
    sees: Mapping[str, Any],
    state: Mapping[str, Any],
) -> DescriberCard:
    """FOLDER/describer.yaml of a network: `state` as files hold it, the tokenizer in the file's
    header; `sees`: `preprocessing`, or `detector` and `embedding`.
    """
    from safetensors.torch import save_file

    save_file(dict(state), folder / WEIGHTS, metadata={HEADER: plan.tokenizer.tokenizer.to_str()})
    section = section_of(recipe)
    search = {
        "beams": section.beams,
        "no_repeat": section.no_repeat,
        "most_tokens": section.most_tokens,
    }
    facts = {"tier": section.tier, "architecture": plan.architecture, "prefix": plan.prefix}
    return write_describer(folder, recipe, {**facts, **sees, **search}, plan.start)


def write_describer(
    folder: Path, recipe: Recipe, facts: Mapping[str, Any], start: DescriberCard | None = None
) -> DescriberCard:
    """Write the card of the weights in a folder, and read it back. `start`: the card whose weights
    the training began with.
    """
    content = {
        **export.profile_facts(recipe, folder / WEIGHTS, recipe.name),
        "licence": recipe.export.licence or _inherited(recipe, start),
        "source": recipe.source or f"touchstone train {recipe.name}",
        **facts,
    }
    write_card(folder / CARD, DescriberCard.model_validate(content))
    return load_describer(folder / CARD)


def _inherited(recipe: Recipe, start: DescriberCard | None) -> str:
    """Return the stricter of the licences of the weights that the training began with and of the
    data.
    """
    licences = (start.licence if start else None, recipe.data.licence)
    return max(
        filter(None, licences),
        key=lambda licence: export.STRICTNESS.index(export.terms_of(licence)),
        default="none stated",
    )


def add_published(card: bytes, recipe: Recipe, metrics: Mapping[str, Any]) -> bytes:
    """Return the YAML of a card with the metrics of one split, which are values by name."""
    exact = metrics["exact"]
    figure = {
        "metric": _EXACT,
        "value": exact["value"],
        "n": exact["n"],
        "set": f"{recipe.data.name or 'its own data'}, held out",
        "verified": True,
        "source": f"touchstone train {recipe.name}",
    }
    facts = parse_mapping(card, CARD) | {"published": [] if exact["value"] is None else [figure]}
    return card_text(DescriberCard.model_validate(facts)).encode()


def measure_prompts(truth: Sequence[str], texts: Sequence[str] | str) -> dict[str, dict[str, Any]]:
    """Measure predicted prompts against the true ones.

    Args:
        truth: True prompts (n,).
        texts: Predicted prompts (n,), or why there are none.

    Returns:
        `exact`: the fraction of prompts whose words are all right and in order, without case and
        punctuation.
    """
    if isinstance(texts, str):
        return {"exact": values.undefined(texts).to_dict()}
    pairs = list(zip(texts, truth, strict=True))
    if len(pairs) > MAX_IMAGES:
        order = np.random.default_rng(_CHANCE).permutation(len(pairs))
        pairs = [pairs[row] for row in order[:MAX_IMAGES]]
    hits = sum(_split_words(text) == _split_words(prompt) for text, prompt in pairs)
    why = "no image with both a predicted and a true prompt"
    return {"exact": intervals.proportion(hits, len(pairs), why).to_dict()}


def _split_words(text: str) -> list[str]:
    """Return the words of a text in any script, without case and punctuation."""
    return _WORD.findall(text.casefold())


def draw_prompts(train: Sequence[str], count: int, seed: int) -> dict[str, list[str]]:
    """Return prompts for `count` images without a look at them: `random` training prompts, and the
    `most_frequent` one.
    """
    rows = np.random.default_rng([seed, _CHANCE]).integers(len(train), size=count)
    most_frequent = min(Counter(train).items(), key=lambda item: (-item[1], item[0]))[0]
    return {"random": [train[row] for row in rows], "most_frequent": [most_frequent] * count}


def _write_metrics(
    job: TrainingJob,
    findings: Mapping[str, Any],
    claim: Mapping[str, Any],
    predicted: Mapping[str, CaptionedRows],
    nearest: Mapping[str, CaptionedRows] | str,
) -> dict[str, Any]:
    """Write `predictions/SPLIT.parquet`, and return the content of `metrics.json`."""
    train = job.rows("train")["input"].combine_chunks().field("prompt").to_pylist()
    tier = section_of(job.config).tier
    figures, mean_likelihood, examples = {}, {}, {}
    for split, (rows, captions) in predicted.items():
        truth = embeddings.column_of(job.rows(split), rows, "prompt")
        near = nearest if isinstance(nearest, str) else _texts_of_rows(nearest[split], rows)
        systems: dict[str, Sequence[str] | str] = {
            "describer": [caption.text for caption in captions],
            "retrieval": near,
            **draw_prompts(train, len(truth), job.config.loop.seed),
        }
        figures[split] = {name: measure_prompts(truth, texts) for name, texts in systems.items()}
        likelihoods = [caption.likelihood for caption in captions if caption.likelihood is not None]
        mean_likelihood[split] = float(np.mean(likelihoods)) if likelihoods else None
        nearest_texts = [None] * len(truth) if isinstance(near, str) else near
        examples[split] = [
            {
                "prompt": prompt,
                "predicted": caption.text,
                "likelihood": caption.likelihood,
                "nearest": text,
            }
            for prompt, caption, text in islice(
                zip(truth, captions, nearest_texts, strict=True), EXAMPLES
            )
        ]
        columns = {
            "prompt": pa.array(truth, pa.string()),
            **described_columns(captions, np.ones(len(captions), bool)),
        }
        job.out.write(
            f"predictions/{split}.parquet",
            export.rows_file(job.rows(split).take(pa.array(rows)), columns),
        )
    return {
        "schema": SCHEMA,
        "method": job.config.method,
        "name": job.config.name,
        "title": job.config.title,
        "out": job.out.url,
        "tier": tier,
        "detector": job.card.name,
        "steps": 0 if tier == "retrieval" else job.total_steps,
        "n": {split: len(one.rows) for split, one in predicted.items()},
        "figures": figures,
        "mean_likelihood": mean_likelihood,
        "examples": examples,
        "data": dict(findings),
        "recipe": run_directory.recipe_of(job.config),
        "environment": {**claim["environment"], "workers": job.layout.workers},
    }


def _texts_of_rows(predicted: CaptionedRows, rows: Rows) -> list[str]:
    """Return the texts predicted for these rows; an empty one for a row without a prediction."""
    texts = {
        int(row): caption.text
        for row, caption in zip(predicted.rows, predicted.captions, strict=True)
    }
    return [texts.get(int(row), "") for row in rows]
