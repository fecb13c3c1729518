"""Generators and prompts that detectors named, against the labels: the sections `identification` and `prompts` of an evaluation.

Knows joined rows; how a name or a text is marked is known elsewhere.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_app.evaluation.dflip import dflip_v1
from ray_app.evaluation.joining import Tables
from ray_app.evaluation.prompt_clip import similarities
from ray_app.evaluation.protocols import IdentificationRules
from ray_app.metrics.attribution import Attribution, attribution_of, attribution_of_pairs
from ray_app.metrics.figure import Figure, figure_rows
from ray_app.metrics.intervals import proportion
from ray_app.metrics.texts import bleu4, normalised_prompt, rouge_l, token_f1
from ray_app.runs import RunDirectory

NAMED = ("label", "generator", "predicted_generator", "generator_ranking", "generator_confidence")
"""What `identification_of` asks for; the last two (best first, list of texts; a number, higher = surer) are in no run's own schema."""
PROMPTED = ("image_id", "prompt", "predicted_prompt")
MOST_PROMPTS = 100_000
_Row = tuple[str, str | None, list[str], float | None]


def identification_of(
    tables: Tables, *, rules: IdentificationRules | None = None, known: Collection[str] | None = None, missing: int = 0
) -> dict[str, Any] | None:
    """The section `identification`; None where no generator was named at all.

    Plain rules are of fakes: figures of `metrics.attribution`, names compared without case and outer blanks, an image without a named
    generator counts as wrong. `reals_named`: the share of reals that got a generator's name. `known`: the generators that can be named at
    all (None: all). Under `dflip-v1` predicted names are answers in words; `missing`: labels without a row, which count as wrong there.
    """
    rules = rules or IdentificationRules()
    named = _Named()
    for table in tables(NAMED):
        named.add(table)
    if all(not answer for _, _, answer in named.answers):
        return None
    if rules.protocol == "dflip-v1":
        return dflip_v1(named.answers, missing)
    found = named.attribution({_plain(name) for name in known} if known is not None else None, rules.top_k)
    figures = found.figures | {"reals_named": named.reals_named()}
    return {
        "protocol": "plain",
        **figure_rows(figures),
        "pairs": [list(pair) for pair in found.pairs],
        "classes": [{name: value.row() if isinstance(value, Figure) else value for name, value in row.items()} for row in found.classes],
        "without_prediction": sum(n for (label, _, name), n in named.answers.items() if label == "fake" and name is None),
    }


def prompts_of(tables: Tables, run: RunDirectory, *, clip: str | None = None, device: str = "cpu") -> dict[str, Any] | None:
    """The section `prompts`; None where no prompt was predicted, or no label has one.

    Both texts without front ends' syntax (`normalised_prompt`). Of very many images the 100,000 of lowest id, which is a hash, stand for
    all. `clip`: a folder of CLIP weights as published; without it the figures that need it are not defined. Raises ConfigError where the
    folder holds no CLIP.
    """
    rows, counts = _prompts(tables)
    if not counts["with_prediction"] or not counts["with_prompt"]:
        return None
    said = [normalised_prompt(row["predicted_prompt"]) for row in rows]
    truth = [normalised_prompt(row["prompt"]) for row in rows]
    figures = {"bleu4": bleu4(said, truth), "rouge_l": rouge_l(said, truth), "token_f1": token_f1(said, truth)}
    close, unread = similarities(run, [row["image_id"] for row in rows], said, truth, clip=clip, device=device)
    figures |= close
    return {**figure_rows(figures), **counts, "compared": len(rows), "images_unread": unread}


