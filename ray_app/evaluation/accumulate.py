"""What an evaluation reads of labelled rows (`count_rows`): a column of scores for each system, with
the cell of each image's truth, format and size; a sample of the rows; the most confident mistakes; and the digest of the
labelled images (`digest_of`).

Sample and digest are the same in whatever order the rows come: the rows whose ids hash lowest are
kept. Pictures of rows: `pictures_of`.
"""

import base64
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from ray_app.archives import ManifestMember, MemberReader, guard_of
from ray_app.ensembles import calibrate, sigmoid
from ray_app.errors import InputError
from ray_app.evaluation.groups import EvaluationGroup
from ray_app.evaluation.join import VIEWS, Database, LabelledRows, quoted
from ray_app.evaluation.systems import System, Systems
from ray_app.images import ImageLimits, decode_image
from ray_app.inference.small_pictures import SIDE_PX, thumbnail
from ray_app.reports.evaluation.result import Mistake
from ray_app.runs import RunDirectory
from ray_app.runs.current import members_of
from ray_app.storage import Fetcher

MOST = 100_000
MODULUS = 2**64
MOST_MISTAKES = 24
BANDS = ("< 0.1 MP", "0.1–0.5 MP", "0.5–1 MP", "1–4 MP", "> 4 MP")
UNKNOWN = "unknown"
FACTS = ("format", "width", "height", "mode", "icc", "quality", "orientation")
_PREDICTED = ("predicted_generator", "predicted_prompt")
COLUMNS = (
    "status",
    "verdict",
    VIEWS,
    *FACTS,
    *_PREDICTED,
    "generator_ranking",
    "generator_confidence",
)
"""What is read of a run beside its scores."""
Words = npt.NDArray[np.uint64]
_IMAGES = """
    CREATE VIEW images AS SELECT *, CASE WHEN megapixels < 0.1 THEN 0 WHEN megapixels < 0.5 THEN 1 WHEN megapixels < 1 THEN 2
    WHEN megapixels <= 4 THEN 3 WHEN megapixels > 4 THEN 4 ELSE 5 END AS band
    FROM (SELECT *, coalesce(format, 'unknown') AS form, width::DOUBLE * height / 1e6 AS megapixels FROM joined JOIN groups USING (code))"""
_CELLS = """
    CREATE TABLE cells AS SELECT (row_number() OVER (ORDER BY code, form, band) - 1)::INTEGER AS cell, *
    FROM (SELECT DISTINCT code, form, band, kind, generator FROM images)"""
_IN_CELLS = "images JOIN cells USING (code, form, band)"


class FileCell(NamedTuple):
    """Images that are alike: `size` is one of BANDS; that and `format` are `unknown` where the file
    could not be read.
    """

    group: EvaluationGroup
    format: str
    size: str


class ScoreColumn(NamedTuple):
    """The scores of one system, (n,), in the order of the database, and the cell of each image
    (n,), a place among `Cells.cells`.
    """

    scores: npt.NDArray[np.floating[Any]]
    cells: npt.NDArray[np.int32]


@dataclass(frozen=True)
class Cells:
    """What was counted. `rows`: labelled rows by cell, status and verdict (None = not scored).
    `cells`: all cells; `scores`: by a system's name its scores; `views`: the same for each view of
    perturbed pixels, in the run's order. `predicted`: rows with such a prediction. `mistakes`: as
    the document has them, without pictures.
    """

    rows: Counter[tuple[FileCell, str, str | None]]
    cells: Sequence[FileCell]
    scores: Callable[[str], ScoreColumn]
    views: Callable[[str], Iterable[tuple[str, ScoreColumn]]] = lambda _: ()
    sample: pa.Table = field(default_factory=lambda: pa.table({}))
    mistakes: Sequence[dict[str, Any]] = ()
    predicted: Mapping[str, int] = field(default_factory=dict)
    digest: int = 0

    @property
    def joined(self) -> int:
        """How many rows have a label."""
        return self.rows.total()


def count_rows(labelled: LabelledRows, systems: Systems, *, most: int = MOST) -> Cells:
    """Count rows that were joined with `COLUMNS` and `systems`; the sample has no more than `most`.
    `scores` and `views` are read when they are called: one column at a time is in memory.
    """
    database = labelled.database
    database.rows(_IMAGES)
    database.rows(_CELLS)
    cells = [
        FileCell(
            EvaluationGroup(one["kind"], one["generator"]),
            one["form"],
            (*BANDS, UNKNOWN)[one["band"]],
        )
        for one in database.table("FROM cells ORDER BY cell").to_pylist()
    ]
    counted = database.rows(
        f"SELECT cell, coalesce(status, 'unknown'), verdict, count(*) FROM {_IN_CELLS} GROUP BY ALL"
    )
    [predicted] = database.rows(
        "SELECT count(predicted_generator), count(predicted_prompt) FROM images"
    )
    columns = database.columns("joined")
    ids, digest = _lowest(database, most)
    return Cells(
        rows=Counter({(cells[cell], status, verdict): n for cell, status, verdict, n in counted}),
        cells=cells,
        scores=lambda name: _column(database, f"score:{name}"),
        views=lambda name: (
            (column.removeprefix(start), _column(database, column))
            for start in [f"view:{name}|"] for column in columns if column.startswith(start)
        ),
        sample=_sample(database, ids, systems, columns),
        mistakes=_mistakes(database, systems.headline),
        predicted=dict(zip(_PREDICTED, predicted, strict=True)),
        digest=digest,
    )  # fmt: skip


