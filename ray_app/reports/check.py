"""Show the verdicts of `touchstone check` as a page, as lines for the terminal, or as CSV.

`render_check` renders an HTML page with a tile for each image, or with a report for a single image.
`check_lines` returns a table with explanations, `csv_lines` the lines of a CSV file. An explanation
that many files share is shown once (`group_texts`).

Rows are as `touchstone check --json` prints them: `uri`, `status`, `detail`, `finding`, `grounds`,
`verdict`, `verdict_reason`, `verdict_detail`, `probability`, `calibrated`, `score`, `scores` (by
detector), `width`, `height`, `format`, `provenance`, and the columns of a profile: the predicted
generator and prompt, if the ensemble predicts them.
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
from ray_app.ensembles.finding import format_error_rates
from ray_app.errors import ConfigError
from ray_app.images.provenance import Provenance
from ray_app.images.provenance.statement import describe_signer
from ray_app.inference.named_files import STDIN
from ray_app.inference.small_pictures import ThumbnailLimits
from ray_app.inference.spec import ScoringSpec
from ray_app.reports import format as wording
from ray_app.reports.text import verdict_table
from ray_app.storage.urls import get_scheme, local_path

CROWD = 500  # A page with more images shows smaller ones.
# Maximum pixels and bytes of an image among many, among a few, and alone on a page.
_IN_CROWD, _TILE, _ALONE = (
    ThumbnailLimits(160, 6_000),
    ThumbnailLimits(320, 40_000),
    ThumbnailLimits(960, 150_000),
)
_MAX_WIDTH, _MAX_REASON_WIDTH, _MAX_GROUPS, _FEW = 100, 400, 20, 10
_MAX_FOLDER_WIDTH = 240
_NUMBERS = re.compile(r"\d[\d.,]*")
_PROVENANCE = {
    "make": "camera, make",
    "model": "camera, model",
    "taken": "taken",
    "software": "software",
    "generator": "generator",
    "prompt": "prompt",
    "checkpoint": "model of the generator",
    "digital_source_type": "digital source type (IPTC)",
    "aigc_label": "label (GB 45438-2025)",
    "c2pa": "C2PA manifest",
    "signed_by": "signed by",
    "unread": "not read",
}

Row = Mapping[str, Any]


# What a verdict does not mean. The endpoint's page has the same text (serving/page/verdict.js).
CAVEATS = {
    "fake": (
        "It is not proof. Real photographs are flagged too, especially edited, shrunk or heavily compressed photographs.",
        "It does not show who made the image, with which tool, or why. A retouched corner and a fully generated scene can both have this result.",
    ),
    "real": (
        "It does not show that the image is genuine. A generator that the detectors have not learnt leaves no traces that they can find.",
        "Traces fade: a screenshot or a copy from a messenger can lose them although the image looks the same.",
    ),
    "abstain": (
        "It means neither half fake nor probably real. The evidence or the image did not allow either answer.",
        "Get the original file: a copy of a copy has lost many of the traces that would decide.",
    ),
}
_PROBABILITY = (
    "A calibrated probability assumes the fraction of fakes among the calibration images: where fakes are rarer, it is too "
    "high."
)
ALWAYS = (
    "It is not about the content of the image. A real photograph can mislead under a false caption."
)


class CheckFacts(NamedTuple):
    """Facts on the ensemble of detectors that gave the verdicts of `touchstone check`.

    Attributes:
        demonstration: Whether any of the detectors is only for demonstrations, so that the verdicts
            must not be used for decisions.
        blind_to: Sentences on what the detectors cannot detect.
        fingerprint: Digest of all settings that determine scores and verdicts; "" if it was not
            computed.
        confidence: Confidence of the upper bound of the ensemble's false-positive rate, such as
            0.95. None if its card states none.
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
    def from_spec(cls, spec: ScoringSpec, fingerprint: str = "") -> "CheckFacts":
        """Return the facts of the ensemble in a scoring specification.

        The current time becomes the time of the check. `spec` has the cards of the ensemble and of
        its detectors. `fingerprint` is the digest of the scoring settings, or "" if unknown.
        """
        cards, now = spec.cards.values(), datetime.now(UTC).isoformat(timespec="seconds")
        titles = {name: card.title for name, card in spec.cards.items()}
        is_demonstration = any(card.demonstration for card in cards)
        card = spec.ensemble
        confidence = card.guarantee.confidence if card.guarantee else None
        return cls(card.name, card.title, is_demonstration, blind_to(cards), card.thresholds,
                   titles, fingerprint, now, confidence)  # fmt: skip

    @property
    def error_rates(self) -> str:
        """Sentences on the ensemble's error rates, which are shown next to verdicts."""
        return format_error_rates(self.name, self.thresholds, self.confidence)