class _Named:
    """Counts of labels and answers; and, where there are any, rankings and confidences image by image."""

    def __init__(self) -> None:
        self.answers: Counter[tuple[str, str, str | None]] = Counter()
        self._rows: list[_Row] = []
        self._plain_rows: Counter[tuple[str, str | None]] = Counter()  # fakes of tables without rankings and confidences
        self._has_ranking = self._has_confidence = False

    def add(self, table: pa.Table) -> None:
        """Joined rows with the columns `NAMED`."""
        has_ranking, has_confidence = (name in table.column_names and table[name].null_count < len(table) for name in NAMED[3:])
        plain = pa.table({name: table[name].cast(pa.string()) for name in NAMED[:3]})
        counted = plain.group_by(list(NAMED[:3])).aggregate([([], "count_all")])
        for row in counted.to_pylist():
            self.answers[row["label"], row["generator"], row["predicted_generator"]] += row["count_all"]
            if not (has_ranking or has_confidence) and row["label"] == "fake":
                self._plain_rows[_plain(row["generator"]), _plain(row["predicted_generator"])] += row["count_all"]
        self._has_ranking, self._has_confidence = self._has_ranking or has_ranking, self._has_confidence or has_confidence
        if has_ranking or has_confidence:
            self._rows += [_row(row) for row in table.filter(pc.equal(plain["label"], "fake")).to_pylist()]

    def attribution(self, known: Collection[str] | None, top_k: Sequence[int]) -> Attribution:
        """The figures of fakes."""
        if self._has_ranking or self._has_confidence:
            others: list[_Row] = [(*pair, [], None) for pair, n in self._plain_rows.items() for _ in range(n)]
            truth, said, rankings, sure = (list(column) for column in zip(*self._rows, *others, strict=True))
            # A generator that was not named at all is nothing that one is sure of.
            confidence = [-np.finfo(np.float64).max if one is None else float(one) for one in sure] if self._has_confidence else None
            return attribution_of(
                said, truth, known=known, top_k=top_k, rankings=rankings if self._has_ranking else None, confidence=confidence
            )
        pairs: Counter[tuple[str, str | None]] = Counter()
        for (label, generator, name), n in self.answers.items():
            if label == "fake":
                pairs[_plain(generator), _plain(name)] += n
        return attribution_of_pairs(pairs, known=known, top_k=top_k)

    def reals_named(self) -> Figure:
        """The share of reals for which a generator was named."""
        reals = {name: 0 for name in (True, False)}
        for (label, _, name), n in self.answers.items():
            if label == "real":
                reals[(_plain(name) or "real").partition(":")[0] != "real"] += n
        return proportion(reals[True], sum(reals.values()), "no real image")


def _plain(name: Any) -> Any:
    """A name as it is compared; a blank one is none."""
    return None if name is None else str(name).strip().casefold() or None


def _row(row: dict[str, Any]) -> _Row:
    """Truth, prediction, ranking and confidence of one image."""
    truth, said, ranking, confidence = (row.get(name) for name in NAMED[1:])
    return _plain(truth), _plain(said), [_plain(one) for one in ranking or []], confidence


def _prompts(tables: Tables) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """The rows with both texts, of the lowest ids, in their order; and how many have either."""
    kept: pa.Table | None = None
    counts = {"with_prompt": 0, "with_prediction": 0, "with_both": 0}
    for table in tables(PROMPTED):
        rows = pa.table({"image_id": table["image_id"], **{name: table[name].cast(pa.large_string()) for name in PROMPTED[1:]}})
        there = [pc.is_valid(rows[name]) for name in PROMPTED[1:]]
        both = rows.filter(pc.and_(*there))
        for name, n in zip(counts, (pc.sum(there[0]).as_py(), pc.sum(there[1]).as_py(), len(both)), strict=True):
            counts[name] += n or 0
        kept = both if kept is None else pa.concat_tables([kept, both])
        if len(kept) > 2 * MOST_PROMPTS:
            kept = _lowest(kept)
    return ([] if kept is None else _lowest(kept).to_pylist()), counts


def _lowest(rows: pa.Table) -> pa.Table:
    return rows.take(pc.sort_indices(rows, sort_keys=[("image_id", "ascending")])[:MOST_PROMPTS])
