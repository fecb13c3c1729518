"""Verdicts on some pictures, without a run: a page (`render_check`; of one picture a report of its
own, to keep), a table with what explains it (`check_lines`), and CSV (`csv_lines`). What many files
have in common is said once (`gathered`).

Rows are as `touchstone check --json` prints them: `uri`, `status`, `detail`, `finding`, `grounds`,
`verdict`, `verdict_reason`, `verdict_detail`, `probability`, `calibrated`, `score`, `scores` (by
detector), `width`, `height`, `format`, `provenance` and what a profile adds.
"""

import csv
import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from ray_app.detectors.card import blind_to
from ray_app.ensembles.card import Thresholds
from ray_app.ensembles.finding import error_rates
from ray_app.errors import ConfigError
from ray_app.images.provenance import Provenance
from ray_app.images.provenance.statement import standing
from ray_app.inference.named_files import STDIN
from ray_app.inference.small_pictures import PictureSize
from ray_app.inference.spec import ScoringSpec
from ray_app.reports import format as wording
from ray_app.reports.text import verdict_table
from ray_app.storage.urls import local_path, scheme_of

CROWD = 500  # A page with more pictures has smaller ones.
# Pixels and bytes of a picture among many, among some, and alone on a page.
_IN_CROWD, _TILE, _ALONE = (
    PictureSize(160, 6_000),
    PictureSize(320, 40_000),
    PictureSize(960, 150_000),
)
_LONGEST, _MOST, _FEW = 100, 20, 10
_LONGEST_FOLDER = 240
_FIGURES = re.compile(r"\d[\d.,]*")
_PROVENANCE = {
    "make": "camera, make",
    "model": "camera, model",
    "taken": "taken",
    "software": "software",
    "generator": "generator",
    "prompt": "prompt",
    "checkpoint": "model of the generator",
    "digital_source_type": "digital source type (IPTC)",
    "c2pa": "C2PA manifest",
    "signed_by": "signed by",
    "unread": "not read",
}

Row = Mapping[str, Any]


# What a verdict does not mean. The endpoint's page says the same (serving/page/verdict.js).
CAVEATS = {
    "fake": (
        "It is not proof. Real photographs are flagged too, above all edited, shrunk or heavily compressed ones.",
        "It does not say who made the image, with what, or why. A retouched corner and a fully generated scene can both lead here.",
    ),
    "real": (
        "It does not say that the image is genuine. A generator the detectors have not learnt leaves nothing that they would see.",
        "Traces fade: a screenshot or a copy from a messenger can lose them while the picture looks the same.",
    ),
    "abstain": (
        "It is neither half fake nor probably real: evidence or image did not allow either answer.",
        "Ask for the original file: a copy of a copy has lost much of what would decide.",
    ),
}
ALWAYS = (
    "It says nothing about what the image shows. A true photograph misleads under a false caption."
)


class CheckFacts(NamedTuple):
    """What gave the verdicts: an ensemble's name and title, whether it is a demonstration, and what
    it cannot see, in sentences; its thresholds with their rates, its detectors' titles by name, its
    fingerprint ("" = not asked for), when it was asked (ISO 8601), and the confidence of the upper
    bound of its false-positive rate (None = the usual one).
    """

    name: str
    title: str
    demonstration: bool
    blind_to: Sequence[str]
    thresholds: Thresholds
    detectors: Mapping[str, str]
    fingerprint: str = ""
    made_at: str = ""
    confidence: float | None = None

    @classmethod
    def of(cls, spec: ScoringSpec, fingerprint: str = "") -> "CheckFacts":
        """Those of the detectors that a spec asks, now."""
        cards, now = spec.cards.values(), datetime.now(UTC).isoformat(timespec="seconds")
        titles = {name: card.title for name, card in spec.cards.items()}
        is_demonstration = any(one.demonstration for one in cards)
        card = spec.ensemble
        confidence = card.guarantee.confidence if card.guarantee else None
        return cls(card.name, card.title, is_demonstration, blind_to(cards), card.thresholds,
                   titles, fingerprint, now, confidence)  # fmt: skip

    @property
    def error_rates(self) -> str:
        """The sentences on error rates that are shown next to verdicts."""
        return error_rates(self.name, self.thresholds, self.confidence)