class SharedText(NamedTuple):
    """An explanation that several files share, such as the reason why they have no verdict.

    The texts of the files may differ in their numbers. `text` and `first` are the text and the name
    of the first file, and `files` is the number of files.
    """

    text: str
    first: str
    files: int

    @property
    def who(self) -> str:
        """Text that names the files with this explanation, such as "3 files, the first cat.jpg".

        It is only the name if there is one file.
        """
        first = wording.truncate(self.first, _MAX_WIDTH)
        return (
            first
            if self.files == 1
            else f"{wording.pluralize(self.files, 'file')}, the first {first}"
        )


def group_texts(texts: Iterable[tuple[str, str]]) -> dict[str, SharedText]:
    """Group texts of (name, text) pairs that differ only in numbers, so that each is shown once.

    The most frequent group is first. The key of a group is its text with each number replaced by 0
    (`mask_numbers`).
    """
    first, counts = dict[str, tuple[str, str]](), Counter[str]()
    for name, text in texts:
        key = mask_numbers(text)
        first.setdefault(key, (text, name))
        counts[key] += 1
    return {key: SharedText(*first[key], count) for key, count in counts.most_common()}


def mask_numbers(text: str) -> str:
    """Replace each number by 0, so that texts that differ only in numbers become equal."""
    return _NUMBERS.sub("0", text)


def choose_picture_size(files: int) -> ThumbnailLimits:
    """Return the maximum size of the images on a page that shows this number of files."""
    if files == 1:
        return _ALONE
    return _TILE if files <= CROWD else _IN_CROWD


