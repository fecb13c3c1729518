"""Train a describer, which predicts prompts, from images with known prompts: `describe`.

It computes embeddings once (`training.embeddings`), trains a network by the training loop, and
compares the describer with baselines that need no training, such as the prompt of the nearest
training image and random prompts. It writes OUT/describer.yaml, and `metrics.json` last. The same
command resumes. The weights are those of the last step, because no validation chooses among
checkpoints.
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
from ray_app.detectors.checkpoints import write_safetensors
from ray_app.detectors.licences import infer_terms
from ray_app.errors import DetectorError
from ray_app.identification.captions import Caption, Describer, index_tensors
from ray_app.identification.cards import DescriberCard, load_describer
from ray_app.identification.tokenizer import HEADER
from ray_app.metrics import intervals, values
from ray_app.runs.rows import caption_columns
from ray_app.training import checkpoints, embeddings, export, file_notes, run_directory, validate
from ray_app.training.captioner import DescriberPlan, make_captioning_job, require_section
from ray_app.training.config import Recipe, TrainConfig
from ray_app.training.job import TrainingJob
from ray_app.training.loader import make_loader

SCHEMA = 1
CARD, WEIGHTS = "describer.yaml", "describer.safetensors"
EXAMPLES = 20
"""Number of prompts that `metrics.json` lists with their predictions."""
MAX_IMAGES = 20_000
"""Maximum number of images that are measured. They are drawn at random if there are more."""
_EXACT = "share of prompts predicted word for word"
_WORD = re.compile(r"[^\W_]+")
_CHANCE = 9
"""Random stream of this module, apart from those of order, augmentation, and dropout."""
_BATCH = 64
Rows = npt.NDArray[np.int64]


class CaptionedRows(NamedTuple):
    """Row numbers (n,) of images in a split, with their predicted prompts (n,) in this order."""

    rows: Rows
    captions: list[Caption]


def describe(
    job: TrainingJob,
    findings: Mapping[str, Any],
    claim: Mapping[str, Any],
    fit: Callable[[TrainingJob], None],
) -> dict[str, Any]:
    """Train a describer, which predicts the prompts of images, measure it, and write its card.

    `findings` are the `Splits.findings`, `claim` is the content of `train.json`, `fit` runs the
    training loop, and the result is the content of `metrics.json`.
    """
    section, started_at = require_section(job.config), time.monotonic()
    if section.tier != "captioner":
        embeddings.require_own_weights(job)
    nearest = _predict_nearest(job, needed=section.tier != "captioner")
    if section.tier == "retrieval":
        assert not isinstance(nearest, str)
        predicted = nearest
    else:
        captioning = make_captioning_job(job)
        fit(captioning)
        log = file_notes.FileLog(job.out)
        predicted = validate.run_on_checkpoint(
            captioning, checkpoints.list_checkpoints(job.out)[-1].name, predict_by_network
        )
        log.print_new()
        export.write_curves(
            job.out, list(run_directory.read_history(job.out, run_directory.HISTORY)), []
        )
    facts = _write_metrics(job, findings, claim, predicted, nearest)
    facts["seconds"] = round(time.monotonic() - started_at, 2)
    facts["unreadable"] = len(file_notes.write_unreadable(job.out))
    published = facts["figures"]["test" if "test" in predicted else "validation"]["describer"]
    job.out.write(CARD, add_published(job.out.read(CARD), job.config, published))
    job.out.write(export.METRICS, json.dumps(facts, indent=2, ensure_ascii=False).encode())
    return facts


def plan_describer(
    config: TrainConfig, card: DetectorCard, splits: Splits, steps: int
) -> dict[str, Any]:
    """Return what `touchstone train --dry-run` shows for the method `describe`, as plain JSON.

    `steps` is 0 for the tier retrieval, which trains no network.
    """
    section = require_section(config)
    counts = {name: facts["images"] for name, facts in splits.findings["splits"].items()}
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


def _predict_nearest(job: TrainingJob, *, needed: bool) -> dict[str, CaptionedRows] | str:
    """Return the prompts of the nearest training images by split, or why there are none."""
    try:
        embeddings.compute_embeddings(
            job,
            {
                "train": None,
                **{split: _select_rows(job, split) for split in _list_measured_splits(job)},
            },
        )
        captions: dict[str, CaptionedRows] = validate.run_on_device(job, predict_by_retrieval)
    except DetectorError as error:
        if needed:
            raise
        return f"{job.card.name} gives no embeddings to look up: {error.message}"
    return captions


def predict_by_retrieval(job: TrainingJob) -> dict[str, CaptionedRows]:
    """Predict the prompts of validation and test images from the nearest training images.

    Images without a stored embedding have no prediction. The embeddings of the training images with
    their prompts form an index. If the recipe's tier is retrieval, this index is the describer, and
    is written to the training's directory. The result is by name of the split.
    """
    embedded = embeddings.read_embeddings(job.out, "train")
    prompts = embeddings.get_label_column(job.rows("train"), embedded.rows, "prompt")
    with tempfile.TemporaryDirectory(prefix="touchstone-") as folder:
        card = write_index(
            Path(folder), job.config, _describe_input(job, embedded), embedded.vectors, prompts
        )
        return _predict_splits(
            job, card, Path(folder), is_result=require_section(job.config).tier == "retrieval"
        )


def predict_by_network(job: TrainingJob, folder: Path) -> dict[str, CaptionedRows]:
    """Export a checkpoint's network as a describer, and predict validation and test with it.

    The describer is written to the training's directory. The result is by name of the split.
    """
    from safetensors.torch import load_file

    from ray_app.training.learner import WEIGHTS as LEARNED

    assert job.captions is not None, "a network learned from captions"
    sees: dict[str, Any] = {"preprocessing": job.card.preprocessing.model_dump(mode="json")}
    if require_section(job.config).tier == "prefix":
        sees = _describe_input(job, embeddings.read_embeddings(job.out, "train"))
    with tempfile.TemporaryDirectory(prefix="touchstone-") as scratch:
        card = write_network(
            Path(scratch),
            job.config,
            job.captions.plan,
            sees,
            load_file(folder / LEARNED),
        )
        return _predict_splits(job, card, Path(scratch), is_result=True)


def _describe_input(job: TrainingJob, embedded: embeddings.Embeddings) -> dict[str, Any]:
    return {
        "detector": job.card.name,
        "embedding": embeddings.describe_embeddings(job.card, embedded),
    }


def _predict_splits(
    job: TrainingJob, card: DescriberCard, folder: Path, *, is_result: bool
) -> dict[str, CaptionedRows]:
    """Return the predictions of a describer in a folder for all splits but the training split.

    If the describer is the result of the training, its files are copied to the training's
    directory.
    """
    from ray_app.identification.captioners import build_describer

    describer = build_describer(card, device=job.layout.device)
    for name in (WEIGHTS, CARD) if is_result else ():
        job.out.write_file(name, folder / name)
    return {split: _predict(job, describer, split) for split in _list_measured_splits(job)}


def _predict(job: TrainingJob, describer: Describer, split: str) -> CaptionedRows:
    if describer.card.detector is not None:
        embedded = embeddings.read_embeddings(job.out, split)
        return CaptionedRows(embedded.rows, list(describer.describe(embedded.vectors)))
    loader, rows = make_loader(job, split), _select_rows(job, split)
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


def _list_measured_splits(job: TrainingJob) -> list[str]:
    return [split for split in ("validation", "test") if split in job.tables]


def _select_rows(job: TrainingJob, split: str) -> Rows:
    return (
        validate.select_validation_rows(job)
        if split == "validation"
        else np.arange(len(job.rows(split)))
    )


def write_index(
    folder: Path,
    recipe: Recipe,
    sees: Mapping[str, Any],
    vectors: npt.NDArray[Any],
    prompts: list[str],
) -> DescriberCard:
    """Write the card and the index of a describer that looks prompts up, and return the card.

    Such a describer (tier `retrieval`) has no network. It returns the prompt of the most similar
    training image. `sees` has the card's keys `detector` and `embedding`. The vectors (n, d) and
    prompts (n,) are those of the training images.
    """
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
    """Write the card and the weights of a describer that predicts prompts by a network.

    The file of the weights also contains the tokenizer. `sees` has the card's key `preprocessing`
    if the network reads pixels, or `detector` and `embedding` if it reads embeddings.
    """
    write_safetensors(folder / WEIGHTS, state, {HEADER: plan.tokenizer.tokenizer.to_str()})
    section = require_section(recipe)
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
    """Write the card of a describer whose weights are in the folder, and read the card back.

    `facts` are further keys of the card. The licence of `start`, whose weights the training started
    from, may be inherited. `start` is None for random weights.
    """
    content = {
        **export.make_profile_facts(recipe, folder / WEIGHTS, recipe.name),
        "licence": recipe.export.licence or _inherit_licence(recipe, start),
        "source": recipe.source or f"touchstone train {recipe.name}",
        **facts,
    }
    write_card(folder / CARD, DescriberCard.model_validate(content))
    return load_describer(folder / CARD)


def _inherit_licence(recipe: Recipe, start: DescriberCard | None) -> str:
    """Return the stricter of the licences of the initial weights and of the data."""
    licences = (start.licence if start else None, recipe.data.licence)
    return max(
        filter(None, licences),
        key=lambda licence: export.STRICTNESS.index(infer_terms(licence)),
        default="none stated",
    )


def add_published(card: bytes, recipe: Recipe, metrics: Mapping[str, Any]) -> bytes:
    """Add the fraction of exactly predicted prompts to a describer's card as a published metric.

    A describer is the model that predicted the prompts. If no prompt could be compared, the card
    gets no metric. The metrics are those of the test split, or else of the validation split.
    """
    exact = metrics["exact"]
    published = {
        "metric": _EXACT,
        "value": exact["value"],
        "n": exact["n"],
        "set": f"{recipe.data.name or 'its own data'}, held out",
        "verified": True,
        "source": f"touchstone train {recipe.name}",
    }
    facts = parse_mapping(card, CARD) | {"published": [] if exact["value"] is None else [published]}
    return card_text(DescriberCard.model_validate(facts)).encode()


def measure_prompts(
    truth: Sequence[str], predicted: Sequence[str] | str
) -> dict[str, dict[str, Any]]:
    """Measure the fraction of predicted prompts that equal the true prompts, as the metric `exact`.

    Letter case and punctuation do not count. If there are more than `MAX_IMAGES`, a random sample
    of that size is compared. `predicted` may be the reason why there are no predictions. The metric
    is then None.
    """
    if isinstance(predicted, str):
        return {"exact": values.undefined(predicted).to_dict()}
    pairs = list(zip(predicted, truth, strict=True))
    if len(pairs) > MAX_IMAGES:
        order = np.random.default_rng(_CHANCE).permutation(len(pairs))
        pairs = [pairs[row] for row in order[:MAX_IMAGES]]
    hits = sum(_split_words(text) == _split_words(prompt) for text, prompt in pairs)
    reason = "no image with both a predicted and a true prompt"
    return {"exact": intervals.proportion(hits, len(pairs), reason).to_dict()}


def _split_words(text: str) -> list[str]:
    """Return the words of a text in any script, without case and punctuation."""
    return _WORD.findall(text.casefold())


def draw_prompts(train: Sequence[str], count: int, seed: int) -> dict[str, list[str]]:
    """Return `count` prompts by two baselines that do not use the images.

    `random` draws training prompts, `most_frequent` repeats the most frequent one.
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
    tier = require_section(job.config).tier
    figures, mean_likelihood, examples = {}, {}, {}
    for split, (rows, captions) in predicted.items():
        truth = embeddings.get_label_column(job.rows(split), rows, "prompt")
        near = nearest if isinstance(nearest, str) else _take_texts(nearest[split], rows)
        systems: dict[str, Sequence[str] | str] = {
            "describer": [caption.text for caption in captions],
            "retrieval": near,
            **draw_prompts(train, len(truth), job.config.loop.seed),
        }
        figures[split] = {
            name: measure_prompts(truth, system_texts) for name, system_texts in systems.items()
        }
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
            **caption_columns(captions, np.ones(len(captions), bool)),
        }
        job.out.write(
            f"predictions/{split}.parquet",
            export.serialize_rows(job.rows(split).take(pa.array(rows)), columns),
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
        "n": {split: len(captioned.rows) for split, captioned in predicted.items()},
        "figures": figures,
        "mean_likelihood": mean_likelihood,
        "examples": examples,
        "data": dict(findings),
        "recipe": run_directory.extract_recipe(job.config),
        "environment": {**claim["environment"], "workers": job.layout.workers},
    }


def _take_texts(predicted: CaptionedRows, rows: Rows) -> list[str]:
    """Return the texts predicted for these rows; an empty one for a row without a prediction."""
    text_by_row = {
        int(row): caption.text
        for row, caption in zip(predicted.rows, predicted.captions, strict=True)
    }
    return [text_by_row.get(int(row), "") for row in rows]
