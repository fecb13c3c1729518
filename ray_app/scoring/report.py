"""The documents of a finished run: `write_summary` (`summary.json`, one per listing beside it) and `write_report` (`report.html`).

Its pictures are made anew, so that no metadata of the originals survives.

`touchstone runs gallery`: `make_gallery` writes a finished run as pages of pictures with their rows.

Streams rows and manifest side by side, one page in memory; of the files nothing but small new pictures is kept.
"""

import io
import json
import math
import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_app import __version__
from ray_app.archives import ManifestMember, MemberReader, guard_of, manifests, read_complete
from ray_app.cluster.progress import Progress
from ray_app.detectors.card import blind_to
from ray_app.ensembles import Thresholds, is_calibrated
from ray_app.errors import ConfigError, InputError, Status
from ray_app.images import ImageLimits, decode_image
from ray_app.inference import ScoringSpec
from ray_app.inference.small_pictures import PictureSize, SmallPictures
from ray_app.reports.format import VERDICT_WORDS, meaning, visible
from ray_app.runs import (
    RunDirectory,
    bottleneck,
    current_tables,
    document,
    fingerprint,
    reader,
    schema,
    selection,
    settled_state,
    summarise,
    summary,
)
from ray_app.scoring import pictures
from ray_app.scoring.identity import stability_facts
from ray_app.scoring.session import ScoringSession
from ray_app.storage import Fetcher, LinkedFolders, Store

if TYPE_CHECKING:
    from ray_app.reports import gallery

SIDE_PX = 160
_COUNTS = "counts"  # the tally of a run's rows that is the counted part of its summary


def write_summary(
    run: RunDirectory,
    spec: ScoringSpec,
    session: ScoringSession,
    guarantee: document.GuaranteeSummary | None,
    rows: settled_state.NewRows | None = None,
    *,
    thumbnails: bool = True,
) -> dict[str, Any]:
    """Count the current rows and write the summary, whose JSON is returned. `guarantee`: of a card that promises something.

    `rows`: those that are not counted yet, and the counts of the others; None: all are counted. `thumbnails`: reports show pictures.
    """
    content = document.RunSummary(
        schema=document.SUMMARY_SCHEMA,
        row_schema=schema.SCHEMA_VERSION,
        run=run.store.url,
        listing=max(manifests(run.store)),
        version=__version__,
        complete=True,
        thumbnails=thumbnails,
        linked_folders=document.LinkedFoldersSummary(**asdict(linked_folders(run))),
        **counted(run, spec, guarantee, rows),
        **_of_session(session),
        **_of_all_sessions(run, session),
    )
    return _write(run, content)


def renew_summary(run: RunDirectory, session: ScoringSession, *, thumbnails: bool = True) -> dict[str, Any]:
    """The summary once more, for a session that found nothing to do: no row is counted again."""
    before = run.read_json("summary.json")
    return _write(run, document.RunSummary.model_validate(before | _of_session(session) | {"thumbnails": thumbnails}))


def _of_session(session: ScoringSession) -> dict[str, Any]:
    facts = session.facts()
    return {
        "started_at": session.started_at.isoformat(timespec="seconds"),
        "finished_at": session.now().isoformat(timespec="seconds"),
        "session": facts,
        "bottleneck": bottleneck(facts.seconds),
    }


def _of_all_sessions(run: RunDirectory, session: ScoringSession) -> dict[str, Any]:
    """What detectors took, and the most memory of a worker: as the summary before has it, with the sessions since."""
    before = (
        document.RunSummary.model_validate(run.read_json("summary.json")) if run.store.exists("summary.json") else document.RunSummary()
    )
    since = range(before.session.number + 1, session.number)
    known = [f"sessions/{number:05d}.json" for number in since if run.store.exists(f"sessions/{number:05d}.json")]
    facts = [*(document.SessionSummary.model_validate(run.read_json(path)) for path in known), session.facts()]
    peak = max([before.memory_per_worker_bytes or 0, *(one.peak_worker_bytes for one in facts)])
    times = _together([before.detectors or {}, *(one.detectors or {} for one in facts)])
    return {"detectors": times or None, "memory_per_worker_bytes": peak or None}


def _together(times: Iterable[Mapping[str, document.DetectorTime]]) -> dict[str, document.DetectorTime]:
    """What several commands took, together."""
    found: dict[str, document.DetectorTime] = {}
    for name, one in (item for some in times for item in some.items()):
        before = found.get(name, document.DetectorTime())
        images = before.images + one.images
        spent_ms = sum((each.ms_per_image or 0.0) * each.images for each in (before, one))
        found[name] = document.DetectorTime(
            seconds=round(before.seconds + one.seconds, 6), images=images, ms_per_image=round(spent_ms / images, 4) if images else None
        )
    return found


