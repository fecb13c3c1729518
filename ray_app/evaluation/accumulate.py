"""Count the labelled images of a run and read their scores, as input of all metrics (`count_rows`).

The result (`Cells`) groups images into cells. A cell has the images of one kind (real, generated as
a whole, or edited locally), generator, file format, and range of sizes. The result also has a
sample of the images, the most confident mistakes, and a digest that identifies the labelled images
(`compute_digest`). The sample has the images whose ids have the lowest hashes. Neither the sample
nor the digest depends on the order of the rows.
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

from ray_app.archives import ManifestMember, MemberReader, load_guard
from ray_app.ensembles import calibrate, sigmoid
from ray_app.errors import InputError
from ray_app.evaluation.groups import EvaluationGroup
from ray_app.evaluation.join import VIEWS, Database, LabelledRows, quote_name
from ray_app.evaluation.systems import System, Systems
from ray_app.images import ImageLimits, decode_image
from ray_app.inference.small_pictures import SIDE_PX, thumbnail
from ray_app.reports.evaluation.result import Mistake
from ray_app.runs import RunDirectory
from ray_app.runs.current import find_members
from ray_app.storage import Fetcher

MAX_SAMPLE = 100_000
MODULUS = 2**64
MAX_MISTAKES = 24
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
"""Columns of a run that are read in addition to its scores."""
UInt64s = npt.NDArray[np.uint64]
_IMAGES = """
    CREATE VIEW images AS SELECT *, CASE WHEN megapixels < 0.1 THEN 0 WHEN megapixels < 0.5 THEN 1 WHEN megapixels < 1 THEN 2
    WHEN megapixels <= 4 THEN 3 WHEN megapixels > 4 THEN 4 ELSE 5 END AS band
    FROM (SELECT *, coalesce(format, 'unknown') AS form, width::DOUBLE * height / 1e6 AS megapixels FROM joined JOIN groups USING (code))"""
_CELLS = """
    CREATE TABLE cells AS SELECT (row_number() OVER (ORDER BY code, form, band) - 1)::INTEGER AS cell, *
    FROM (SELECT DISTINCT code, form, band, kind, generator FROM images)"""
_IN_CELLS = "images JOIN cells USING (code, form, band)"


class FileCell(NamedTuple):
    """The images of one kind, generator, file format, and range of sizes.

    Attributes:
        group: The kind (real, generated as a whole, or edited locally) and the generator, by the
            labels.
        format: The file format; `unknown` if the file could not be read.
        size: One of BANDS, such as `1–4 MP`; `unknown` if the file could not be read.
    """

    group: EvaluationGroup
    format: str
    size: str


class ScoreColumn(NamedTuple):
    """The scores that one detector or ensemble gave to labelled images.

    Images without a score are left out.

    Attributes:
        scores: Scores (n,), log-odds of fake, in no particular order.
        cells: Index (n,) in `Cells.cells` of the cell of each scored image. A cell is a set of
            images of one kind, generator, file format, and range of sizes.
    """

    scores: npt.NDArray[np.floating[Any]]
    cells: npt.NDArray[np.int32]


@dataclass(frozen=True)
class Cells:
    """Counts and scores of the labelled images of a run, by cell.

    A cell is a set of images of one kind, generator, file format, and range of sizes. Each image of
    a run has one row of results.

    Attributes:
        rows: Number of labelled rows by (cell, status, verdict). The verdict is None if the image
            was not scored.
        cells: All cells.
        scores: Function that reads the scores of a detector or ensemble, given its name.
        views: Function that reads the scores of perturbed copies of the images, given the name of a
            detector or ensemble. For each perturbation, it yields the name, such as `jpeg:75`, and
            the scores.
        sample: Random sample of the labelled rows.
        mistakes: Images whose score is on the wrong side of the threshold, the most confident
            first. The score is that of the ensemble or detector that decides verdicts.
        predicted: Number of rows that name a generator, under the key `predicted_generator`, and of
            rows with a predicted prompt, under `predicted_prompt`.
        digest: Number that identifies the set of labelled images (`compute_digest`).
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
        """Number of rows of the run that have a label."""
        return self.rows.total()


