"""One pass over a run (`gather`): every score counted in the cell of its image's truth, format and size.

What is gathered of some files merges with what is gathered of others, so that tasks may share a run; the result is the same.

A sample of a run's rows (`RowSample`), the digest of its labelled images (`digest_of`), and its most confident mistakes (`Mistakes`).

Sample and digest are the same in whatever order the rows come: the rows whose ids hash lowest are kept.
"""

import base64
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_app.archives import Each, ManifestMember, MemberReader, guard_of
from ray_app.ensembles import calibrate, sigmoid
from ray_app.errors import InputError
from ray_app.evaluation.groups import EvaluationGroup, ScoreTally
from ray_app.evaluation.join import PLACE, Joined, JoinedLabels, Labels, own_fields
from ray_app.evaluation.systems import Column, System, Systems
from ray_app.images import ImageLimits, decode_image
from ray_app.inference.small_pictures import SIDE_PX, thumbnail
from ray_app.reports.evaluation.model import MistakeFacts
from ray_app.runs import RunDirectory
from ray_app.runs.reader import current_files, members_of, tables_in
from ray_app.storage import Fetcher

MOST = 100_000
Words = npt.NDArray[np.uint64]
MODULUS = 2**64
MOST_MISTAKES = 24
_COLUMNS = ["image_id", "uri", "member", "verdict"]


class RowSample:
    """The rows, no more than `most`, of which nothing else is lower. Tables must have `image_id` and equal columns."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._orders: list[npt.NDArray[np.uint64]] = []
        self._tables: list[pa.Table] = []
        self._count = 0
        self._limit: np.uint64 | None = None

    def wanted(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Which of some rows may belong to it, so that only of those the columns are made."""
        orders = hashed(ids)
        return np.flatnonzero(orders < self._limit) if self._limit is not None else np.arange(len(ids))

    def add(self, rows: pa.Table) -> None:
        """Offer rows."""
        if len(rows):
            self._orders.append(hashed(rows["image_id"].to_numpy()))
            self._tables.append(rows)
            self._count += len(rows)
            if self._count > 2 * self._most:
                self._settle()

    def merge(self, other: "RowSample") -> None:
        """Offer what another has kept."""
        self.add(other.rows())

    def rows(self) -> pa.Table:
        """The rows in the order of their hashes; a table without columns where none was ever offered."""
        self._settle()
        return self._tables[0] if self._tables else pa.table({})

    def _settle(self) -> None:
        if not self._tables:
            return
        orders = np.concatenate(self._orders)
        kept = np.argsort(orders, kind="stable")[: self._most]
        rows = pa.concat_tables(self._tables, promote_options="default").take(pa.array(kept)).combine_chunks()
        self._orders, self._tables, self._count = [orders[kept]], [rows], len(kept)
        if len(kept) == self._most:
            self._limit = self._orders[0][-1]


class Mistakes:
    """Images on the wrong side of a threshold, the farthest from it first; of equal ones the lower id."""

    def __init__(self) -> None:
        self._rows: list[tuple[float, int, dict[str, Any]]] = []

    def add(self, table: pa.Table, truth: JoinedLabels, is_fake: npt.NDArray[np.bool_], scores: Column, system: System) -> None:
        """Look at labelled result rows with the scores of one system, (n,) each; NaN is no mistake."""
        excess = np.abs(scores.astype(np.float64) - system.threshold)
        wrong = np.flatnonzero(np.isfinite(scores) & (system.says_fake(scores) != is_fake))
        least = self._rows[-1][0] if len(self._rows) == MOST_MISTAKES else -1.0
        wrong = wrong[excess[wrong] >= least]
        if not len(wrong):
            return
        ids = table["image_id"].to_numpy()
        wrong = wrong[np.lexsort((ids[wrong], -excess[wrong]))[:MOST_MISTAKES]]
        chances = sigmoid(calibrate(scores[wrong].astype(np.float64), system.calibration))
        rows = table.select(_COLUMNS).take(pa.array(wrong)).to_pylist()
        for place, row, chance in zip(wrong.tolist(), rows, chances.tolist(), strict=True):
            group = truth.groups[truth.codes[place]]
            row |= {"label": group.label, "generator": group.generator, "score": float(scores[place]), "probability": chance}
            self._rows.append((float(excess[place]), row["image_id"], row))
        self._keep()

    def merge(self, other: "Mistakes") -> None:
        """Those of other rows too."""
        self._rows += other._rows
        self._keep()

    def rows(self) -> list[dict[str, Any]]:
        """As the document has them, without pictures."""
        return [row for _, _, row in self._rows]

    def _keep(self) -> None:
        self._rows = sorted(self._rows, key=lambda one: (-one[0], one[1]))[:MOST_MISTAKES]