def _write(run: RunDirectory, found: document.RunSummary) -> dict[str, Any]:
    content = found.written()
    run.write_json(f"summaries/{found.listing:05d}.json", content)
    run.write_json("summary.json", content)
    return content


def _counted_rows(rows: settled_state.NewRows, detectors: list[str]) -> document.RunCounts:
    """The counted part of a summary (statuses, verdicts, histograms, highest scores), of all rows by those that are new."""
    earlier = rows.earlier.get(_COUNTS)
    counts = summarise(rows.tables(earlier, summary.COLUMNS), detectors)
    if earlier is not None:
        counts = summary.joined(document.RunCounts.model_validate(earlier), counts)
    rows.found[_COUNTS] = counts.written()
    return counts


def counted(
    run: RunDirectory, spec: ScoringSpec, guarantee: document.GuaranteeSummary | None, rows: settled_state.NewRows | None = None
) -> dict[str, Any]:
    """By key what a summary says of a run's rows as the ensemble decides them: counts, stability, guarantee, ensemble, identity."""
    described = run.describe()
    run.check_settled()
    rows = rows or settled_state.NewRows.all_of(run)
    return {
        **_counted_rows(rows, described["detectors"]).given(),
        "stability": stability_facts(run, spec.ensemble.thresholds, rows),
        "guarantee": guarantee,
        "ensemble": ensemble_facts(spec),
        "fingerprint": fingerprint(described["identity"]),
        "identity": described["identity"],
    }


def ensemble_facts(spec: ScoringSpec) -> document.EnsembleSummary:
    """What a reader of scores must know of the ensemble: rule, thresholds with their rates, whether anything is calibrated."""
    members = [
        document.DetectorSummary(
            name=name,
            title=card.title,
            licence=card.licence,
            calibrated=spec.calibrations[name] is not None,
            demonstration=card.demonstration,
            masks=card.masks,
        )
        for name, card in spec.cards.items()
    ]
    card = spec.ensemble
    return document.EnsembleSummary(
        name=card.name,
        title=card.title,
        rule=card.rule,
        calibrated=is_calibrated(card, spec.calibrations),
        demonstration=any(member.demonstration for member in members),
        members=members,
        thresholds=Thresholds(**card.thresholds.model_dump()),  # all of them are written, given or not
        blind_to=list(blind_to(spec.cards.values())) or None,
    )


def linked_folders(run: RunDirectory) -> LinkedFolders:
    """Links to folders that the last listing did not follow."""
    info = read_complete(run.store, manifests(run.store)[-1])
    return LinkedFolders() if info is None else LinkedFolders(info.linked_folders, info.linked_example)


def bad_fraction(summary: dict[str, Any]) -> float:
    """Share of members without a score, not counting files that are no images."""
    good = (Status.OK, Status.UNSUPPORTED_FORMAT)
    bad = sum(count for status, count in summary["statuses"].items() if status not in good)
    return bad / summary["members"] if summary["members"] else 0.0


def write_report(run: RunDirectory, *, prior: float | None = None, thumbnails: bool | None = None) -> str:
    """Render `report.html` from the summary; returns where it lies. `thumbnails`: with small pictures; null: as the run was asked to.

    Raises ConfigError where no run has finished.
    """
    run.describe_finished()
    summary = run.read_json("summary.json")
    wanted = summary.get("thumbnails", True) if thumbnails is None else thumbnails
    found = pictures.pictures_of(run, summary["top"][: pictures.MOST]) if wanted else None
    from ray_app.reports import render_run_report  # an empty page takes as long to import as to write

    run.store.write("report.html", render_run_report(summary, prior=prior, thumbnails=found).encode())
    return f"{run.store.url}/report.html"


def thumbnail(data: bytes, limits: ImageLimits, side: int = SIDE_PX) -> bytes:
    """JPEG bytes of an encoded image, no side above `side` pixels. Raises InputError where it does not decode."""
    picture = decode_image(data, limits).pixels
    picture.thumbnail((side, side))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


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
    "verdict",
    "width",
    "height",
    *summary.PROFILE_COLUMNS,
]
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
        return table if self.generator is None else selection.of_generator(table, self.generator)

    @property
    def words(self) -> str:
        """The same for people."""
        parts = [VERDICT_WORDS[self.verdict]] if self.verdict else []
        if self.generator:
            parts.append("like no known generator" if self.generator == selection.UNKNOWN else f"attributed to {visible(self.generator)}")
        parts += ["the highest scores"] if self.most else []
        return ", ".join(parts) or "the whole run"


