"""Score the shipped sample archive or a folder of the user (`run_demo`), for `touchstone demo`.

The sample archive, `configs/sample`, contains photographs, simulated images, and broken files. Its
verdicts are compared with its labels.
"""

import csv
import shlex
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_app.config import config_root
from ray_app.reports import format as wording
from ray_app.reports.text import paragraph, verdict_table
from ray_app.runs import RunDirectory, current_rows
from ray_app.runs.document import RunSummary
from ray_app.scoring.config import ScoreConfig
from ray_app.scoring.run import ScoringResult, score_archive
from ray_app.storage import canonicalize

PHOTOGRAPH, DRAWN, SIMULATED = (
    "photographs",
    "images of simulated cameras",
    "generated images, simulated",
)
EXPECTED_VERDICTS: Mapping[str, str] = {PHOTOGRAPH: "real", SIMULATED: "fake"}
SENTENCE = "This shows that the machinery works, not how well a detector does: for that it takes many images of many sources that it never saw."
MAX_FILES = 500
"""Maximum number of files of a user's folder, if the user sets no number."""
_MAX_SHOWN_ROWS = 24
_VERDICT_ORDER = ("fake", "abstain", None, "real")  # None means not scored.


@dataclass(frozen=True)
class DemoArchive:
    """The archive that the demo scores.

    Attributes:
        source: The folder with the images.
        kinds: By URI, the kind of each image of the sample archive: `PHOTOGRAPH`, `DRAWN` (an image
            of a simulated camera), or `SIMULATED` (a simulated generated image). Empty for a user's
            folder.
        labels: The labels of the sample archive, for `touchstone evaluate`.
        credits: The file that names authors and licences of the photographs.
        limit: The maximum number of files to score. None is all.
    """

    source: str
    kinds: Mapping[str, str]
    labels: Path | None = None
    credits: Path | None = None
    limit: int | None = None


@dataclass(frozen=True)
class DemoResult:
    """The results of `run_demo`, for the output of the demo.

    Attributes:
        finished: The exit code and the summary of the run.
        rows: The result rows of the run.
        archive: The archive that was scored.
    """

    finished: ScoringResult
    rows: Sequence[Mapping[str, Any]]
    archive: DemoArchive

    def lines(self) -> Iterator[str]:
        """Yield the lines that the demo prints.

        They contain some rows, the summary, the comparison with the labels, and the next commands.
        """
        summary, archive = self.finished.summary, self.archive
        run, run_summary = (
            wording.escape_invisible(shlex.quote(str(summary["run"]))),
            RunSummary.model_validate(summary),
        )
        selected = select_rows(self.rows)
        yield verdict_table(selected, 110)
        if len(selected) < len(self.rows):
            rule = f"at most {_MAX_SHOWN_ROWS // 3} of each verdict, the highest scores first"
            yield f"{len(selected):,} of {wording.pluralize(len(self.rows), 'row')}: {rule}"
        yield ""
        yield wording.headline(run_summary)
        if len(self.rows) == archive.limit:
            yield f"At most {archive.limit:,} files were scored; --images takes more."
        yield from paragraph(
            wording.escape_invisible(run_summary.error_rates),
            110,
        )
        if archive.kinds:
            yield from comparison_lines(self.rows, archive.kinds, summary["ensemble"])
        yield from [] if archive.credits is None else [_credit_line(archive.credits)]
        yield f"report: {wording.escape_invisible(str(summary['run']))}/report.html"
        gallery = f"touchstone runs gallery {run} --out gallery"
        if archive.labels is None:
            yield f"next: {gallery}"
            yield f"      touchstone score {wording.escape_invisible(shlex.quote(archive.source))} --out run"
        else:
            yield f"next: touchstone evaluate {run} --labels {wording.escape_invisible(shlex.quote(str(archive.labels)))} --out figures"
            yield "      touchstone check YOUR.jpg"


def run_demo(folder: Path, *, images: Path | None = None, limit: int | None = None) -> DemoResult:
    """Score the sample archive or a folder of the user.

    Args:
        folder: The folder for the run and for the copy of the sample archive.
        images: The folder to score, with the ensemble `default`. None is the sample archive, with
            the ensemble `tiny`.
        limit: The maximum number of files to score. None is all files of the sample archive, and
            `MAX_FILES` of `images`.

    Returns:
        The run and its rows. The function raises the exceptions of `score_archive`.
    """
    if images is None:
        archive, ensemble = copy_sample(folder, limit), "tiny"
    else:
        archive, ensemble = DemoArchive(str(images), {}, limit=limit or MAX_FILES), "default"
    config = ScoreConfig(
        source=(archive.source,), out=str(folder / "run"), ensemble=ensemble, limit=archive.limit
    )
    finished = score_archive(config)
    return DemoResult(finished, list(current_rows(RunDirectory.open(str(folder / "run")))), archive)


