"""`touchstone demo`: a small archive, scored (`run_demo`), and where the truth is known, how many verdicts were right.

Without pictures of the user's: photographs that installed packages ship, and simulated ones. With them: whatever a folder has, of unknown
truth; or, labelled, a folder with `real` and `fake` in it, or an index.parquet with splits, without the rows of its training split.
"""

import csv
import hashlib
import io
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from ray_app.datasets import DatasetSource, index_source, labels
from ray_app.datasets.layouts import base
from ray_app.ensembles import error_rates
from ray_app.errors import ConfigError
from ray_app.reports import format as wording
from ray_app.reports.text import paragraph, verdict_table
from ray_app.runs import RunDirectory, current_rows
from ray_app.runs.document import RunSummary
from ray_app.scoring.config import ScoreConfig
from ray_app.scoring.run import ScoringResult, score_archive
from ray_app.storage import Store, canonical

CC_BY_2, CC0, PUBLIC_DOMAIN = "CC BY 2.0", "CC0", "public domain"
PHOTOGRAPH, DRAWN, SIMULATED = "photographs", "drawn as a camera takes them, by us", "made: simulated, by us"
REAL, MADE = "real", "made"
RIGHT: Mapping[str, str] = {PHOTOGRAPH: "real", REAL: "real", SIMULATED: "fake", MADE: "fake"}
SENTENCE = (
    "This shows that the machinery works, not how well a detector does: for that it takes many pictures of many sources that it never saw."
)
_FOLDER = "photographs"
_CREDITS = "CREDITS.txt"
_SHOWN = 24  # rows of the table; of more a third of it of each verdict
_ORDER = ("fake", "abstain", None, "real")  # verdicts of the table's rows; None: not scored
_SEEN = ("china.jpg",)  # touchstone-tiny was trained on it
_DEFAULT_IMAGES = 80
MOST = 500  # files of a folder of the user's, if not told otherwise


class Truth(NamedTuple):
    """What is known of one picture: its kind, and for a real or made one of the user's the source."""

    kind: str
    source: str = ""


@dataclass(frozen=True)
class DemoArchive:
    """What is scored: all of it, or the `first` files; the truth by uri and labels for `touchstone evaluate`, where they are known; and the
    file that names who took the photographs.
    """

    source: str
    truth: Mapping[str, Truth]
    labels: Path | None = None
    credits: Path | None = None
    first: int | None = None


@dataclass(frozen=True)
class DemoResult:
    """The run, its rows, and what it is compared with."""

    finished: ScoringResult
    rows: Sequence[Mapping[str, Any]]
    archive: DemoArchive

    def lines(self) -> Iterator[str]:
        """For the terminal: some rows, the run's end, the truth, and what to do next."""
        summary, archive = self.finished.summary, self.archive
        run, described = wording.visible(shlex.quote(str(summary["run"]))), RunSummary.model_validate(summary)
        shown = shown_rows(self.rows)
        yield verdict_table(shown, 110)
        if len(shown) < len(self.rows):
            each = f"at most {_SHOWN // 3} of each verdict, the highest scores first"
            yield f"{len(shown):,} of {wording.counted(len(self.rows), 'row')}: {each}"
        yield ""
        yield wording.headline(described)
        if len(self.rows) == archive.first:
            yield f"At most {archive.first:,} files were taken; --images takes more."
        yield from paragraph(wording.visible(error_rates(described.ensemble.name, described.ensemble.thresholds)), 110)
        if archive.truth:
            yield from ground_truth_lines(self.rows, archive.truth, summary["ensemble"])
        yield from [] if archive.credits is None else [_credited(archive.credits)]
        yield f"report: {wording.visible(str(summary['run']))}/report.html"
        labels, source = (wording.visible(shlex.quote(str(one))) for one in (archive.labels, archive.source))
        evaluate, gallery = f"touchstone evaluate {run} --labels {labels} --out figures", f"touchstone runs gallery {run} --out gallery"
        another = "touchstone check YOUR.jpg" if archive.credits else gallery if archive.labels else f"touchstone score {source} --out run"
        yield f"next: {evaluate if archive.labels else gallery}"
        yield f"      {another}"