class SharedText(NamedTuple):
    """A text that some files have, but for its figures: as the first of them has it, the name of
    that one, and how many there are.
    """

    text: str
    first: str
    files: int

    @property
    def who(self) -> str:
        """The files in words, for the terminal."""
        first = wording.shortened(self.first, _LONGEST)
        return (
            first
            if self.files == 1
            else f"{wording.counted(self.files, 'file')}, the first {first}"
        )


def gathered(said: Iterable[tuple[str, str]]) -> dict[str, SharedText]:
    """Names and their texts, by `form` of the text, the most frequent first."""
    first, counts = dict[str, tuple[str, str]](), Counter[str]()
    for name, text in said:
        key = form(text)
        first.setdefault(key, (text, name))
        counts[key] += 1
    return {key: SharedText(*first[key], number) for key, number in counts.most_common()}


def form(text: str) -> str:
    """The text without its figures: what remains is the same for all files of which the same is
    said.
    """
    return _FIGURES.sub("0", text)


def choose_picture_size(files: int) -> PictureSize:
    """Return the size of pictures on a page on N files."""
    if files == 1:
        return _ALONE
    return _TILE if files <= CROWD else _IN_CROWD


def name_rows(rows: Sequence[Row], images: Sequence[str]) -> list[str]:
    """Return the name that people see for each row.

    Args:
        rows: The rows.
        images: The paths and URLs that the user named.

    Returns:
        Paths relative to the folder that holds all named files, and URIs of other files.
    """
    folders = [
        os.path.dirname(os.path.abspath(local_path(image)))
        for image in images
        if image != STDIN and scheme_of(image) == "file"
    ]
    base = os.path.commonpath(folders) if folders else ""
    return [
        local_path(uri).removeprefix(base).removeprefix("/") if scheme_of(uri) == "file" else uri
        for uri in (row["uri"] for row in rows)
    ]


def write_check_page(
    page: Path,
    rows: Sequence[Row],
    names: Sequence[str],
    pictures: Sequence[bytes | None],
    facts: CheckFacts,
    *,
    version: str,
) -> None:
    """Write the page of `render_check` to a local file, all of it or nothing.

    Raises:
        ConfigError: The file cannot be written.
    """
    half = page.with_name(f".{page.name}.{os.getpid()}")
    try:
        with half.open("w", encoding="utf-8") as stream:
            stream.writelines(render_check(rows, names, pictures, facts, page, version=version))
        half.replace(page)
    except OSError as error:
        raise ConfigError(
            f"--html {page}: {error.strerror}", hint="name a file that can be written"
        ) from None
    finally:
        half.unlink(missing_ok=True)