def count_rows(labelled: LabelledRows, systems: Systems, *, max_sample: int = MAX_SAMPLE) -> Cells:
    """Count the labelled images of a run by cell, and make functions that read their scores.

    A cell is a set of images of one kind, generator, file format, and range of sizes. The scores
    are not read yet: `Cells.scores` and `Cells.views` read the scores of one detector at a time
    when they are called.

    Args:
        labelled: The labelled rows of the run, after `LabelledRows.join` with `COLUMNS` and
            `systems`.
        systems: The detectors and the ensemble of the run.
        max_sample: Maximum number of rows in the sample.

    Returns:
        The counts, the sample, and the functions that read scores.
    """
    database = labelled.database
    database.execute(_IMAGES)
    database.execute(_CELLS)
    cells = [
        FileCell(
            EvaluationGroup(row["kind"], row["generator"]),
            row["form"],
            (*BANDS, UNKNOWN)[row["band"]],
        )
        for row in database.query("FROM cells ORDER BY cell").to_pylist()
    ]
    row_counts = database.execute(
        f"SELECT cell, coalesce(status, 'unknown'), verdict, count(*) FROM {_IN_CELLS} GROUP BY ALL"
    )
    [predicted] = database.execute(
        "SELECT count(predicted_generator), count(predicted_prompt) FROM images"
    )
    columns = database.list_columns("joined")
    ids, digest = _select_sample(database, max_sample)
    return Cells(
        rows=Counter({(cells[cell], status, verdict): n for cell, status, verdict, n in row_counts}),
        cells=cells,
        scores=lambda name: _read_column(database, f"score:{name}"),
        views=lambda name: (
            (column.removeprefix(prefix), _read_column(database, column))
            for prefix in [f"view:{name}|"] for column in columns if column.startswith(prefix)
        ),
        sample=_read_sample(database, ids, systems, columns),
        mistakes=_read_mistakes(database, systems.headline),
        predicted=dict(zip(_PREDICTED, predicted, strict=True)),
        digest=digest,
    )  # fmt: skip


def _read_column(database: Database, name: str) -> ScoreColumn:
    """Return the scores in one column that are not null, with the cells of their images."""
    score = quote_name(name)
    tables = [
        (table["score"].to_numpy(), table["cell"].to_numpy())
        for table in database.iter_tables(
            f"SELECT cell, {score} AS score FROM {_IN_CELLS} WHERE {score} IS NOT NULL"
        )
    ]
    if not tables:
        return ScoreColumn(np.empty(0, np.float32), np.empty(0, np.int32))
    return ScoreColumn(*(np.concatenate(parts) for parts in zip(*tables, strict=True)))


def _select_sample(database: Database, max_sample: int) -> tuple[npt.NDArray[np.int64], int]:
    """Select the ids with the lowest hashes.

    Args:
        database: The database of labelled rows.
        max_sample: Maximum number of ids.

    Returns:
        The ids in the order of their hashes, and the digest of all labelled images.
    """
    selected, digest = np.empty(0, np.int64), 0
    for table in database.iter_tables("SELECT image_id, label = 'fake' AS fake FROM images"):
        ids = table["image_id"].to_numpy()
        digest = (digest + compute_digest(ids, table["fake"].to_numpy())) % MODULUS
        selected = np.concatenate([selected, ids])
        if len(selected) > 2 * max_sample:
            selected = selected[np.argpartition(hash_ids(selected), max_sample)[:max_sample]]
    return selected[np.argsort(hash_ids(selected))[:max_sample]], digest


def _read_sample(
    database: Database, ids: npt.NDArray[np.int64], systems: Systems, columns: Sequence[str]
) -> pa.Table:
    """Return the rows of these ids in their order.

    Args:
        database: The database of labelled rows.
        ids: The ids of the sample.
        systems: Each system adds a float64 column `score:SYSTEM`.
        columns: The columns of the rows.

    Returns:
        Facts of the file, truth, verdict, and scores.
    """
    database.add(
        "sampled", pa.table({"image_id": pa.array(ids), "position": pa.array(np.arange(len(ids)))})
    )
    scores = [
        f"{quote_name(f'score:{system.name}')}::DOUBLE AS {quote_name(f'score:{system.name}')}"
        for system in systems.all
    ]
    names = [
        "image_id",
        *FACTS,
        "verdict",
        "kind",
        "generator",
        *(["label_source AS source"] if "label_source" in columns else []),
        *scores,
    ]
    rows = database.query(
        f"SELECT {', '.join(names)}, band FROM sampled JOIN images USING (image_id) ORDER BY position"
    )
    sizes = pa.array((*BANDS, UNKNOWN)).take(rows["band"])
    return rows.drop_columns(["band"]).append_column("size", sizes)