def run_demo(folder: Path, *, photos: Path | None = None, images: int | None = None, labelled: bool | None = None) -> DemoResult:
    """Build the archive below `folder` and score it by the ensemble `tiny`, which knows simulated pictures; or score those in `photos` by
    `default`, at most `images` of them. `labelled`: whether their truth is known; None = as it looks. Raises as `score_archive`, and
    ConfigError for photos without labels.
    """
    if photos is None:
        archive = sample(folder, images)
    elif is_labelled(photos) if labelled is None else labelled:
        archive = chosen(photos, folder, images)
    else:
        archive = DemoArchive(str(photos), {}, first=images)
    ensemble = "tiny" if photos is None else "default"
    config = ScoreConfig(source=(archive.source,), out=str(folder / "run"), ensemble=ensemble, limit=archive.first)
    finished = score_archive(config)
    return DemoResult(finished, list(current_rows(RunDirectory.open(str(folder / "run")))), archive)


def is_labelled(photos: Path) -> bool:
    """Whether there is an index of labels, or folders of both labels."""
    if not photos.is_dir():
        return photos.suffix == ".parquet"
    found = {base.FOLDER_LABELS.get(one.name.lower()) for one in photos.iterdir() if one.is_dir()}
    return (photos / "index.parquet").is_file() or {"real", "fake"} <= found


