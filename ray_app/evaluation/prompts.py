"""Prompts that a run predicted, against the true ones (`prompts_of`).

CLIP (`PromptClip`) reads 77 tokens: of a longer text each piece is embedded by itself, and the text
stands at the mean of its pieces' directions (specs/localization.md §6.2.5).

Images made anew from predicted prompts (`regenerated_similarity`) are DFLIP-3K's measure:
`ImageDataset` and `img_to_img_similarity` in utils/evaluate.py of dflip3k/DFLIP-3K at 46cd0d7
(arXiv 2401.02335). Both pictures are squashed to a square and embedded by CLIP (ViT-B/32 there); of
several pictures of one prompt their mean counts.
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
from ray_app.evaluation.accumulate import decoded, decoded_images
from ray_app.evaluation.join import Tables
from ray_app.metrics import intervals, values
from ray_app.reports.evaluation.result import PromptInfo
from ray_app.runs import RunDirectory
from ray_app.storage import strip_secrets

Floats = npt.NDArray[np.float64]
FIGURES = ("clip_image", "clip_image_chance")
# the figures' intervals are narrow by then, and every image is fetched and embedded
MOST_IMAGES = 2_000
_BATCH = 32
_NOT_MADE = "needs images made from the predicted prompts: --regenerated"
_NO_TWO = "no image that can be read beside one made anew"
COLUMNS = ("image_id", "generator", "prompt", "predicted_prompt")
NOTES = (
    "DFLIP-3K's figures of version 1 are clip_image by CLIP ViT-B/32, and LPIPS and LAION's aesthetic score, which are not computed.",
)


class PromptClip:
    """A CLIP in the format that transformers writes: config.json, model.safetensors, the
    tokenizer's and the image processor's files.

    Only safetensors are read, and nothing is fetched. Raises ConfigError where the folder is no
    such CLIP.
    """

    def __init__(self, folder: str) -> None:
        from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

        if not (Path(folder) / "config.json").is_file():
            raise ConfigError(
                f"{folder}: no CLIP here",
                hint="a local folder such as a download of openai/clip-vit-large-patch14",
            )
        try:
            self._model = _read(CLIPModel, folder, use_safetensors=True)
            self._tokenizer = _read(AutoTokenizer, folder)
            self._processor = _read(CLIPImageProcessor, folder)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise ConfigError(
                f"{folder}: not a CLIP that transformers reads: {' '.join(str(error).split())[:300]}"
            ) from error

    def texts(self, texts: Sequence[str]) -> Floats:
        """(n, d), of length 1 each."""
        import torch

        pieces = [self._pieces(text) for text in texts]
        owner = np.repeat(np.arange(len(texts)), [len(own) for own in pieces])
        flat = [piece for own in pieces for piece in own]
        embedded = []
        for start in range(0, len(flat), _BATCH):
            # The piece's own end stays the first one, which is where CLIP reads a text off; what
            # follows it is masked.
            batch = self._tokenizer.pad(
                {"input_ids": flat[start : start + _BATCH]},
                padding_side="right",
                return_tensors="pt",
            )
            with torch.inference_mode():
                found = self._model.get_text_features(
                    input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
                )
            embedded.append(_directions(found))
        sums = np.zeros((len(texts), self._model.config.projection_dim))
        if embedded:
            np.add.at(sums, owner, np.concatenate(embedded))
        return _unit(sums)

    def embedded(
        self, pictures: Iterable[tuple[int, Image.Image]], *, squash: bool = False
    ) -> Iterator[tuple[int, Floats]]:
        """The direction (d,) of each picture, with its key; with `squash` of the whole picture
        without its shape, else of its middle.
        """
        rest, side = iter(pictures), self._model.config.vision_config.image_size
        while some := list(islice(rest, _BATCH)):
            images = [
                picture.resize((side, side), Image.Resampling.BICUBIC) if squash else picture
                for _, picture in some
            ]
            yield from zip([key for key, _ in some], self.images(images), strict=True)

    def images(self, images: Sequence[Image.Image]) -> Floats:
        """(n, d), of length 1 each."""
        import torch

        pixels = self._processor(images=list(images), return_tensors="pt")["pixel_values"]
        with torch.inference_mode():
            return _directions(self._model.get_image_features(pixel_values=pixels))

    def _pieces(self, text: str) -> list[list[int]]:
        """Token ids of pieces that fit, each between start and end."""
        room = self._model.config.text_config.max_position_embeddings - 2
        ids = self._tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)[
            "input_ids"
        ]
        parts = [ids[start : start + room] for start in range(0, len(ids), room)] or [[]]
        return [
            [self._tokenizer.bos_token_id, *part, self._tokenizer.eos_token_id] for part in parts
        ]


@dataclass(frozen=True)
class Prompts:
    """Images with a predicted and a true prompt, in the order of their ids. `makers` (n,): their
    generators; `counts`: images with either prompt. `again` (n, 2): cosines as
    `regenerated_similarity` returns them; None without such images.
    """

    makers: list[str]
    counts: dict[str, int]
    again: Floats | None

    @property
    def info(self) -> PromptInfo:
        """Counts, and how to read the metrics."""
        missing = 0 if self.again is None else int(np.isnan(self.again[:, 0]).sum())
        notes = [*NOTES]
        if missing:
            notes.append(f"{missing:,} images have none made anew, or one of both cannot be read.")
        counts = self.counts | {"compared": len(self.makers), "not_regenerated": missing}
        return PromptInfo(counts, tuple(notes))

    @property
    def figures(self) -> dict[str, values.MetricValue]:
        """The metrics of all images."""
        return self._figures(self.again)

    def of(self, generators: Collection[str]) -> Mapping[str, values.MetricValue]:
        """Figures of the images of some generators, by their names in the labels."""
        mine = np.array([maker in generators for maker in self.makers], np.bool_)
        return self._figures(None if self.again is None else self.again[mine])

    def _figures(self, again: Floats | None) -> dict[str, values.MetricValue]:
        """Return `FIGURES`: the mean cosine of an image and what its predicted prompt gives back,
        and that with what others' give back.
        """
        if again is None:
            return dict.fromkeys(FIGURES, values.undefined(_NOT_MADE))
        return {
            name: intervals.mean_figure(cosines, _NO_TWO, bounds=(-1, 1))
            for name, cosines in zip(FIGURES, again.T, strict=True)
        }


def prompts_of(
    tables: Tables, run: RunDirectory, *, clip: str | None = None, regenerated: str | None = None
) -> Prompts | None:
    """None where no prompt was predicted, or no label has one.

    Of many images the 2,000 of lowest id, which is a hash, stand for all. `regenerated`: a folder
    of images made from the run's prompts; without it the figures are not defined. `clip`: a folder
    of CLIP weights as published. Raises ConfigError where either folder holds something else, and
    for `regenerated` without `clip`.
    """
    rows, counts = _prompts(tables)
    if not counts["with_prediction"] or not counts["with_prompt"]:
        return None
    makers = [row["generator"] for row in rows]
    if regenerated is None:
        return Prompts(makers, counts, None)
    if clip is None:
        raise ConfigError(
            "--regenerated needs a CLIP: --set clip=FOLDER",
            hint="DFLIP-3K has openai/clip-vit-base-patch32",
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
    """Cosines (n, 2) of each image and what its own predicted prompt gives back, and of it and what
    other prompts do, which is chance.

    NaN where the original cannot be read, or nothing readable was made for it. `folder`: what
    `touchstone data generate` made of the run. Raises ConfigError where nothing in it was made for
    these images.
    """
    table = f"{folder.rstrip('/')}/generated.parquet"
    fetcher, ids = archives.fetcher_of([table]), {str(image_id): image_id for image_id in image_ids}
    listed = enumerate(archives.open_source([table], fetcher=fetcher))
    made = [
        archives.as_member(item, slot)
        for slot, item in listed
        if str(item.input.get("prompt_id")) in ids
    ]
    if not made:
        hint = "touchstone data generate PIPELINE --prompts RUN --out FOLDER makes them of the run's own predictions"
        raise ConfigError(
            f"{strip_secrets(folder)}: nothing was made from a prompt that this run predicted",
            hint=hint,
        )
    of = {member.slot: ids[str(member.input["prompt_id"])] for member in made}
    originals = dict(model.embedded(decoded_images(run, set(of.values())), squash=True))
    sums, counts = dict[int, Any](), Counter[int]()
    pictures = (
        (of[member.slot], picture) for member, picture in decoded(made, fetcher, run.limits())
    )
    for image_id, row in model.embedded(pictures, squash=True):
        sums[image_id] = sums.get(image_id, 0) + row
        counts[image_id] += 1
    total, found = sum(sums.values()), np.full((len(image_ids), 2), np.nan)
    for place, image_id in enumerate(image_ids):
        if image_id in originals and image_id in sums:
            original, own, others = (
                originals[image_id],
                sums[image_id],
                counts.total() - counts[image_id],
            )
            found[place] = (
                original @ own / counts[image_id],
                original @ (total - own) / others if others else np.nan,
            )
    return found


def _read(kind: Any, folder: str, **options: Any) -> Any:
    """One part of a published model, from the folder alone; networks come ready for inference."""
    return kind.from_pretrained(folder, local_files_only=True, **options)


def _directions(found: Any) -> Floats:
    """What get_…_features gives, in transformers 5 an output with `pooler_output`, as rows of
    length 1.
    """
    features = getattr(found, "pooler_output", found)
    return _unit(features.double().cpu().numpy())


def _unit(rows: npt.NDArray[Any]) -> Floats:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(lengths > 0, lengths, 1), np.float64)


def _prompts(tables: Tables) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """The rows with both texts, of the lowest ids, in their order; and how many have either."""
    kept: pa.Table | None = None
    counts = {"with_prompt": 0, "with_prediction": 0, "with_both": 0}
    for table in tables(COLUMNS):
        rows = pa.table(
            {
                "image_id": table["image_id"],
                **{name: table[name].cast(pa.large_string()) for name in COLUMNS[1:]},
            }
        )
        there = [pc.is_valid(rows[name]) for name in COLUMNS[2:]]
        both = rows.filter(pc.and_(*there))
        for name, n in zip(
            counts, (pc.sum(there[0]).as_py(), pc.sum(there[1]).as_py(), len(both)), strict=True
        ):
            counts[name] += n or 0
        kept = both if kept is None else pa.concat_tables([kept, both])
        if len(kept) > 2 * MOST_IMAGES:
            kept = _lowest(kept)
    return ([] if kept is None else _lowest(kept).to_pylist()), counts


def _lowest(rows: pa.Table) -> pa.Table:
    return rows.take(pc.sort_indices(rows, sort_keys=[("image_id", "ascending")])[:MOST_IMAGES])
