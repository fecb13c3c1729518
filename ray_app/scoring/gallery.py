"""`touchstone runs gallery`: `make_gallery` writes a finished run as pages of pictures with their
rows.

Streams rows and manifest side by side, one page in memory; of the files nothing but small new
pictures is kept.
"""

import json
import math
import re
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_app import __version__
from ray_app.archives import ManifestMember, MemberReader, guard_of
from ray_app.cluster.progress import Progress
from ray_app.errors import ConfigError, InputError, Status
from ray_app.inference.small_pictures import PictureSize, SmallPictures
from ray_app.reports.format import VERDICT_WORDS, meaning, visible
from ray_app.runs import (
    CurrentRows,
    RunDirectory,
    current_tables,
    document,
    schema,
    selection,
    summary,
)
from ray_app.scoring import pictures
from ray_app.storage import Fetcher, Store

if TYPE_CHECKING:
    from ray_app.reports import gallery

TILE = PictureSize(side_px=640, most_bytes=60_000)  # what a page shows when a tile is enlarged
PER_PAGE = 60
_AT_ONCE = 4  # pictures that are made while the next are read
NOTE = "gallery.json"  # what a gallery is known by, also one that was interrupted: written first
_SHOWN = [
    "image_id",
    "uri",
    "member",
    "input",
    "status",
    "detail",
    "score",
    "probability",
    "calibrated",
    schema.FINDING,
    schema.GROUNDS,
    "provenance",
    "verdict",
    "width",
    "height",
    *summary.PROFILE_COLUMNS,
]
_CHOSEN = [
    "image_id",
    "score",
    "verdict",
    "predicted_generator",
    "generator_family",
    "generator_confidence",
]
_ALL = selection.RowFilter()
_PAGE = re.compile(r"page-\d{5,}\.html")


def make_gallery(
    url: str,
    out: str,
    chosen: selection.RowFilter = _ALL,
    most: int | None = None,
    *,
    per_page: int = PER_PAGE,
    quiet: bool = False,
) -> dict[str, Any]:
    """Write the gallery of the run at `url` to `out` (any fsspec URL) and return what
    `gallery.json` says of it.

    `chosen`: of which verdict and generator images are shown; `most`: no more than so many, those
    with the highest scores.

    Images stand in the order of the archive, so that the same run gives the same pages. One that
    cannot be read is a tile that says so. Raises ConfigError where no run has finished, where it
    has no profile to choose a generator by, or `out` holds something else.
    """
    from ray_app.reports import gallery

    run, store = RunDirectory.open(url), Store.open(out)
    run.describe_finished()
    if chosen.generator is not None:
        selection.require_known_generator(run, chosen.generator)
    names = store.names("")
    if (names or store.folders("")) and NOTE not in names:
        raise ConfigError(
            f"{store.url} is not empty, and holds no gallery", hint="give another --out"
        )
    highest, images = _highest(run, chosen, most)
    pages = max(math.ceil(images / per_page), 1)
    summarized = document.RunSummary.model_validate(run.read_json("summary.json"))
    facts = {
        "run": run.store.url,
        "out": store.url,
        "verdict": chosen.verdict,
        "generator": chosen.generator,
        "most": most,
        "images": images,
        "pages": pages,
    }
    store.write(NOTE, json.dumps(facts, indent=2, ensure_ascii=False).encode())
    progress = Progress(images, done=0, name="gallery") if images and not quiet else None
    with closing(SmallPictures(run.limits(), TILE)) as pictured:
        tiles = _tiles(run, chosen, highest, pictured)
        for page in range(1, pages + 1):
            some = list(islice(tiles, per_page))
            html = gallery.render_gallery_page(
                some,
                gallery.PageNumber(page, pages),
                run=run.store.url,
                shown=_words(chosen, most),
                images=images,
                first=(page - 1) * per_page + 1,
                version=__version__,
                summary=summarized,
            )
            store.write(gallery.page_name(page), html.encode())
            if progress is not None:
                progress.advance(len(some), sum(tile.picture is None for tile in some))
    if progress is not None:
        progress.close()
    for name in store.names(""):  # of a longer gallery that was here
        if _PAGE.fullmatch(name) and name > gallery.page_name(pages):
            store.delete(name)
    return facts