def select_rows(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Select the rows that the demo prints, in groups by verdict, with the highest scores first.

    The groups are fake, `abstain`, not scored, and real. If there are many rows, only the first
    rows of each group are returned.
    """
    ordered = sorted(rows, key=lambda row: -(row["score"] if row["score"] is not None else 0.0))
    limit = len(rows) if len(rows) <= _MAX_SHOWN_ROWS else _MAX_SHOWN_ROWS // 3
    return [
        row
        for verdict in _VERDICT_ORDER
        for row in [row for row in ordered if row["verdict"] == verdict][:limit]
    ]


def copy_sample(folder: Path, limit: int | None = None) -> DemoArchive:
    """Copy the sample archive, its labels, and its credits to a folder, and return the copy.

    An existing copy is reused.
    """
    archive, labels, credits = (
        folder / "archive",
        folder / "archive-labels.csv",
        folder / "CREDITS.txt",
    )
    if not labels.exists():  # The labels are copied last.
        shipped = config_root() / "sample"
        shutil.copytree(shipped / archive.name, archive, dirs_exist_ok=True)
        for path in (credits, labels):
            shutil.copyfile(shipped / path.name, path)
    kinds = {}
    with labels.open(newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            kind = (
                SIMULATED
                if row["label"] == "fake"
                else DRAWN
                if row["generator"].startswith("camera:")
                else PHOTOGRAPH
            )
            kinds[canonicalize(str(folder / row["uri"]))] = kind
    return DemoArchive(str(archive), kinds, labels, credits, limit)


def describe_sample(archive: DemoArchive) -> Iterator[str]:
    """Yield lines that describe a copy of the sample archive: its kinds of images, labels, credits."""
    counts = Counter(archive.kinds.values())
    files = sum(1 for path in Path(archive.source).rglob("*") if path.is_file())
    yield f"archive: {wording.escape_invisible(archive.source)}, {wording.pluralize(files, 'file')}, 3 of them broken or not an image"
    yield from (f"  {counts[kind]:,} {kind}" for kind in (PHOTOGRAPH, DRAWN, SIMULATED))
    yield f"labels: {wording.escape_invisible(str(archive.labels))}"
    yield from [] if archive.credits is None else [_credit_line(archive.credits)]


def _credit_line(credits: Path) -> str:
    return f"credits: {wording.escape_invisible(str(credits))} names the photographers and the licences"


def comparison_lines(
    rows: Sequence[Mapping[str, Any]], kinds: Mapping[str, str], ensemble: Mapping[str, Any]
) -> Iterator[str]:
    """Yield lines with the number of right verdicts for each kind of image of the sample archive.

    An image without a row does not count.

    Args:
        rows: The rows of the run.
        kinds: The kind of each image, such as `PHOTOGRAPH` or `SIMULATED`, by the URI of the image.
        ensemble: The `ensemble` section of the summary.
    """
    counts: dict[str, Counter[str]] = {}
    for row in rows:
        if (kind := kinds.get(row["uri"])) is not None:
            counts.setdefault(kind, Counter())[row["verdict"] or "none"] += 1
    members = ", ".join(str(member["name"]) for member in ensemble["members"])
    yield f"the labels, next to the verdicts of the ensemble {ensemble['name']} ({wording.escape_invisible(members)}):"
    for kind in (PHOTOGRAPH, SIMULATED, DRAWN):
        if kind in counts:
            yield f"  {kind}: {_describe_verdicts(counts[kind], EXPECTED_VERDICTS.get(kind))}"
    yield SENTENCE


def _describe_verdicts(counts: Counter[str], expected: str | None) -> str:
    names = {
        "real": "no evidence found",
        "fake": "flagged as fake",
        "abstain": "left open",
        "none": "not scored",
    }
    if expected is None:
        return ", ".join(
            f"{counts[verdict]:,} {name}" for verdict, name in names.items() if counts[verdict]
        )
    others = "".join(
        f", {counts[verdict]:,} {name}"
        for verdict, name in names.items()
        if verdict != expected and counts[verdict]
    )
    return f"{counts[expected]:,} of {counts.total():,} right ({names[expected]}){others}"