def render_check(
    rows: Sequence[Row],
    names: Sequence[str],
    pictures: Sequence[bytes | None],
    facts: CheckFacts,
    page: Path,
    *,
    version: str = "",
) -> Iterator[str]:
    """The page in pieces: a tile per row with its picture (JPEG, None = there is none), in the
    order of the rows; of one row a report.

    `names`: what is shown of each row's place. `page`: where the page will lie, so that its links
    to files hold when both are moved.
    """
    from ray_app.reports.html import file_link, jpeg_uri, render_in_pieces, script_hash
    from ray_app.reports.tiles import sort_attributes, tile_texts, verdict_choices

    beside = os.path.dirname(os.path.abspath(page))
    if len(rows) == 1:
        return iter(
            [
                _render_one(
                    {**rows[0], "uri": names[0]},
                    pictures[0],
                    facts,
                    file_link(rows[0]["uri"], None, beside),
                    version,
                )
            ]
        )
    texts = [explained(row) for row in rows]
    whys = gathered((name, text) for name, text in zip(names, texts, strict=True) if text)
    place = {key: number for number, key in enumerate(whys)}
    tiles = (  # one at a time, so that no picture lies in memory twice
        {
            "row": row,
            "name": name,
            "link": file_link(row["uri"], None, beside),
            "picture": jpeg_uri(picture) if picture else None,
            "texts": tile_texts(row),
            "why": why,
            "alike": whys[form(why)].files if why else 0,
            "attributes": sort_attributes(row)
            | {
                "data-folder": wording.shortened(name.rpartition("/")[0], _LONGEST_FOLDER) + "/",
                "data-why": place[form(why)] if why else "",
            },
        }
        for row, name, picture, why in zip(rows, names, pictures, texts, strict=True)
    )
    return render_in_pieces(
        "check.html",
        tiles=tiles,
        count=len(rows),
        crowd=len(rows) > CROWD,
        facts=facts,
        counts=_counts(rows),
        whys=list(whys.values()),
        remarks=_limits(facts, rows),
        verdict_choices=verdict_choices(rows),
        script_hash=script_hash("tiles.js"),
        version=version,
    )


def _render_one(
    row: Row, picture: bytes | None, facts: CheckFacts, link: str | None, version: str
) -> str:
    from ray_app.reports import run
    from ray_app.reports.html import jpeg_uri, render
    from ray_app.reports.tiles import tile_texts

    name = wording.shortened(str(row["uri"]).rstrip("/").rpartition("/")[2] or str(row["uri"]), 80)
    finding = row.get("finding") or f"not scored, {row['status']}"
    scores = row["scores"] if row["status"] == "ok" else {}
    return render(
        "picture.html",
        row=row,
        link=link,
        facts=facts,
        version=version,
        headline=f"{name}: {finding}.",
        picture=jpeg_uri(picture) if picture else None,
        why=explained(row),
        detectors=[(name, facts.detectors.get(name, ""), score) for name, score in scores.items()],
        end=max([4.0, *(abs(score) for score in scores.values() if score is not None)]),
        said=tile_texts(row),
        notes=[
            note
            for key, note in (("predicted_generator", run.NEAREST), ("predicted_prompt", run.WORDS))
            if key in row
        ],
        origin=_provenance_rows(row.get("provenance")),
        caveats=[*CAVEATS.get(row["verdict"] or "", ()), *facts.blind_to, ALWAYS],
    )


