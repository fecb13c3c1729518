"""Prepare the texts and the HTML attributes of tiles, for pages with many images.

A tile shows one image with its verdict. The pages of `touchstone check` and of galleries have
tiles.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ray_app.identification.generators import family_title, find_title
from ray_app.reports import format as wording
from ray_app.reports.run import beginning, generator_in_words

_MAX_PROMPT_CHARACTERS = 160  # A longer prompt is folded.


class TileText(NamedTuple):
    """A text on a tile of an image, such as the generator or the prompt of the image.

    Attributes:
        term: Heading of the text, such as "Generator, predicted".
        said: The text.
        opening: The start of a long text, which the tile shows until it is unfolded. None if the
            text is short.
        small: A remark in small print, such as a probability; "" for no remark.
    """

    term: str
    said: str
    opening: str | None
    small: str = ""


def sort_attributes(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the HTML attributes of a tile by which the script of the page sorts and filters.

    A tile shows one image with its verdict.

    Args:
        row: The result row of the image.

    Returns:
        `data-verdict`, which is "none" without a verdict, and `data-score`, which is "" without a
        score.
    """
    verdict, score = row.get("verdict"), row.get("score")
    return {
        "data-verdict": verdict if verdict in wording.VERDICT_PHRASES else "none",
        "data-score": "" if score is None or not math.isfinite(score) else score,
    }


def verdict_choices(rows: Iterable[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Return (verdict, name) pairs of the verdicts in `rows`, for the filter of a page of tiles."""
    verdicts = {sort_attributes(row)["data-verdict"] for row in rows}
    names = {**wording.VERDICT_PHRASES, "none": "not scored"}
    return [(verdict, name) for verdict, name in names.items() if verdict in verdicts]


def tile_texts(row: Mapping[str, Any]) -> list[TileText]:
    """Return the texts on the tile of a result row: its label, generators, and prompts.

    The label, and the true generator and prompt, are in the column `input` if the scored source was
    a table that has them. Each true value precedes the predicted one. Missing values are left out.
    """
    source_columns = row.get("input") or {}
    probability, likelihood = row.get("generator_probability"), row.get("prompt_likelihood")
    generator = generator_in_words(
        row.get("predicted_generator"), row.get("generator_family"), row.get("generator_ranking")
    )
    probability_text = (
        f"{wording.percent(probability, 0)} among the known generators"
        if row.get("predicted_generator") and probability is not None
        else ""
    )
    likelihood_text = (
        ""
        if likelihood is None or math.isnan(likelihood)
        else f"likelihood {wording.number(likelihood, decimals=2)}"
    )
    entries = [
        ("Label", source_columns.get("label"), ""),
        ("Generator, known", _make_title(source_columns.get("generator")), ""),
        (
            "Generator, if fake" if row.get("verdict") == "real" else "Generator, predicted",
            generator,
            probability_text,
        ),
        ("Prompt, known", source_columns.get("prompt"), ""),
        ("Prompt, predicted", row.get("predicted_prompt"), likelihood_text),
    ]
    texts = [(term, str(text), small) for term, text, small in entries if text not in (None, "")]
    return [
        TileText(
            term,
            text,
            beginning(text, _MAX_PROMPT_CHARACTERS) if len(text) > _MAX_PROMPT_CHARACTERS else None,
            small,
        )
        for term, text, small in texts
    ]


def _make_title(name: Any) -> str | None:
    """Return the name of a generator in its data set, with its title if that differs."""
    if name is None or name == "":
        return None
    title = find_title(str(name))
    title = family_title(str(name)) if title == str(name) else title
    return str(name) if title == str(name) else f"{title} ({name})"