def name_rows(rows: Sequence[Row], images: Sequence[str]) -> list[str]:
    """Return the name to show for each row.

    Names are paths relative to the common folder of all named files, absolute paths if that folder
    is `/`, and URIs of files that are not local.
    """
    folders = [
        os.path.dirname(os.path.abspath(local_path(image)))
        for image in images
        if image != STDIN and get_scheme(image) == "file"
    ]
    base = os.path.commonpath(folders) if folders else ""
    if base == "/":
        base = ""  # Nothing to leave out: the names are absolute paths.
    return [
        local_path(uri).removeprefix(f"{base}/" if base else "")
        if get_scheme(uri) == "file"
        else uri
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
    """Write the HTML page of `touchstone check --html` to a local file atomically.

    Arguments are those of `render_check`. Raises ConfigError if the file cannot be written.
    """
    temporary = page.with_name(f".{page.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as stream:
            stream.writelines(render_check(rows, names, pictures, facts, page, version=version))
        temporary.replace(page)
    except OSError as error:
        raise ConfigError(
            f"--html {page}: {error.strerror}", hint="choose a file that you can write to"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)


def render_check(
    rows: Sequence[Row],
    names: Sequence[str],
    pictures: Sequence[bytes | None],
    facts: CheckFacts,
    page: Path,
    *,
    version: str = "",
) -> Iterator[str]:
    """Yield the HTML page of `touchstone check` in chunks.

    The page has a tile for each row, which shows the image and its verdict. If there is only one
    row, the page is a detailed report instead. Rows are as `touchstone check --json` prints them.
    Pictures are JPEG bytes, or None if an image cannot be shown. Links to local files are relative
    to `page`, so that they stay valid if the page and the files are moved together.
    """
    from ray_app.reports.html import file_link, jpeg_uri, render_in_pieces, script_hash
    from ray_app.reports.tiles import sort_attributes, tile_texts, verdict_choices

    folder = os.path.dirname(os.path.abspath(page))
    if len(rows) == 1:
        return iter(
            [
                _render_one(
                    {**rows[0], "uri": names[0]},
                    pictures[0],
                    facts,
                    file_link(rows[0]["uri"], None, folder),
                    version,
                )
            ]
        )
    texts = [explain(row) for row in rows]
    whys = group_texts((name, text) for name, text in zip(names, texts, strict=True) if text)
    group_index = {key: index for index, key in enumerate(whys)}
    tiles = (  # A generator, so that only one encoded image is in memory at a time.
        {
            "row": row,
            "name": name,
            "link": file_link(row["uri"], None, folder),
            "picture": jpeg_uri(picture) if picture else None,
            "texts": tile_texts(row),
            "why": why,
            "alike": whys[mask_numbers(why)].files if why else 0,
            "attributes": sort_attributes(row)
            | {
                "data-folder": wording.truncate(name.rpartition("/")[0], _MAX_FOLDER_WIDTH) + "/",
                "data-why": group_index[mask_numbers(why)] if why else "",
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
        counts=_count_verdicts(rows),
        whys=list(whys.values()),
        remarks=_list_limits(facts, rows),
        caveats=_list_caveats(rows),
        probability_note=_PROBABILITY if any(row["calibrated"] for row in rows) else "",
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

    name = wording.truncate(str(row["uri"]).rstrip("/").rpartition("/")[2] or str(row["uri"]), 80)
    finding = row.get("finding") or f"not scored, {row['status']}"
    scores = row["scores"] if row["status"] == "ok" else {}
    return render(
        "picture.html",
        row=row,
        link=link,
        facts=facts,
        version=version,
        headline=f"{name}: {finding}",
        picture=jpeg_uri(picture) if picture else None,
        why=explain(row),
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
        probability_note=_PROBABILITY,
    )


def _provenance_rows(provenance: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Return the statements of a file on its own origin as (name, value) pairs."""
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
    """Return the result of `touchstone check` as lines for the terminal.

    The lines are a table of verdicts, explanations of missing verdicts, and the evidence for
    findings, such as a signed declaration in a file. Sentences on the error rates and the limits of
    all verdicts follow. Rows are as `touchstone check --json` prints them. `width` is in columns.
    """
    rows = [{**row, "uri": name} for row, name in zip(rows, names, strict=True)]
    lines = [verdict_table(rows, width)]
    if len(rows) > _FEW:
        lines.append(
            f"{wording.pluralize(len(rows), 'file')}: {', '.join(f'{phrase} {count:,}' for phrase, count in _count_verdicts(rows))}"
        )
    lines += reason_lines(rows)
    return [*lines, *_list_grounds(rows), *_list_limits(facts, rows)]


def reason_lines(rows: Sequence[Row]) -> list[str]:
    """Return lines for the terminal on why rows have no score, or the verdict `abstain`.

    Each line has the number of files and the `uri` of the first. There is none if every row has the
    verdict `fake` or `real`.
    """
    groups = list(
        group_texts((str(row["uri"]), text) for row in rows if (text := explain(row))).values()
    )
    lines = [
        f"{group.who}: {wording.truncate(group.text, _MAX_REASON_WIDTH)}"
        for group in groups[:_MAX_GROUPS]
    ]
    if len(groups) > _MAX_GROUPS:
        lines.append(
            f"… and {wording.pluralize(len(groups) - _MAX_GROUPS, 'other reason')}; use --json to get all of them"
        )
    return lines


def _list_grounds(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the grounds of findings that do not rest on detectors alone."""
    rows_with_grounds = [
        row
        for row in rows
        if any(ground["source"] != "detectors" for ground in row.get("grounds") or ())
    ]
    groups = list(
        group_texts(
            (str(row["uri"]), "\n".join(map(_format_ground, row["grounds"])))
            for row in rows_with_grounds
        ).values()
    )
    for group in groups[:_MAX_GROUPS]:
        yield from (f"{group.who}:", *group.text.split("\n"))
    if len(groups) > _MAX_GROUPS:
        yield f"… and {wording.pluralize(len(groups) - _MAX_GROUPS, 'other finding')} with grounds; use --json to get all of them"


def _format_ground(ground: Mapping[str, Any]) -> str:
    return wording.escape_invisible(
        f"  {ground['says']}" + ("" if ground["source"] == "detectors" else f" ({ground['error']})")
    )


def explain(row: Row) -> str:
    """Return the reason why an image has no score, or why the verdict on it is `abstain`.

    `row` is its row of `touchstone check`. The result is "" if the verdict is `fake` or `real`.
    """
    if row["status"] != "ok":
        return row.get("detail") or wording.describe_status(row["status"]) or str(row["status"])
    return (
        wording.explain_abstention(row["verdict_reason"], row.get("verdict_detail"))
        if row.get("verdict_reason")
        else ""
    )


def csv_lines(rows: Iterator[Row], detectors: Sequence[str]) -> Iterator[str]:
    """Yield the verdicts of `touchstone check` as lines of a CSV file.

    The first line is the header. A line for each row follows as soon as the row arrives.

    There is a column `score_NAME` for each name in `detectors`. Nested values are JSON. A text that
    a spreadsheet would treat as a formula gets the prefix '. Characters that hide or move text are
    escaped.
    """
    names = [*COLUMNS, *(f"score_{name}" for name in detectors)]
    yield _format_csv_line(names)
    for row in rows:
        cells = {**row} | {f"score_{name}": row["scores"].get(name) for name in detectors}
        yield _format_csv_line([_format_cell(cells.get(name)) for name in names])


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


def _format_cell(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None or isinstance(value, int | float):
        return "" if value is None else repr(value)
    text = wording.escape_invisible(
        value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    )
    return wording.escape_formula(text)


def _format_csv_line(cells: Sequence[str]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(cells)
    return line.getvalue()


def _count_verdicts(rows: Sequence[Row]) -> list[tuple[str, int]]:
    """Return the number of rows with each verdict, and of rows without a score."""
    counts = [
        (phrase, sum(row["verdict"] == verdict for row in rows))
        for verdict, phrase in wording.VERDICT_PHRASES.items()
    ]
    return [*counts, ("not scored", sum(row["status"] != "ok" for row in rows))]


def _list_caveats(rows: Sequence[Row]) -> list[tuple[str, Sequence[str]]]:
    """Return the phrase of each verdict in `rows`, with sentences on what it does not mean."""
    verdicts = {row["verdict"] for row in rows}
    caveats: list[tuple[str, Sequence[str]]] = [
        (wording.VERDICT_PHRASES[verdict], sentences)
        for verdict, sentences in CAVEATS.items()
        if verdict in verdicts
    ]
    return [*caveats, ("any verdict", (ALWAYS,))] if caveats else []


def _count_signers(rows: Sequence[Row]) -> Counter[str]:
    """Count the signers of valid C2PA manifests by their status on trust lists."""
    manifests = [(row.get("provenance") or {}).get("c2pa") or {} for row in rows]
    return Counter(
        phrase
        for manifest in manifests
        if (phrase := describe_signer(manifest.get("state", ""), manifest.get("trust_lists", ())))
    )


def _list_limits(facts: CheckFacts, rows: Sequence[Row]) -> list[str]:
    """Return sentences on the limits of all verdicts; none if no row has a score."""
    if not any(row["status"] == "ok" for row in rows):
        return []
    sentences = [
        *([wording.DEMONSTRATION] if facts.demonstration else []),
        wording.escape_invisible(facts.error_rates),
    ]
    sentences += [f"limits: {wording.escape_invisible(sentence)}" for sentence in facts.blind_to]
    sentences += [
        f"C2PA: {wording.pluralize(count, 'signer')} {phrase}"
        for phrase, count in _count_signers(rows).items()
    ]
    return (
        sentences
        if all(row["calibrated"] for row in rows if row["status"] == "ok")
        else [*sentences, wording.UNCALIBRATED]
    )