def hashed(ids: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """One number for each id, (n,), a different one for each."""
    return mixed(ids.view(np.uint64) + np.uint64(0x9E3779B97F4A7C15))


def digest_of(image_ids: npt.NDArray[np.int64] | Words, is_fake: npt.NDArray[np.bool_]) -> int:
    """The sum of 64-bit hashes of images (n,) with their labels, modulo 2⁶⁴: that of two parts adds up to that of both.

    Each image is hashed by SplitMix64 (Steele, Lea and Flood 2014): enough against chance, not against an adversary.
    """
    with np.errstate(over="ignore"):
        words: Words = image_ids.astype(np.uint64) + np.where(is_fake, np.uint64(0x9E3779B97F4A7C15), np.uint64(0x2545F4914F6CDD1D))
        return int(mixed(words).sum(dtype=np.uint64))


def mixed(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """SplitMix64's finaliser (Steele, Lea and Flood 2014) of words (n,), which gives no two the same."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def with_thumbnails(rows: Sequence[Mapping[str, Any]], run: RunDirectory, *, wanted: bool) -> list[MistakeFacts]:
    """The rows with `thumbnail`: a small JPEG of the picture as it is now, in base64; None where it cannot be read, or none is wanted."""
    pictures = pictures_of(run, [row["image_id"] for row in rows]) if wanted and rows else {}
    return [
        MistakeFacts(**row, thumbnail=base64.b64encode(picture).decode() if (picture := pictures.get(row["image_id"])) else None)
        for row in rows
    ]


def pictures_of(run: RunDirectory, ids: Sequence[int], *, side: int = SIDE_PX) -> dict[int, bytes]:
    """JPEG bytes by image id, no side above `side` pixels; an image that cannot be read any more has none."""
    limits = run.limits()
    reader = MemberReader(Fetcher(guard=guard_of(run.store)), max_bytes=limits.max_bytes)
    return thumbnails_of(reader, members_of(run, ids).values(), limits, side=side)


def thumbnails_of(reader: MemberReader, members: Iterable[ManifestMember], limits: ImageLimits, *, side: int = SIDE_PX) -> dict[int, bytes]:
    """JPEG bytes by image id of members that can be read, no side above `side` pixels."""
    pictures = {}
    for member, data in reader.read(list(members)):
        with suppress(InputError):
            if not isinstance(data, InputError):
                pictures[member.image_id] = thumbnail(decode_image(data, limits).pixels, side)
    return pictures


BANDS = ("< 0.1 MP", "0.1–0.5 MP", "0.5–1 MP", "1–4 MP", "> 4 MP")
UNKNOWN = "unknown"
FACTS = ("format", "width", "height", "mode", "icc", "quality", "orientation")
COLUMNS = ["image_id", "uri", "member", "status", *FACTS, "scores", "score", "verdict", "views", "predicted_generator", "predicted_prompt"]
Counts = npt.NDArray[np.int64]


class FileCell(NamedTuple):
    """Images that are alike: `size` is one of BANDS; that and `format` are `unknown` where the file could not be read."""

    group: EvaluationGroup
    format: str
    size: str


@dataclass
class Cells(Joined):
    """What a pass gathers. `rows`: labelled rows by cell, status and verdict (None = not scored). `views`: by view, system and kind.

    `digest`: of the labelled images.
    """

    rows: Counter[tuple[FileCell, str, str | None]] = field(default_factory=Counter)
    scores: dict[tuple[str, FileCell], ScoreTally] = field(default_factory=lambda: defaultdict(ScoreTally))
    views: dict[tuple[str, str, str], ScoreTally] = field(default_factory=lambda: defaultdict(ScoreTally))
    sample: RowSample = field(default_factory=RowSample)
    mistakes: Mistakes = field(default_factory=Mistakes)
    predicted: Counter[str] = field(default_factory=Counter)
    digest: int = 0

    def merge(self, other: "Cells") -> None:
        """Add what another pass gathered, of later files."""
        self.rows.update(other.rows)
        for name, tally in other.scores.items():
            self.scores[name].merge(tally)
        for place, tally in other.views.items():
            self.views[place].merge(tally)
        self.sample.merge(other.sample)
        self.mistakes.merge(other.mistakes)
        if other.used is not None:
            self.used = other.used.copy() if self.used is None else self.used | other.used
        self.joined, self.others, self.other = self.joined + other.joined, self.others + other.others, self.other or other.other
        self.predicted.update(other.predicted)
        self.digest = (self.digest + other.digest) % MODULUS


@dataclass(frozen=True)
class Gatherer:
    """Gathers cells from some files of a run. Picklable, as tasks need it."""

    run: RunDirectory
    labels: Labels
    systems: Systems
    most: int = MOST

    def __call__(self, files: Sequence[str]) -> Cells:
        """What the current rows of these files hold."""
        cells = Cells(sample=RowSample(self.most))
        cells.begin(self.labels)
        for table in tables_in(self.run, files, list(dict.fromkeys([*COLUMNS, *self.systems.columns, *self.labels.columns]))):
            self._add(cells, table)
        cells.scores, cells.views = dict(cells.scores), dict(cells.views)  # functions cannot be pickled
        return cells

    def _add(self, cells: Cells, table: pa.Table) -> None:
        table, truth = cells.matched(self.labels, table)
        if not len(table):
            return
        for name in ("predicted_generator", "predicted_prompt"):
            if name in table.column_names:
                cells.predicted[name] += len(table) - table[name].null_count
        clean = self.systems.clean(table)
        alike, cell_of = _cells(table, truth)
        _count_rows(cells, table, alike, cell_of)
        _count_scores(cells, alike, cell_of, clean)
        self._count_views(cells, table, truth)
        ids = table["image_id"].to_numpy()
        if len(wanted := cells.sample.wanted(ids)):
            cells.sample.add(_sampled(table, truth, clean, wanted))
        headline = self.systems.headline
        is_fake = np.array([group.label == "fake" for group in truth.groups])[truth.codes]
        cells.mistakes.add(table, truth, is_fake, clean[headline.name], headline)
        cells.digest = (cells.digest + digest_of(ids, is_fake)) % MODULUS

    def _count_views(self, cells: Cells, table: pa.Table, truth: JoinedLabels) -> None:
        kinds = np.array([group.kind for group in truth.groups])[truth.codes]
        for view, columns in self.systems.views(table).items():
            for system, scores in columns.items():
                for kind in ("real", "whole", "local"):
                    some = scores[(kinds == kind) & np.isfinite(scores)]
                    tally = cells.views[view, system, kind]  # a view without a score is listed, too, in the order of the run's
                    if len(some):
                        tally.add(some)


def gather(run: RunDirectory, labels: Labels, systems: Systems, *, each: Each | None = None, most: int = MOST) -> Cells:
    """One pass over the current rows, in this process, or file by file by `each`. Raises ConfigError for a run that is none."""
    gatherer = Gatherer(run, labels, systems, most)
    files = current_files(run)
    if each is None:
        return gatherer(files)
    cells = gatherer([])
    cells.scores, cells.views = defaultdict(ScoreTally, cells.scores), defaultdict(ScoreTally, cells.views)
    for some in each(gatherer, [[path] for path in files]):
        cells.merge(some)
    return cells


def _cells(table: pa.Table, truth: JoinedLabels) -> tuple[list[FileCell], Counts]:
    """The cells of some rows, and which each is in, (n,)."""
    formats = _texts(table["format"])
    names, codes = formats.dictionary.to_pylist(), np.asarray(formats.indices).astype(np.int64)
    bands = _bands(table)
    combined = (truth.codes.astype(np.int64) * len(names) + codes) * (len(BANDS) + 1) + bands
    distinct, places = np.unique(combined, return_inverse=True)
    cells = []
    for one in distinct.tolist():
        rest, band = divmod(one, len(BANDS) + 1)
        group, name = divmod(rest, len(names))
        cells.append(FileCell(truth.groups[group], names[name], (*BANDS, UNKNOWN)[band]))
    return cells, places


def _count_rows(cells: Cells, table: pa.Table, alike: Sequence[FileCell], cell_of: Counts) -> None:
    statuses, verdicts = _texts(table["status"]), _texts(table["verdict"])
    status_names, verdict_names = statuses.dictionary.to_pylist(), verdicts.dictionary.to_pylist()
    combined = (cell_of * len(status_names) + np.asarray(statuses.indices)) * len(verdict_names) + np.asarray(verdicts.indices)
    for one, count in zip(*np.unique(combined, return_counts=True), strict=True):
        rest, verdict = divmod(int(one), len(verdict_names))
        cell, status = divmod(rest, len(status_names))
        cells.rows[alike[cell], status_names[status], None if verdict_names[verdict] == UNKNOWN else verdict_names[verdict]] += int(count)


def _count_scores(cells: Cells, alike: Sequence[FileCell], cell_of: Counts, columns: Mapping[str, Column]) -> None:
    turn = np.argsort(cell_of, kind="stable")
    ends = np.cumsum(np.bincount(cell_of, minlength=len(alike)))
    for system, scores in columns.items():
        ordered = scores[turn]
        is_score = np.isfinite(ordered)
        start = 0
        for cell, end in zip(alike, ends.tolist(), strict=True):
            some = ordered[start:end][is_score[start:end]]
            if len(some):
                cells.scores[system, cell].add(some)
            start = end


def _sampled(table: pa.Table, truth: JoinedLabels, clean: Mapping[str, Column], wanted: Counts) -> pa.Table:
    groups = [truth.groups[code] for code in truth.codes[wanted].tolist()]
    rows = table.select(["image_id", *FACTS]).take(pa.array(wanted))
    columns: dict[str, Any] = {name: rows[name] for name in rows.column_names if name not in ("format", "mode")}
    columns |= {name: rows[name].cast(pa.string()) for name in ("format", "mode")}
    columns["verdict"] = table["verdict"].take(pa.array(wanted)).cast(pa.string())
    columns |= _whose(table, truth, wanted)
    columns |= {"kind": pa.array([one.kind for one in groups], pa.string()), "size": [(*BANDS, UNKNOWN)[band] for band in _bands(rows)],
                "generator": pa.array([one.generator for one in groups], pa.string())}  # fmt: skip
    return pa.table(columns | {f"score:{name}": pa.array(scores[wanted], pa.float64(), from_pandas=True) for name, scores in clean.items()})


def _whose(table: pa.Table, truth: JoinedLabels, wanted: Counts) -> dict[str, Any]:
    """Where sources of real images come from: the place of each row's label, or the row's own field."""
    fields = own_fields(table)
    named = {"source": fields["source"].take(pa.array(wanted)).cast(pa.string())} if "source" in fields.column_names else {}
    return {PLACE: pa.array(truth.places[wanted]), **named}


def _bands(table: pa.Table) -> Counts:
    megapixels = np.asarray(pc.fill_null(pc.multiply(table["width"].cast(pa.float64()), table["height"].cast(pa.float64())), -1.0)) / 1e6
    bands: Counts = (megapixels >= 0.1).astype(np.int64) + (megapixels >= 0.5) + (megapixels >= 1) + (megapixels > 4)
    bands[megapixels < 0] = len(BANDS)
    return bands


def _texts(column: pa.ChunkedArray) -> pa.DictionaryArray:
    """The texts of a column, coded; `unknown` where there is none."""
    filled = pc.fill_null(column.cast(pa.string()), UNKNOWN)
    return filled.combine_chunks().dictionary_encode()
