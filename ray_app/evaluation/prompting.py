"""Prompts that a run predicted, against the true ones: the section `prompts` of an evaluation, and the same by groups of generators.

Knows joined rows; how two texts are compared is known elsewhere.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_app.evaluation.joining import Tables
from ray_app.evaluation.prompt_clip import Similar, similar_of
from ray_app.metrics.figure import Figure, figure_rows
from ray_app.metrics.texts import bleu4, normalised_prompt, rouge_l, tag_jaccard, token_f1
from ray_app.runs import RunDirectory

COLUMNS = ("image_id", "generator", "prompt", "predicted_prompt")
MOST_PROMPTS = 100_000
NOTES = (
    "Both texts without front ends' syntax: weights, brackets, <lora:…>, --parameters.",
    "DFLIP-3K's own figures of version 1 are of images made anew from the predicted prompts; those of words do not compare with them.",
    "CIDEr-D is left out: no library that is still kept computes it.",
)
_TEXTS = {"token_f1": token_f1, "tag_jaccard": tag_jaccard, "bleu4": bleu4, "rouge_l": rouge_l}


@dataclass(frozen=True)
class Prompts:
    """Pairs of texts, of the images with both, in the order of their ids. `counts`: images with either."""

    said: list[str]
    truth: list[str]
    makers: list[str]
    similar: Similar
    counts: dict[str, int]

    def section(self) -> dict[str, Any]:
        """All figures as JSON."""
        figures = {name: figure(self.said, self.truth) for name, figure in _TEXTS.items()} | self.similar.figures()
        return {
            **figure_rows(figures),
            **self.counts,
            "compared": len(self.said),
            "images_unread": self.similar.unread,
            "notes": list(NOTES),
        }

    def of(self, generators: Collection[str]) -> Mapping[str, Figure]:
        """Figures of the images of some generators, by their names in the labels."""
        mine = np.array([maker in generators for maker in self.makers], np.bool_)
        said, truth = (_chosen(texts, mine) for texts in (self.said, self.truth))
        return {name: figure(said, truth) for name, figure in _TEXTS.items()} | self.similar.figures(mine)


def prompts_of(tables: Tables, run: RunDirectory, *, clip: str | None = None, device: str = "cpu") -> Prompts | None:
    """None where no prompt was predicted, or no label has one.

    Of very many images the 100,000 of lowest id, which is a hash, stand for all. `clip`: a folder of CLIP weights as published; without it
    the figures that need it are not defined. Raises ConfigError where the folder holds no CLIP.
    """
    rows, counts = _prompts(tables)
    if not counts["with_prediction"] or not counts["with_prompt"]:
        return None
    said = [normalised_prompt(row["predicted_prompt"]) for row in rows]
    truth = [normalised_prompt(row["prompt"]) for row in rows]
    similar = similar_of(run, [row["image_id"] for row in rows], said, truth, clip=clip, device=device)
    return Prompts(said, truth, [row["generator"] for row in rows], similar, counts)


def _chosen(texts: Sequence[str], mine: npt.NDArray[np.bool_]) -> list[str]:
    return [text for text, is_mine in zip(texts, mine.tolist(), strict=True) if is_mine]


def _prompts(tables: Tables) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """The rows with both texts, of the lowest ids, in their order; and how many have either."""
    kept: pa.Table | None = None
    counts = {"with_prompt": 0, "with_prediction": 0, "with_both": 0}
    for table in tables(COLUMNS):
        rows = pa.table({"image_id": table["image_id"], **{name: table[name].cast(pa.large_string()) for name in COLUMNS[1:]}})
        there = [pc.is_valid(rows[name]) for name in COLUMNS[2:]]
        both = rows.filter(pc.and_(*there))
        for name, n in zip(counts, (pc.sum(there[0]).as_py(), pc.sum(there[1]).as_py(), len(both)), strict=True):
            counts[name] += n or 0
        kept = both if kept is None else pa.concat_tables([kept, both])
        if len(kept) > 2 * MOST_PROMPTS:
            kept = _lowest(kept)
    return ([] if kept is None else _lowest(kept).to_pylist()), counts


def _lowest(rows: pa.Table) -> pa.Table:
    return rows.take(pc.sort_indices(rows, sort_keys=[("image_id", "ascending")])[:MOST_PROMPTS])