def _column(database: Database, name: str) -> ScoreColumn:
    """The scores of one column that there are, with the cells of their images."""
    score = quoted(name)
    tables = [
        (table["score"].to_numpy(), table["cell"].to_numpy())
        for table in database.tables(
            f"SELECT cell, {score} AS score FROM {_IN_CELLS} WHERE {score} IS NOT NULL"
        )
    ]
    if not tables:
        return ScoreColumn(np.empty(0, np.float32), np.empty(0, np.int32))
    return ScoreColumn(*(np.concatenate(parts) for parts in zip(*tables, strict=True)))


def _lowest(database: Database, most: int) -> tuple[npt.NDArray[np.int64], int]:
    """The ids that hash lowest, in that order, `most` at most; and the digest of all labelled
    images.
    """
    kept, digest = np.empty(0, np.int64), 0
    for table in database.tables("SELECT image_id, label = 'fake' AS fake FROM images"):
        ids = table["image_id"].to_numpy()
        digest = (digest + digest_of(ids, table["fake"].to_numpy())) % MODULUS
        kept = np.concatenate([kept, ids])
        if len(kept) > 2 * most:
            kept = kept[np.argpartition(hashed(kept), most)[:most]]
    return kept[np.argsort(hashed(kept))[:most]], digest


def _sample(
    database: Database, ids: npt.NDArray[np.int64], systems: Systems, there: Sequence[str]
) -> pa.Table:
    """The rows of these ids, in their order: facts of the file, truth, verdict, and a column
    `score:SYSTEM` for each system, float64.
    """
    database.add(
        "sampled", pa.table({"image_id": pa.array(ids), "place": pa.array(np.arange(len(ids)))})
    )
    scores = [
        f"{quoted(f'score:{one.name}')}::DOUBLE AS {quoted(f'score:{one.name}')}"
        for one in systems.all
    ]
    names = [
        "image_id",
        *FACTS,
        "verdict",
        "kind",
        "generator",
        *(["label_source AS source"] if "label_source" in there else []),
        *scores,
    ]
    rows = database.table(
        f"SELECT {', '.join(names)}, band FROM sampled JOIN images USING (image_id) ORDER BY place"
    )
    sizes = pa.array((*BANDS, UNKNOWN)).take(rows["band"])
    return rows.drop_columns(["band"]).append_column("size", sizes)


def _mistakes(database: Database, system: System) -> list[dict[str, Any]]:
    """Images on the wrong side of the threshold, the farthest from it first; of equal ones the
    lower id.
    """
    score = f"{quoted(f'score:{system.name}')}::DOUBLE"
    found = database.table(
        f"SELECT image_id, uri, member, verdict, label, generator, {score} AS score FROM images "
        f"WHERE ({score} {'>' if system.strict else '>='} $1) <> (label = 'fake') ORDER BY abs({score} - $1) DESC, image_id LIMIT $2",
        system.threshold, MOST_MISTAKES,
    )  # fmt: skip
    chances = sigmoid(calibrate(found["score"].to_numpy(), system.calibration))
    rows: list[dict[str, Any]] = found.append_column("probability", pa.array(chances)).to_pylist()
    return rows


def hashed(ids: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """One number for each id, (n,), a different one for each."""
    return mixed(ids.view(np.uint64) + np.uint64(0x9E3779B97F4A7C15))


def digest_of(image_ids: npt.NDArray[np.int64] | Words, is_fake: npt.NDArray[np.bool_]) -> int:
    """The sum of 64-bit hashes of images (n,) with their labels, modulo 2⁶⁴: that of two parts adds
    up to that of both.

    Each image is hashed by SplitMix64 (Steele, Lea and Flood 2014): enough against chance, not
    against an adversary.
    """
    with np.errstate(over="ignore"):
        words: Words = image_ids.astype(np.uint64) + np.where(
            is_fake, np.uint64(0x9E3779B97F4A7C15), np.uint64(0x2545F4914F6CDD1D)
        )
        return int(mixed(words).sum(dtype=np.uint64))


def mixed(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """SplitMix64's finaliser (Steele, Lea and Flood 2014) of words (n,), which gives no two the
    same.
    """
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def with_thumbnails(
    rows: Sequence[Mapping[str, Any]], run: RunDirectory, *, wanted: bool
) -> list[Mistake]:
    """The rows with `thumbnail`: a small JPEG of the picture as it is now, in base64; None where it
    cannot be read, or none is wanted.
    """
    pictures = pictures_of(run, [row["image_id"] for row in rows]) if wanted and rows else {}
    return [
        Mistake(
            **row,
            thumbnail=base64.b64encode(picture).decode()
            if (picture := pictures.get(row["image_id"]))
            else None,
        )
        for row in rows
    ]


def pictures_of(run: RunDirectory, ids: Sequence[int], *, side: int = SIDE_PX) -> dict[int, bytes]:
    """JPEG bytes by image id, no side above `side` pixels; an image that cannot be read any more
    has none.
    """
    return {image_id: thumbnail(pixels, side) for image_id, pixels in decoded_images(run, ids)}


def decoded_images(run: RunDirectory, ids: Collection[int]) -> Iterator[tuple[int, Image.Image]]:
    """The images of these ids that can still be read, each with its id, in the order in which they
    lie in the archive.
    """
    in_place = sorted(
        members_of(run, set(ids)).values(),
        key=lambda member: (member.uri, member.block, member.slot),
    )
    for member, image in decoded(in_place, Fetcher(guard=guard_of(run.store)), run.limits()):
        yield member.image_id, image


def decoded(
    members: Sequence[ManifestMember], fetcher: Fetcher, limits: ImageLimits
) -> Iterator[tuple[ManifestMember, Image.Image]]:
    """Those of the members that can be read, in their order."""
    for member, data in MemberReader(fetcher, max_bytes=limits.max_bytes).read(members):
        if not isinstance(data, InputError):
            try:
                image = decode_image(data, limits)
            except InputError:
                continue
            yield member, image.pixels
