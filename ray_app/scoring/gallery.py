"""`touchstone gallery`: `make_gallery` writes a finished run as pages of pictures with their rows.

Streams rows and manifest side by side, one page in memory; of the files nothing but small new pictures is kept.
"""

import json
import math
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_app import __version__
from ray_app.archives import ManifestMember, MemberReader, guard_of, iter_blocks, manifests, member_rows, read_block, read_vanished
from ray_app.cluster.progress import Progress
from ray_app.errors import ClusterError, ConfigError, InputError, Status
from ray_app.images import ImageLimits
from ray_app.reports.format import VERDICT_WORDS, meaning, visible
from ray_app.reports.gallery import GalleryTile, PageNumber, page_name, render_gallery_page
from ray_app.runs import RunDirectory, current_tables
from ray_app.runs.directory import Published
from ray_app.runs.summary import PROFILE_COLUMNS as PROFILE
from ray_app.runs.summary import UNKNOWN, of_generator, require_identified
from ray_app.scoring.report import thumbnail
from ray_app.storage import Fetcher, Store

SIDE_PX = 320
PER_PAGE = 60
NOTE = "gallery.json"  # what a gallery is known by, also one that was interrupted: written first
_SHOWN = ["image_id", "uri", "member", "input", "status", "detail", "probability", "calibrated", "verdict", *PROFILE]
_CHOSEN = ["image_id", "score", "verdict", "predicted_generator", "generator_family", "generator_confidence"]
_PAGE = re.compile(r"page-\d{5,}\.html")


class Choice(NamedTuple):
    """Which images are shown: of a verdict, of a generator or family (`unknown`: of none that is known), the `most` highest scores."""

    verdict: str | None = None
    generator: str | None = None
    most: int | None = None

    def rows(self, table: pa.Table) -> pa.Table:
        """Those of a table, but for `most`."""
        if self.verdict is not None:
            table = table.filter(pc.fill_null(pc.equal(table["verdict"].cast(pa.string()), self.verdict), False))
        return table if self.generator is None else of_generator(table, self.generator)

    @property
    def words(self) -> str:
        """The same for people."""
        parts = [VERDICT_WORDS[self.verdict]] if self.verdict else []
        if self.generator:
            parts.append("like no known generator" if self.generator == UNKNOWN else f"said to be of {visible(self.generator)}")
        parts += ["the highest scores"] if self.most else []
        return ", ".join(parts) or "the whole run"


_ALL = Choice()


def make_gallery(url: str, out: str, choice: Choice = _ALL, *, per_page: int = PER_PAGE, quiet: bool = False) -> dict[str, Any]:
    """Write the gallery of the run at `url` to `out` (any fsspec URL) and return what `gallery.json` says of it.

    Images stand in the order of the archive, so that the same run gives the same pages. One that cannot be read is a tile that says so.
    Raises ConfigError where no run has finished, where it has no profile to choose a generator by, or `out` holds something else.
    """
    run, store = RunDirectory.open(url), Store.open(out)
    run.describe_finished()
    run.check_settled()
    if choice.generator is not None:
        require_identified(run)
    names = store.names("")
    if (names or store.folders("")) and NOTE not in names:
        raise ConfigError(f"{store.url} is not empty, and no gallery", hint="give another --out")
    chosen, images = _chosen(run, choice)
    pages = max(math.ceil(images / per_page), 1)
    facts = {"run": run.store.url, "out": store.url, **choice._asdict(), "images": images, "pages": pages}
    store.write(NOTE, json.dumps(facts, indent=2, ensure_ascii=False).encode())
    tiles = _tiles(run, choice, chosen, run.limits())
    progress = Progress(images, done=0, name="gallery") if images and not quiet else None
    for page in range(1, pages + 1):
        some = list(islice(tiles, per_page))
        html = render_gallery_page(some, PageNumber(page, pages), run=run.store.url, shown=choice.words, images=images,
                                   first=(page - 1) * per_page + 1, version=__version__)  # fmt: skip
        store.write(page_name(page), html.encode())
        if progress is not None:
            progress.advance(len(some), sum(tile.picture is None for tile in some))
    if progress is not None:
        progress.close()
    for name in store.names(""):  # of a longer gallery that was here
        if _PAGE.fullmatch(name) and name > page_name(pages):
            store.delete(name)
    return facts


def _chosen(run: RunDirectory, choice: Choice) -> tuple[npt.NDArray[np.int64] | None, int]:
    """The sorted ids of the `most` highest scores (None: all that are chosen), and how many are shown. Holds no more than it gives."""
    ids, scores, count = np.empty(0, np.int64), np.empty(0), 0
    for table in current_tables(run, _CHOSEN):
        rows = choice.rows(table)
        count += len(rows)
        if choice.most is not None:
            ids = np.concatenate([ids, rows["image_id"].to_numpy()])
            scores = np.concatenate([scores, pc.fill_null(rows["score"], -math.inf).to_numpy()])
            best = np.argsort(-scores, kind="stable")[: choice.most]
            ids, scores = ids[best], scores[best]
    return (None, count) if choice.most is None else (np.sort(ids), len(ids))


def _tiles(run: RunDirectory, choice: Choice, chosen: npt.NDArray[np.int64] | None, limits: ImageLimits) -> Iterator[GalleryTile]:
    reader = MemberReader(Fetcher(guard=guard_of(run.store)), max_bytes=limits.max_bytes)
    gone = pa.array(read_vanished(run.store, manifests(run.store)[-1]))
    for file in run.published():
        members = _members(run, file)
        for table in run.file_tables(file, _SHOWN):
            listed = {member.image_id: member for member in islice(members, len(table))}
            if len(listed) != len(table):
                raise ClusterError(f"{run.store.url}: {file.path} is not as its manifest", hint="please report this: it is a bug")
            rows = choice.rows(table.filter(pc.invert(pc.is_in(table["image_id"], gone))))
            if chosen is not None:
                rows = rows.filter(pc.is_in(rows["image_id"], pa.array(chosen)))
            for start in range(0, len(rows), PER_PAGE):
                some = rows.slice(start, PER_PAGE).to_pylist()
                yield from _pictured(reader, some, [listed[row["image_id"]] for row in some], limits)


def _members(run: RunDirectory, file: Published) -> Iterator[ManifestMember]:
    for ref in iter_blocks(run.store, file.manifest):
        if file.first <= ref.block <= file.last:
            yield from member_rows(read_block(run.store, ref))


def _pictured(
    reader: MemberReader, rows: Sequence[dict[str, Any]], members: Sequence[ManifestMember], limits: ImageLimits
) -> Iterator[GalleryTile]:
    """Tiles in order; what had no status `ok` when it was scored is not read again."""
    read = reader.read([member for row, member in zip(rows, members, strict=True) if row["status"] == Status.OK])
    for row in rows:
        if row["status"] != Status.OK:
            yield GalleryTile(row, None, "; ".join(filter(None, [meaning(row["status"]) or row["status"], row["detail"]])))
            continue
        _, data = next(read)
        try:
            if isinstance(data, InputError):
                raise data
            yield GalleryTile(row, thumbnail(data, limits, SIDE_PX))
        except InputError as refused:
            yield GalleryTile(row, None, f"{meaning(refused.status)}: {refused.detail}" if refused.detail else meaning(refused.status))