_ALL = Choice()


def make_gallery(url: str, out: str, choice: Choice = _ALL, *, per_page: int = PER_PAGE, quiet: bool = False) -> dict[str, Any]:
    """Write the gallery of the run at `url` to `out` (any fsspec URL) and return what `gallery.json` says of it.

    Images stand in the order of the archive, so that the same run gives the same pages. One that cannot be read is a tile that says so.
    Raises ConfigError where no run has finished, where it has no profile to choose a generator by, or `out` holds something else.
    """
    from ray_app.reports import gallery

    run, store = RunDirectory.open(url), Store.open(out)
    run.describe_finished()
    run.check_settled()
    if choice.generator is not None:
        selection.require_known_generator(run, choice.generator)
    names = store.names("")
    if (names or store.folders("")) and NOTE not in names:
        raise ConfigError(f"{store.url} is not empty, and holds no gallery", hint="give another --out")
    chosen, images = _chosen(run, choice)
    pages = max(math.ceil(images / per_page), 1)
    is_demonstration = document.RunSummary.model_validate(run.read_json("summary.json")).ensemble.demonstration
    facts = {"run": run.store.url, "out": store.url, **choice._asdict(), "images": images, "pages": pages}
    store.write(NOTE, json.dumps(facts, indent=2, ensure_ascii=False).encode())
    progress = Progress(images, done=0, name="gallery") if images and not quiet else None
    with SmallPictures(run.limits(), TILE) as pictured:
        tiles = _tiles(run, choice, chosen, pictured)
        for page in range(1, pages + 1):
            some = list(islice(tiles, per_page))
            html = gallery.render_gallery_page(some, gallery.PageNumber(page, pages), run=run.store.url, shown=choice.words, images=images,
                                       first=(page - 1) * per_page + 1, version=__version__, demonstration=is_demonstration)  # fmt: skip
            store.write(gallery.page_name(page), html.encode())
            if progress is not None:
                progress.advance(len(some), sum(tile.picture is None for tile in some))
    if progress is not None:
        progress.close()
    for name in store.names(""):  # of a longer gallery that was here
        if _PAGE.fullmatch(name) and name > gallery.page_name(pages):
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


def _tiles(
    run: RunDirectory, choice: Choice, chosen: npt.NDArray[np.int64] | None, pictured: SmallPictures
) -> "Iterator[gallery.GalleryTile]":
    images = MemberReader(Fetcher(guard=guard_of(run.store)), max_bytes=run.limits().max_bytes)
    for table, listed in reader.current_members(run, _SHOWN):
        rows = choice.rows(table)
        if chosen is not None:
            rows = rows.filter(pc.is_in(rows["image_id"], pa.array(chosen)))
        for start in range(0, len(rows), PER_PAGE):
            some = rows.slice(start, PER_PAGE).to_pylist()
            yield from _pictured(images, some, [listed[row["image_id"]] for row in some], pictured)


def _pictured(
    images: MemberReader, rows: Sequence[dict[str, Any]], members: Sequence[ManifestMember], pictured: SmallPictures
) -> "Iterator[gallery.GalleryTile]":
    """Tiles in order; what had no status `ok` when it was scored is not read again."""

    read = images.read([member for row, member in zip(rows, members, strict=True) if row["status"] == Status.OK])
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="gallery") as threads:
        at_work: deque[tuple[dict[str, Any], Future[tuple[bytes, str]] | str]] = deque()
        for row in rows:
            if row["status"] != Status.OK:
                at_work.append((row, "; ".join(filter(None, [meaning(row["status"]) or row["status"], row["detail"]]))))
            else:
                _, data = next(read)
                at_work.append((row, pictures.why_not(data) if isinstance(data, InputError) else threads.submit(pictured.of, data)))
                del data
            if len(at_work) > _AT_ONCE:
                yield _tile(*at_work.popleft())
        for row, picture in at_work:
            yield _tile(row, picture)


def _tile(row: dict[str, Any], picture: "Future[tuple[bytes, str]] | str") -> "gallery.GalleryTile":
    from ray_app.reports import gallery

    try:
        return gallery.GalleryTile(row, None, picture) if isinstance(picture, str) else gallery.GalleryTile(row, picture.result()[0])
    except InputError as refused:
        return gallery.GalleryTile(row, None, pictures.why_not(refused))