def _read_mistakes(database: Database, system: System) -> list[dict[str, Any]]:
    """Return the images on the wrong side of the threshold, the farthest from it first.

    Ties are ordered by id.
    """
    score = f"{quote_name(f'score:{system.name}')}::DOUBLE"
    table = database.query(
        f"SELECT image_id, uri, member, verdict, label, generator, {score} AS score FROM images "
        f"WHERE ({score} {'>' if system.strict else '>='} $1) <> (label = 'fake') ORDER BY abs({score} - $1) DESC, image_id LIMIT $2",
        system.threshold, MAX_MISTAKES,
    )  # fmt: skip
    probabilities = sigmoid(calibrate(table["score"].to_numpy(), system.calibration))
    rows: list[dict[str, Any]] = table.append_column(
        "probability", pa.array(probabilities)
    ).to_pylist()
    return rows


def hash_ids(ids: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """Return a distinct hash for each image id (n,), by which a random sample is selected."""
    return mix_bits(ids.view(np.uint64) + np.uint64(0x9E3779B97F4A7C15))


def compute_digest(
    image_ids: npt.NDArray[np.int64] | UInt64s, is_fake: npt.NDArray[np.bool_]
) -> int:
    """Return a number that identifies a set of labelled images, regardless of their order.

    Equal digests show that two evaluations used the same images and labels. The digest is the sum
    of 64-bit hashes of images with their labels, modulo 2⁶⁴. The digests of two disjoint sets can
    therefore be added. The hash is SplitMix64 (Steele, Lea and Flood 2014), which protects against
    accidental collisions but not against an adversary.

    Args:
        image_ids: Ids (n,).
        is_fake: Labels (n,).

    Returns:
        The digest, from 0 to 2⁶⁴ − 1.
    """
    with np.errstate(over="ignore"):
        values: UInt64s = image_ids.astype(np.uint64) + np.where(
            is_fake, np.uint64(0x9E3779B97F4A7C15), np.uint64(0x2545F4914F6CDD1D)
        )
        return int(mix_bits(values).sum(dtype=np.uint64))


def mix_bits(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return a pseudo-random 64-bit hash of each integer (n,).

    Different integers get different hashes. The function is the finaliser of SplitMix64 (Steele,
    Lea and Flood 2014).
    """
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def add_thumbnails(
    rows: Sequence[Mapping[str, Any]], run: RunDirectory, *, has_thumbnails: bool
) -> list[Mistake]:
    """Return the mistakes of `Cells.mistakes` as `Mistake` objects, with thumbnails if requested.

    A mistake is an image whose score is on the wrong side of the threshold.

    Args:
        rows: The rows of the mistakes.
        run: The run whose images are read.
        has_thumbnails: Whether to read thumbnails, which are small JPEGs in base64.

    Returns:
        The mistakes. The thumbnail is None if it was not requested or the image cannot be read.
    """
    thumbnails = (
        read_thumbnails(run, [row["image_id"] for row in rows]) if has_thumbnails and rows else {}
    )
    return [
        Mistake(
            **row,
            thumbnail=base64.b64encode(jpeg).decode()
            if (jpeg := thumbnails.get(row["image_id"]))
            else None,
        )
        for row in rows
    ]


def read_thumbnails(
    run: RunDirectory, ids: Sequence[int], *, side: int = SIDE_PX
) -> dict[int, bytes]:
    """Return small JPEGs of images of a run, by image id.

    Images that cannot be read any more are left out.

    Args:
        run: The run.
        ids: The ids of the images.
        side: Maximum length of a side in pixels.

    Returns:
        The bytes of each JPEG by image id.
    """
    return {image_id: thumbnail(pixels, side) for image_id, pixels in decode_run_images(run, ids)}


def decode_run_images(run: RunDirectory, ids: Collection[int]) -> Iterator[tuple[int, Image.Image]]:
    """Yield the id and the pixels of those images of a run that can still be read.

    Images are in the order of their position in the archive.
    """
    in_place = sorted(
        find_members(run, set(ids)).values(),
        key=lambda member: (member.uri, member.block, member.slot),
    )
    for member, image in decode_members(
        in_place, Fetcher(guard=load_guard(run.store)), run.limits()
    ):
        yield member.image_id, image


def decode_members(
    members: Sequence[ManifestMember], fetcher: Fetcher, limits: ImageLimits
) -> Iterator[tuple[ManifestMember, Image.Image]]:
    """Yield the files of an archive that can be read and decoded, in order, each with its pixels.

    Files that cannot be read or decoded are skipped.

    Args:
        members: Files of an archive (members).
        fetcher: Reads their bytes.
        limits: Limits on the images.
    """
    for member, data in MemberReader(fetcher, max_bytes=limits.max_bytes).read(members):
        if not isinstance(data, InputError):
            try:
                image = decode_image(data, limits)
            except InputError:
                continue
            yield member, image.pixels