def _provenance_rows(provenance: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Return what a file says of its own origin, as pairs of name and value."""
    if not provenance:
        return []
    parsed = Provenance.model_validate(provenance)
    rows = [(_PROVENANCE.get(name, name), value) for name, value in parsed.lines().items()]
    if parsed.c2pa is not None:
        rows.append(("signature", wording.C2PA_WORDS[parsed.c2pa.state]))
    return [*rows, ("declares itself generated", "yes" if provenance.get("ai_declared") else "no")]


def check_lines(
    rows: Sequence[Row], names: Sequence[str], facts: CheckFacts, width: int
) -> list[str]:
    """A table; under it why pictures have no score or no verdict, and what holds for all verdicts.
    `names`: as in `render_check`.
    """
    rows = [{**row, "uri": name} for row, name in zip(rows, names, strict=True)]
    lines = [verdict_table(rows, width)]
    if len(rows) > _FEW:
        lines.append(
            f"{wording.counted(len(rows), 'file')}: {', '.join(f'{words} {number:,}' for words, number in _counts(rows))}"
        )
    whys = list(
        gathered((str(row["uri"]), text) for row in rows if (text := explained(row))).values()
    )
    lines += [f"{one.who}: {wording.shortened(one.text, 2 * _LONGEST)}" for one in whys[:_MOST]]
    if len(whys) > _MOST:
        lines.append(
            f"… and {wording.counted(len(whys) - _MOST, 'other reason')}; --json says why of each"
        )
    return [*lines, *_grounds(rows), *_limits(facts, rows)]


def _grounds(rows: Sequence[Row]) -> Iterator[str]:
    """The grounds of findings that are more than the detectors' verdict, whose error rates stand
    below.
    """
    told = [
        row for row in rows if any(one["source"] != "detectors" for one in row.get("grounds") or ())
    ]
    found = list(
        gathered(
            (str(row["uri"]), "\n".join(map(_ground, row["grounds"]))) for row in told
        ).values()
    )
    for one in found[:_MOST]:
        yield from (f"{one.who}:", *one.text.split("\n"))
    if len(found) > _MOST:
        yield f"… and {wording.counted(len(found) - _MOST, 'other finding')} with grounds; --json has them"


def _ground(one: Mapping[str, Any]) -> str:
    return wording.visible(
        f"  {one['says']}" + ("" if one["source"] == "detectors" else f" ({one['error']})")
    )


def explained(row: Row) -> str:
    """Why a row has no score, or its verdict abstains, in words; empty for any other."""
    if row["status"] != "ok":
        return row.get("detail") or wording.meaning(row["status"]) or str(row["status"])
    return (
        wording.why(row["verdict_reason"], row.get("verdict_detail"))
        if row.get("verdict_reason")
        else ""
    )


def csv_lines(rows: Iterator[Row], detectors: Sequence[str]) -> Iterator[str]:
    """The lines of a CSV file, the head first, each as its row comes; a column `score_NAME` per
    detector, nested values as JSON.

    A text that a spreadsheet would take for a formula has a ' before it, and what hides or moves
    text is shown as an escape.
    """
    names = [*COLUMNS, *(f"score_{name}" for name in detectors)]
    yield _csv_line(names)
    for row in rows:
        cells = {**row} | {f"score_{name}": row["scores"].get(name) for name in detectors}
        yield _csv_line([_cell(cells.get(name)) for name in names])


COLUMNS = (
    *(
        "uri",
        "status",
        "detail",
        "finding",
        "grounds",
        "verdict",
        "verdict_reason",
        "verdict_detail",
        "probability",
        "calibrated",
        "fpr",
        "score",
        "second_look",
    ),
    *(
        "predicted_generator",
        "generator_family",
        "generator_probability",
        "predicted_prompt",
        "prompt_likelihood",
    ),
    *("format", "width", "height", "sha256", "provenance"),
)


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None or isinstance(value, int | float):
        return "" if value is None else repr(value)
    text = wording.visible(
        value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    )
    return wording.no_formula(text)


def _csv_line(cells: Sequence[str]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(cells)
    return line.getvalue()


def _counts(rows: Sequence[Row]) -> list[tuple[str, int]]:
    """How many have each verdict, and how many have no score."""
    found = [
        (words, sum(row["verdict"] == verdict for row in rows))
        for verdict, words in wording.VERDICT_WORDS.items()
    ]
    return [*found, ("not scored", sum(row["status"] != "ok" for row in rows))]


def _signers(rows: Sequence[Row]) -> Counter[str]:
    """Where the signers of sound manifests stand, in words."""
    found = [(row.get("provenance") or {}).get("c2pa") or {} for row in rows]
    return Counter(
        words
        for one in found
        if (words := standing(one.get("state", ""), one.get("trust_lists", ())))
    )


def _limits(facts: CheckFacts, rows: Sequence[Row]) -> list[str]:
    if not any(row["status"] == "ok" for row in rows):
        return []
    said = [
        *([wording.DEMONSTRATION] if facts.demonstration else []),
        wording.visible(facts.error_rates),
    ]
    said += [f"limits: {wording.visible(sentence)}" for sentence in facts.blind_to]
    said += [
        f"C2PA: {wording.counted(number, 'signer')} {where}"
        for where, number in _signers(rows).items()
    ]
    return (
        said
        if all(row["calibrated"] for row in rows if row["status"] == "ok")
        else [*said, wording.UNCALIBRATED]
    )
