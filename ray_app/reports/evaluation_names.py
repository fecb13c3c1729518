"""Named generators, predicted prompts, and groups in and out of distribution, as an evaluation's page and terminal show them.

Knows the document's sections; knows no HTML.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ray_app.reports import figure_words, wording
from ray_app.reports.evaluation_facts import EvaluationFacts, GroupRow, NamedFigures
from ray_app.reports.figure_facts import NOT_MEASURED, FigureFacts
from ray_app.reports.text_table import table

_MOST_PAIRS = 30
_WIDTH = 120
_KEYS = ("accuracy", "top_3", "macro_f1", "open_set_auroc", "abstained_known", "abstained_unknown")
_PROMPTS = ("token_f1", "tag_jaccard", "bleu4", "rouge_l", "clip_text", "clip_score_ratio")
_COLUMNS = ("tpr", "auc", "accuracy", "top_3", "family_accuracy", "abstained", "token_f1", "tag_jaccard", "clip_text", "clip_score_ratio")
_CALLED = {"accuracy": "named right"}
_SIDES = {"in": "in", "out": "out"}


class GroupLine(NamedTuple):
    """One group; `cells` one for each of the table's keys."""

    row: GroupRow
    side: str
    cells: list[FigureFacts]


class GroupTable(NamedTuple):
    """Groups by figures: those of detection are of `system`."""

    system: str
    by: str
    keys: list[str]
    heads: list[str]
    lines: list[GroupLine]


def identified_parts(found: NamedFigures | None) -> list[tuple[str, NamedFigures]]:
    """Every table of the section, with what stands above it."""
    if found is None:
        return []
    plain = found.inner.get("plain")
    if plain is None:
        return [("Generators named", found), *_families(found)]
    theirs = [(caption, part) for key, caption in (("by_index", "The same by any spelling"), ("detection", "Real or fake, by their rules"))
              if (part := found.inner.get(key))]  # fmt: skip
    return [("Generators named, by DFLIP-3K’s own rules", found), *theirs, ("Generators named, by ours", plain), *_families(plain)]


def pairs_of(found: NamedFigures | None) -> list[tuple[str, str, int]]:
    """Generators taken for others, the most frequent first."""
    pairs = found.pairs if found else ()
    sound = [pair for pair in pairs if len(pair) == 3 and isinstance(pair[2], int)]
    named = [(str(truth), "no name" if predicted is None else str(predicted), number) for truth, predicted, number in sound]
    return sorted(named, key=lambda pair: -pair[2])[:_MOST_PAIRS]


def groups_table(told: EvaluationFacts) -> GroupTable | None:
    """The groups by all figures that any of them has; None without groups."""
    if told.groups is None or not told.groups.groups:
        return None
    leading = told.leading
    system = leading.name if leading else ""
    cells = [{**row.detection.get(system, {}), **row.identification, **row.prompts} for row in told.groups.groups]
    keys = [key for key in _COLUMNS if any(one[key].number is not None for one in cells if key in one)]
    lines = [GroupLine(row, _SIDES.get(row.distribution, ""), [one.get(key, NOT_MEASURED) for key in keys])
             for row, one in zip(told.groups.groups, cells, strict=True)]  # fmt: skip
    return GroupTable(
        leading.called if leading else "", told.groups.by, keys, [_CALLED.get(key) or figure_words.named(key) for key in keys], lines
    )


def name_lines(told: EvaluationFacts) -> list[str]:
    """The same for the terminal."""
    lines = [*_section("Generators named", told.identification, _KEYS), *_section("Prompts predicted", told.prompts, _PROMPTS)]
    if families := (told.identification.inner.get("families") if told.identification else None):
        lines += _section("Families named", families, _KEYS)
    groups = groups_table(told)
    if groups:
        rows = [
            [wording.shortened(one.row.name, 40), one.side, f"{one.row.n:,}", *_written(groups.keys, one.cells)] for one in groups.lines
        ]
        lines += ["", *table(["fakes", "distribution", "n", *groups.heads], rows, _WIDTH, right=range(2, 3 + len(groups.heads)))]
    return ["", *lines] if lines else []


def _families(found: NamedFigures) -> Iterator[tuple[str, NamedFigures]]:
    if families := found.inner.get("families"):
        yield "Families named", families


def _section(caption: str, found: NamedFigures | None, keys: Sequence[str]) -> list[str]:
    if found is None:
        return []
    told = [f"{_CALLED.get(key) or figure_words.named(key)} {figure_words.in_words(key, found.figures[key])}"
            for key in keys if key in found.figures and found.figures[key].number is not None]  # fmt: skip
    return [f"{caption}: {', '.join(told) or 'no figure is defined'}."]


def _written(keys: Sequence[str], cells: Sequence[FigureFacts]) -> list[str]:
    return [figure_words.written(key, one.number) for key, one in zip(keys, cells, strict=True)]