def shown_rows(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows of the table: what is flagged, left open, not scored and the rest, each by score; of many the first ones of each."""
    found = sorted(rows, key=lambda row: -(row["score"] if row["score"] is not None else 0.0))
    each = len(rows) if len(rows) <= _SHOWN else _SHOWN // 3
    return [row for verdict in _ORDER for row in [one for one in found if one["verdict"] == verdict][:each]]


def sample(folder: Path, images: int | None = None) -> DemoArchive:
    """The sample archive with photographs from installed packages beside its simulated pictures; made where it is not there."""
    from ray_app.datasets.simulation.archive import build_sample_archive  # it loads torch

    archive, labelled = folder / "archive", folder / "archive-labels.csv"
    if not archive.exists():
        build_sample_archive(archive, files=images or _DEFAULT_IMAGES)
    photographs = [(one, file) for one, file in packaged_photographs() if one.name not in _SEEN]
    if not (archive / _FOLDER).exists():
        (archive / _FOLDER).mkdir()
        lines = io.StringIO()
        for one, file in photographs:
            data = file.read_bytes()
            (archive / _FOLDER / one.name).write_bytes(data)
            digest = hashlib.sha256(data).hexdigest()
            path = f"{_FOLDER}/{one.name}"
            csv.writer(lines, lineterminator="\n").writerow([f"{archive.name}/{path}", path, digest, "real", one.package])
        with labelled.open("a", encoding="utf-8") as stream:
            stream.write(lines.getvalue())
    truth = {}
    with labelled.open(newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            kind = PHOTOGRAPH if row["path"].startswith(f"{_FOLDER}/") else DRAWN if row["label"] == "real" else SIMULATED
            truth[canonical(str(archive / row["path"]))] = Truth(kind)
    there = [one for one, _ in photographs if (archive / _FOLDER / one.name).exists()]
    credits = folder / _CREDITS
    credits.write_text(
        "".join(f"{_FOLDER}/{one.name}: by {one.author}, {one.licence}, as {one.package} ships it\n" for one in there), "utf-8"
    )
    return DemoArchive(str(archive), truth, labelled, credits)


def chosen(photos: Path, folder: Path, images: int | None) -> DemoArchive:
    """The labelled pictures in `photos` as a list in `folder`: all, or `images` of them, half of each label, drawn by hashes of names."""
    index = photos / "index.parquet" if photos.is_dir() else photos
    rows = _held_out(index) if index.is_file() else _of_folders(photos, folder)
    if not rows:
        raise ConfigError(f"{photos}: every picture is in the training split", hint="rows of the splits validation and test are needed")
    drawn = rows if images is None else _drawn(rows, images)
    folder.mkdir(parents=True, exist_ok=True)
    listed = folder / "held-out.csv"
    with listed.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["uri", "label", "generator", "source"])
        writer.writerows((row["uri"], row["label"], row["generator"], row["source"]) for row in drawn)
    kinds = {"real": REAL, "fake": MADE}
    return DemoArchive(str(listed), {row["uri"]: Truth(kinds[row["label"]], row["source"]) for row in drawn}, listed, first=images)


def written_lines(archive: DemoArchive) -> Iterator[str]:
    """What was written where, for the terminal: the archive by kinds, its labels, and where it stands who took the photographs."""
    kinds = Counter(one.kind for one in archive.truth.values())
    files = sum(1 for path in Path(archive.source).rglob("*") if path.is_file())
    yield f"archive: {wording.visible(archive.source)}, {wording.counted(files, 'file')}, 3 of them broken or no picture"
    yield from (f"  {kinds[kind]:,} {kind}" for kind in (PHOTOGRAPH, DRAWN, SIMULATED))
    yield f"labels: {wording.visible(str(archive.labels))}"
    yield from [] if archive.credits is None else [_credited(archive.credits)]


def _credited(credits: Path) -> str:
    return f"credits: {wording.visible(str(credits))} names who took the photographs, and their licences"


def ground_truth_lines(rows: Sequence[Mapping[str, Any]], truth: Mapping[str, Truth], ensemble: Mapping[str, Any]) -> Iterator[str]:
    """How many verdicts were right, of each kind of picture; a picture that the run has no row of does not count."""
    counts: dict[str, Counter[str]] = {}
    sources: dict[str, set[str]] = {}
    for row in rows:
        if (known := truth.get(row["uri"])) is not None:
            counts.setdefault(known.kind, Counter())[row["verdict"] or "none"] += 1
            sources.setdefault(known.kind, set()).add(known.source)
    members = ", ".join(str(one["name"]) for one in ensemble["members"])
    yield f"the truth, beside the verdicts of the ensemble {ensemble['name']} ({wording.visible(members)}):"
    for kind in (PHOTOGRAPH, REAL, SIMULATED, MADE, DRAWN):
        if kind in counts:
            many = f" of {wording.counted(len(sources[kind]), 'source')}" if kind in (REAL, MADE) else ""
            yield f"  {kind}{many}: {_judged(counts[kind], RIGHT.get(kind))}"
    yield SENTENCE


def _judged(counts: Counter[str], right: str | None) -> str:
    words = {"real": "no evidence found", "fake": "flagged as fake", "abstain": "abstained", "none": "not scored"}
    if right is None:
        return ", ".join(f"{counts[verdict]:,} {text}" for verdict, text in words.items() if counts[verdict])
    others = "".join(f", {counts[verdict]:,} {text}" for verdict, text in words.items() if verdict != right and counts[verdict])
    return f"{counts[right]:,} of {counts.total():,} right ({words[right]}){others}"


def _held_out(index: Path) -> list[dict[str, str]]:
    """Rows of an index.parquet (uri, label, split) that have a split, and another than training."""
    hint = "index.parquet is a table with the columns uri, label and split"
    try:
        table = pq.read_table(index)
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"{index}: {' '.join(str(error).split())[:200]}", hint=hint) from None
    if missing := {"uri", "label", "split"} - set(table.schema.names):
        raise ConfigError(f"{index}: no column {', '.join(sorted(missing))}", hint=hint)
    root, found = base.root_of(None, str(index)), []
    for row in table.to_pylist():
        if row["split"] not in (None, "train"):
            label = labels.parse_label(row["label"], f"{index}, {row['uri']}")
            found.append(_row(base.place_below(root, row["uri"]), label, row.get("generator"), row.get("source")))
    return found


def _of_folders(photos: Path, folder: Path) -> list[dict[str, str]]:
    source = DatasetSource(at=(str(photos),), layout="folders")
    table = index_source(source, Store.open(str(folder / "index")))
    if table["member"].null_count < len(table):
        raise ConfigError(
            f"{photos}: there are archives in it, and the demo takes pictures",
            hint="`touchstone score` takes archives, and `touchstone evaluate` the run",
        )
    rows = zip(table["uri"].to_pylist(), table["input"].to_pylist(), strict=True)
    return [_row(uri, known["label"], known["generator"], known["generator"]) for uri, known in rows]


def _row(uri: str, label: str, generator: str | None, source: str | None) -> dict[str, str]:
    return {"uri": canonical(uri), "label": label, "generator": generator or "", "source": source or ""}


def _drawn(rows: Sequence[dict[str, str]], images: int) -> list[dict[str, str]]:
    ordered = sorted(rows, key=lambda row: hashlib.sha256(row["uri"].encode()).digest())
    each = {label: [row for row in ordered if row["label"] == label] for label in ("real", "fake")}
    real = min(len(each["real"]), max(images // 2, images - len(each["fake"])))
    kept = {row["uri"] for row in [*each["real"][:real], *each["fake"][: images - real]]}
    return [row for row in rows if row["uri"] in kept]


@dataclass(frozen=True)
class PackagedPhotograph:
    """`path` in the folder of the module `module`, which the distribution `package` installs. The licence is the picture's own, as the
    package states it.

    No photograph is part of Touchstone. These are examples of other fields and no data set: enough to show what a verdict looks like on a
    real photograph, too few to measure anything. None of them is in a training set of ours.
    """

    package: str
    module: str
    path: str
    author: str
    licence: str

    @property
    def name(self) -> str:
        """The file's name."""
        return Path(self.path).name

    def file(self) -> Path | None:
        """Where it lies; None where the package is not installed, or ships it no longer. Nothing is imported."""
        spec = find_spec(self.module)
        folders = [] if spec is None else spec.submodule_search_locations or []
        return next((found for folder in folders if (found := Path(folder) / self.path).is_file()), None)


# scikit-learn: datasets/images/README.txt, which names one author for both and links to another's page for flower.jpg. scikit-image: the
# docstrings of skimage.data; textures, scans, telescopes, microscopes and drawings of its wheel are left out, and what names no licence.
PHOTOGRAPHS: Sequence[PackagedPhotograph] = (
    PackagedPhotograph("scikit-learn", "sklearn", "datasets/images/china.jpg", "danielbuechele (Flickr)", CC_BY_2),
    PackagedPhotograph("scikit-learn", "sklearn", "datasets/images/flower.jpg", "vultilion (Flickr)", CC_BY_2),
    PackagedPhotograph("scikit-image", "skimage", "data/astronaut.png", "NASA", PUBLIC_DOMAIN),
    PackagedPhotograph("scikit-image", "skimage", "data/camera.png", "Lav Varshney", CC0),
    PackagedPhotograph("scikit-image", "skimage", "data/chelsea.png", "Stefan van der Walt", CC0),
    PackagedPhotograph("scikit-image", "skimage", "data/coffee.png", "Rachel Michetti", CC0),
    PackagedPhotograph("scikit-image", "skimage", "data/rocket.jpg", "SpaceX", PUBLIC_DOMAIN),
)


def packaged_photographs() -> list[tuple[PackagedPhotograph, Path]]:
    """Those that are there, with their files. scikit-learn is always installed, scikit-image with `touchstone-forensics[demo]`."""
    return [(one, file) for one in PHOTOGRAPHS if (file := one.file()) is not None]
