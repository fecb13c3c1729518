"""Measure the prompts that a run predicted against the true ones (`collect_prompts`).

CLIP (`PromptClip`) reads 77 tokens. A longer text is split, each part is embedded, and the text is
represented by the mean of the directions of its parts.

DFLIP-3K's metric generates images from predicted prompts (`regenerated_similarity`): `ImageDataset`
and `img_to_img_similarity` in utils/evaluate.py of dflip3k/DFLIP-3K at 46cd0d7 (arXiv 2401.02335).
Both images are squashed to a square and embedded by CLIP (ViT-B/32 there). If a prompt has several
images, their mean counts.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from ray_app import archives
from ray_app.errors import ConfigError
from ray_app.evaluation.accumulate import decode_members, decode_run_images
from ray_app.evaluation.join import Tables
from ray_app.metrics import intervals, values
from ray_app.reports.evaluation.result import PromptInfo
from ray_app.runs import RunDirectory
from ray_app.storage import strip_secrets

Floats = npt.NDArray[np.float64]
FIGURES = ("clip_image", "clip_image_chance")
# Intervals are narrow for this many images, and every image has to be fetched and embedded.
MAX_IMAGES = 2_000
_BATCH = 32
_NOT_GENERATED = "needs images generated from the predicted prompts: --regenerated"
_NO_PAIR = "no readable image has a readable regenerated image"
COLUMNS = ("image_id", "generator", "prompt", "predicted_prompt")
NOTES = (
    "DFLIP-3K, version 1, has clip_image by CLIP ViT-B/32, and also LPIPS and LAION's aesthetic score, which are not computed here.",
)


class PromptClip:
    """A CLIP model, loaded from a local folder in the format of transformers.

    The folder has config.json, model.safetensors, and the files of the tokenizer and the image
    processor. Weights are read only from safetensors, and nothing is downloaded.

    Args:
        folder: The local folder.

    Raises:
        ConfigError: The folder has no such model.
    """

    def __init__(self, folder: str) -> None:
        from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

        if not (Path(folder) / "config.json").is_file():
            raise ConfigError(
                f"{folder} has no config.json of a CLIP model",
                hint="give a local folder, such as a download of openai/clip-vit-large-patch14",
            )
        try:
            self._model = _load_part(CLIPModel, folder, use_safetensors=True)
            self._tokenizer = _load_part(AutoTokenizer, folder)
            self._processor = _load_part(CLIPImageProcessor, folder)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise ConfigError(
                f"{folder}: transformers cannot read a CLIP model from this folder: {' '.join(str(error).split())[:300]}",
                hint="give a complete download of a CLIP model with safetensors files, such as openai/clip-vit-large-patch14",
            ) from error

    def embed_texts(self, texts: Sequence[str]) -> Floats:
        """Return the embeddings (n, d) of texts, normalised to length 1."""
        import torch

        parts = [self._split_text(text) for text in texts]
        text_index = np.repeat(np.arange(len(texts)), [len(text_parts) for text_parts in parts])
        flat = [part for text_parts in parts for part in text_parts]
        embedded = []
        for start in range(0, len(flat), _BATCH):
            # CLIP reads a text's features at the first end token. Padding comes after it and is
            # masked.
            batch = self._tokenizer.pad(
                {"input_ids": flat[start : start + _BATCH]},
                padding_side="right",
                return_tensors="pt",
            )
            with torch.inference_mode():
                features = self._model.get_text_features(
                    input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
                )
            embedded.append(_to_directions(features))
        sums = np.zeros((len(texts), self._model.config.projection_dim))
        if embedded:
            np.add.at(sums, text_index, np.concatenate(embedded))
        return _normalise(sums)

    def embed_keyed_images(
        self, keyed_images: Iterable[tuple[int, Image.Image]], *, squash: bool = False
    ) -> Iterator[tuple[int, Floats]]:
        """Yield the key and the embedding (d,) of each image, normalised to length 1.

        Args:
            keyed_images: Keys and images.
            squash: Whether to squash the whole image to a square, instead of cropping its middle.
        """
        remaining, side = iter(keyed_images), self._model.config.vision_config.image_size
        while batch := list(islice(remaining, _BATCH)):
            images = [
                image.resize((side, side), Image.Resampling.BICUBIC) if squash else image
                for _, image in batch
            ]
            yield from zip([key for key, _ in batch], self.embed_images(images), strict=True)

    def embed_images(self, images: Sequence[Image.Image]) -> Floats:
        """Return the embeddings (n, d) of images, normalised to length 1."""
        import torch

        pixels = self._processor(images=list(images), return_tensors="pt")["pixel_values"]
        with torch.inference_mode():
            return _to_directions(self._model.get_image_features(pixel_values=pixels))

    def _split_text(self, text: str) -> list[list[int]]:
        """Return the token ids of parts that fit, each between start and end tokens."""
        max_tokens = self._model.config.text_config.max_position_embeddings - 2
        ids = self._tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)[
            "input_ids"
        ]
        parts = [ids[start : start + max_tokens] for start in range(0, len(ids), max_tokens)] or [
            []
        ]
        return [
            [self._tokenizer.bos_token_id, *part, self._tokenizer.eos_token_id] for part in parts
        ]


@dataclass(frozen=True)
class Prompts:
    """Images that have both a predicted and a true prompt, with similarities to regenerated images.

    Images are in the order of their ids. Regenerated images were generated from the predicted
    prompts.

    Attributes:
        makers: The generator of each image (n,), as the labels name it.
        counts: Number of images with a predicted prompt, with a true prompt, and with both.
        similarities: CLIP similarities (n, 2) of each image with regenerated images, from
            `regenerated_similarity`; None if no images were regenerated.
    """

    makers: list[str]
    counts: dict[str, int]
    similarities: Floats | None

    @property
    def info(self) -> PromptInfo:
        """Counts of the prompts, and notes on how to read the metrics, for the report."""
        missing = 0 if self.similarities is None else int(np.isnan(self.similarities[:, 0]).sum())
        notes = [*NOTES]
        if missing:
            notes.append(
                f"{missing:,} images have no readable regenerated image, or cannot be read."
            )
        counts = self.counts | {"compared": len(self.makers), "not_regenerated": missing}
        return PromptInfo(counts, tuple(notes))

    @property
    def figures(self) -> dict[str, values.MetricValue]:
        """The metrics `clip_image` and `clip_image_chance`, computed from all images.

        `clip_image` is the mean CLIP similarity of an image with images generated from its own
        predicted prompt. `clip_image_chance` is that with images generated from other prompts. Both
        are undefined if no images were generated.
        """
        return self._measure(self.similarities)

    def measure(self, generators: Collection[str]) -> Mapping[str, values.MetricValue]:
        """Return `clip_image` and `clip_image_chance`, computed from images of some generators.

        The metrics are mean CLIP similarities of images with images generated from prompts.

        Args:
            generators: Names of generators as in the labels.

        Returns:
            The metrics by name. They are undefined if no images were generated.
        """
        mask = np.array([maker in generators for maker in self.makers], np.bool_)
        return self._measure(None if self.similarities is None else self.similarities[mask])

    def _measure(self, similarities: Floats | None) -> dict[str, values.MetricValue]:
        """Return the metrics `FIGURES`.

        They are the mean cosine of an image and the images generated from its predicted prompt, and
        that of an image and those generated from other prompts.
        """
        if similarities is None:
            return dict.fromkeys(FIGURES, values.undefined(_NOT_GENERATED))
        return {
            name: intervals.mean_figure(cosines, _NO_PAIR, bounds=(-1, 1))
            for name, cosines in zip(FIGURES, similarities.T, strict=True)
        }


def collect_prompts(
    tables: Tables, run: RunDirectory, *, clip: str | None = None, regenerated: str | None = None
) -> Prompts | None:
    """Collect the predicted and true prompts of a run.

    If there are more than 2,000 images, those with the lowest ids are used. Ids are hashes, so this
    is a random sample.

    Args:
        tables: Function that returns the labelled rows.
        run: The run.
        clip: A folder of published CLIP weights; needed only with `regenerated`.
        regenerated: A folder of images generated from the prompts that the run predicted; None
            leaves the metrics that compare images undefined.

    Returns:
        The prompts; None if no prompt was predicted, or no label has one.

    Raises:
        ConfigError: A folder does not have the expected files, or `regenerated` is set without
            `clip`.
    """
    rows, counts = _read_prompts(tables)
    if not counts["with_prediction"] or not counts["with_prompt"]:
        return None
    makers = [row["generator"] for row in rows]
    if regenerated is None:
        return Prompts(makers, counts, None)
    if clip is None:
        raise ConfigError(
            "--regenerated needs a CLIP network to compare images, but no folder of one is set",
            hint="download openai/clip-vit-base-patch32, which DFLIP-3K uses, and name its folder: --set clip=FOLDER",
        )
    return Prompts(
        makers,
        counts,
        regenerated_similarity(
            run, [row["image_id"] for row in rows], regenerated, PromptClip(clip)
        ),
    )


def regenerated_similarity(
    run: RunDirectory, image_ids: Sequence[int], folder: str, model: PromptClip
) -> Floats:
    """Return the CLIP similarity (n, 2) of images with images generated from predicted prompts.

    The first column has the cosine of an image with the images generated from its own predicted
    prompt. The second column has the cosine with images generated from other prompts, which is the
    level of chance. Both are NaN if the image cannot be read, or no readable image was generated
    from its prompt. The second is also NaN if no image was generated from another prompt.

    Args:
        run: The run.
        image_ids: The ids of the images (n,).
        folder: The folder that `touchstone data generate` wrote for the run.
        model: The CLIP model.

    Raises:
        ConfigError: The folder has no image for these ids.
    """
    table = f"{folder.rstrip('/')}/generated.parquet"
    fetcher, ids = (
        archives.create_fetcher([table]),
        {str(image_id): image_id for image_id in image_ids},
    )
    items = enumerate(archives.open_source([table], fetcher=fetcher))
    generated = [
        archives.to_manifest_member(item, slot)
        for slot, item in items
        if str(item.input.get("prompt_id")) in ids
    ]
    if not generated:
        hint = "run `touchstone data generate PIPELINE --prompts RUN --out FOLDER` to generate images from the run's predictions"
        raise ConfigError(
            f"{strip_secrets(folder)}: no image was generated from a prompt that this run predicted",
            hint=hint,
        )
    image_id_by_slot = {member.slot: ids[str(member.input["prompt_id"])] for member in generated}
    originals = dict(
        model.embed_keyed_images(
            decode_run_images(run, set(image_id_by_slot.values())), squash=True
        )
    )
    sums, counts = dict[int, Any](), Counter[int]()
    images = (
        (image_id_by_slot[member.slot], image)
        for member, image in decode_members(generated, fetcher, run.limits())
    )
    for image_id, row in model.embed_keyed_images(images, squash=True):
        sums[image_id] = sums.get(image_id, 0) + row
        counts[image_id] += 1
    total, cosines = sum(sums.values()), np.full((len(image_ids), 2), np.nan)
    for index, image_id in enumerate(image_ids):
        if image_id in originals and image_id in sums:
            original, own_sum, others = (
                originals[image_id],
                sums[image_id],
                counts.total() - counts[image_id],
            )
            cosines[index] = (
                original @ own_sum / counts[image_id],
                original @ (total - own_sum) / others if others else np.nan,
            )
    return cosines


def _load_part(part_class: Any, folder: str, **options: Any) -> Any:
    """Load a part of a published model from the folder alone, ready for inference."""
    return part_class.from_pretrained(folder, local_files_only=True, **options)


def _to_directions(output: Any) -> Floats:
    """Return the output of CLIP's get_…_features as rows of length 1.

    In transformers 5 it is an object with `pooler_output`.
    """
    features = getattr(output, "pooler_output", output)
    return _normalise(features.double().cpu().numpy())


def _normalise(rows: npt.NDArray[Any]) -> Floats:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(lengths > 0, lengths, 1), np.float64)


def _read_prompts(tables: Tables) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Return the rows of the lowest ids that have both prompts, and the counts of rows."""
    selected: pa.Table | None = None
    counts = {"with_prompt": 0, "with_prediction": 0, "with_both": 0}
    for table in tables(COLUMNS):
        rows = pa.table(
            {
                "image_id": table["image_id"],
                **{name: table[name].cast(pa.large_string()) for name in COLUMNS[1:]},
            }
        )
        is_present = [pc.is_valid(rows[name]) for name in COLUMNS[2:]]
        both = rows.filter(pc.and_(*is_present))
        for name, n in zip(
            counts,
            (pc.sum(is_present[0]).as_py(), pc.sum(is_present[1]).as_py(), len(both)),
            strict=True,
        ):
            counts[name] += n or 0
        selected = both if selected is None else pa.concat_tables([selected, both])
        if len(selected) > 2 * MAX_IMAGES:
            selected = _select_lowest_ids(selected)
    return ([] if selected is None else _select_lowest_ids(selected).to_pylist()), counts


def _select_lowest_ids(rows: pa.Table) -> pa.Table:
    return rows.take(pc.sort_indices(rows, sort_keys=[("image_id", "ascending")])[:MAX_IMAGES])
