"""Describe the image of a tile, for every page that shows images with their verdicts."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ray_app.identification.generators import family_title, title_of
from ray_app.reports import format as wording
from ray_app.reports.run import beginning, generator_in_words

_CUT = 160  # characters of a prompt before it folds


class TileText(NamedTuple):
    """A tile's text on generator or words, and its source; `opening`: the first of it, where it is
    long.
    """

    term: str
    said: str
    opening: str | None
    small: str = ""


def sort_attributes(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes by which tiles.js sorts and filters the tile of a row."""
    verdict, score = row.get("verdict"), row.get("score")
    return {
        "data-verdict": verdict if verdict in wording.VERDICT_WORDS else "none",
        "data-score": "" if score is None or not math.isfinite(score) else score,
    }


def verdict_choices(rows: Iterable[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Return the verdicts of rows with their names, for the controls of a page of tiles."""
    found = {sort_attributes(row)["data-verdict"] for row in rows}
    names = {**wording.VERDICT_WORDS, "none": "not scored"}
    return [(verdict, name) for verdict, name in names.items() if verdict in found]


def tile_texts(row: Mapping[str, Any]) -> list[TileText]:
    """Generator and words of a row, what is known before what is predicted; nothing where there is
    neither.
    """
    given = row.get("input") or {}
    probability, likelihood = row.get("generator_probability"), row.get("prompt_likelihood")
    named = generator_in_words(
        row.get("predicted_generator"), row.get("generator_family"), row.get("generator_ranking")
    )
    sure = (
        f"{wording.percent(probability, 0)} among the known"
        if row.get("predicted_generator") and probability is not None
        else ""
    )
    likely = (
        ""
        if likelihood is None or math.isnan(likelihood)
        else f"likelihood {wording.number(likelihood, decimals=2)}"
    )
    entries = [
        ("Label", given.get("label"), ""),
        ("Generator, known", _title(given.get("generator")), ""),
        (
            "Generator, were it fake" if row.get("verdict") == "real" else "Generator, predicted",
            named,
            sure,
        ),
        ("Words, known", given.get("prompt"), ""),
        ("Words, predicted", row.get("predicted_prompt"), likely),
    ]
    texts = [(term, str(said), small) for term, said, small in entries if said not in (None, "")]
    return [
        TileText(term, said, beginning(said, _CUT) if len(said) > _CUT else None, small)
        for term, said, small in texts
    ]


def _title(name: Any) -> str | None:
    """A generator as its data set calls it, with its title where that is another word."""
    if name is None or name == "":
        return None
    title = title_of(str(name))
    title = family_title(str(name)) if title == str(name) else title
    return str(name) if title == str(name) else f"{title} ({name})"