def _words(chosen: selection.RowFilter, most: int | None) -> str:
    """What is shown, for people."""
    parts = [VERDICT_WORDS[chosen.verdict]] if chosen.verdict else []
    if chosen.generator:
        parts.append(
            "like no known generator"
            if chosen.generator == selection.UNKNOWN
            else f"attributed to {visible(chosen.generator)}"
        )
    parts += ["the highest scores"] if most else []
    return ", ".join(parts) or "the whole run"


def _highest(
    run: RunDirectory, chosen: selection.RowFilter, most: int | None
) -> tuple[npt.NDArray[np.int64] | None, int]:
    """The sorted ids of the `most` highest scores (None: all that are chosen), and how many are
    shown. Holds no more than it gives.
    """
    ids, scores, count = np.empty(0, np.int64), np.empty(0), 0
    for table in current_tables(run, _CHOSEN):
        rows = chosen.of(table)
        count += len(rows)
        if most is not None:
            ids = np.concatenate([ids, rows["image_id"].to_numpy()])
            scores = np.concatenate([scores, pc.fill_null(rows["score"], -math.inf).to_numpy()])
            best = np.argsort(-scores, kind="stable")[:most]
            ids, scores = ids[best], scores[best]
    return (None, count) if most is None else (np.sort(ids), len(ids))


def _tiles(
    run: RunDirectory,
    chosen: selection.RowFilter,
    highest: npt.NDArray[np.int64] | None,
    pictured: SmallPictures,
) -> "Iterator[gallery.GalleryTile]":
    images = MemberReader(Fetcher(guard=guard_of(run.store)), max_bytes=run.limits().max_bytes)
    for table, listed in CurrentRows.read(run).members(_SHOWN):
        rows = chosen.of(table)
        if highest is not None:
            rows = rows.filter(pc.is_in(rows["image_id"], pa.array(highest)))
        for start in range(0, len(rows), PER_PAGE):
            some = rows.slice(start, PER_PAGE).to_pylist()
            yield from _pictured(images, some, [listed[row["image_id"]] for row in some], pictured)


def _pictured(
    images: MemberReader,
    rows: Sequence[dict[str, Any]],
    members: Sequence[ManifestMember],
    pictured: SmallPictures,
) -> "Iterator[gallery.GalleryTile]":
    """Tiles in order; what had no status `ok` when it was scored is not read again."""
    read = images.read(
        [member for row, member in zip(rows, members, strict=True) if row["status"] == Status.OK]
    )
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="gallery") as threads:
        at_work: deque[tuple[dict[str, Any], Future[tuple[bytes, str]] | str]] = deque()
        for row in rows:
            if row["status"] != Status.OK:
                at_work.append(
                    (
                        row,
                        "; ".join(
                            filter(None, [meaning(row["status"]) or row["status"], row["detail"]])
                        ),
                    )
                )
            else:
                _, data = next(read)
                at_work.append(
                    (
                        row,
                        pictures.why_not(data)
                        if isinstance(data, InputError)
                        else threads.submit(pictured.of, data),
                    )
                )
                del data
            if len(at_work) > _AT_ONCE:
                yield _tile(*at_work.popleft())
        for row, picture in at_work:
            yield _tile(row, picture)


def _tile(row: dict[str, Any], picture: "Future[tuple[bytes, str]] | str") -> "gallery.GalleryTile":
    from ray_app.reports import gallery

    try:
        return (
            gallery.GalleryTile(row, None, picture)
            if isinstance(picture, str)
            else gallery.GalleryTile(row, picture.result()[0])
        )
    except InputError as refused:
        return gallery.GalleryTile(row, None, pictures.why_not(refused))
