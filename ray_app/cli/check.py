"""`touchstone check IMAGE…`: verdicts on some pictures at once, in this process; no run, no
cluster.
"""

import json
import os
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ray_app import __version__
from ray_app.cli import options
from ray_app.errors import ConfigError, ExitCode, InputError, SourceError, Status

if TYPE_CHECKING:
    from ray_app.inference.isolated_files import IsolatedFiles, ReadFile
    from ray_app.inference.result import Result
    from ray_app.inference.small_pictures import PictureSize
    from ray_app.inference.spec import ScoringSpec

STDIN = "-"
_MOST_THREADS = 4
_SMALL = 100_000_000  # parameters; what is larger keeps a processor's memory busy alone
# Of a picture among many, among some, and of one that has the page to itself: pixels, bytes.
_IN_CROWD, _TILE, _ALONE = (160, 6_000), (320, 40_000), (960, 150_000)


@click.command()
@click.argument("images", nargs=-1, metavar="IMAGE…")
@options.ensemble_option
@options.detectors_option
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:0.")
@options.licence_option
@click.option("--json", "form", flag_value="json", help="A line of JSON per picture.")
@click.option("--csv", "form", flag_value="csv", help="CSV, a line per picture.")
@click.option(
    "--html",
    metavar="FILE",
    help="Also write a page to FILE (.html): a report on one picture, or a tile for each.",
)
def check(
    images: tuple[str, ...],
    ensemble: str | None,
    detectors: tuple[str, ...],
    device: str,
    accepted: tuple[str, ...],
    form: str | None,
    html: str | None,
) -> int:
    """Give a verdict on a few pictures, now.

    Says of each IMAGE whether there is evidence that a generative model made or altered it. IMAGE is a file, a folder with all
    that is below it, `-` (stdin), an https URL of the public Internet, or any fsspec URL of a file. A file that is not a picture
    gets a line with its status. Exit code 3: no picture got a score.

    \b
    touchstone check photo.jpg
    touchstone check photo.jpg --html photo-report.html
    touchstone check holiday/ --html verdicts.html
    curl -s https://example.org/a.jpg | touchstone check - --json

    One thread scores while others decode, unless OMP_NUM_THREADS says otherwise. For archives, buckets
    and whatever takes hours, use `touchstone score`.
    """
    if not images:
        raise ConfigError("nothing to check", hint="touchstone check FILE|FOLDER|URL|-")
    if detectors and ensemble:
        raise ConfigError(
            "--detector and --ensemble cannot be given together",
            hint="name the detectors, or the ensemble they belong to",
        )
    page = None if html is None else _page_path(html)
    names, closed = _listed(images)
    # before torch is there: as in a run's workers, so that scores are the same to the bit
    os.environ.setdefault("OMP_NUM_THREADS", "1")

    from ray_app.ensembles import ensemble_of, load_ensemble_card
    from ray_app.images import BatchLimits
    from ray_app.images.provenance import ProvenanceConfig
    from ray_app.inference.isolated_files import IsolatedFiles
    from ray_app.inference.small_pictures import PictureSize
    from ray_app.inference.spec import make_spec
    from ray_app.reports.check import CROWD

    card = ensemble_of(list(detectors)) if detectors else load_ensemble_card(ensemble or "default")
    spec, rows, pictures = (
        make_spec(card, limits=BatchLimits(), device=device),
        list[dict[str, Any]](),
        list[bytes | None](),
    )
    read = partial(_read, spec.limits.max_bytes, closed)
    size = PictureSize(
        *(_ALONE if len(names) == 1 else _TILE if len(names) <= CROWD else _IN_CROWD)
    )
    provenance = ProvenanceConfig(watermarks=True).policy()
    with closing(
        IsolatedFiles(spec, read, provenance=provenance, picture_px=size.side_px if page else 0)
    ) as files:
        found = _rows(names, files, spec, accepted, rows, pictures, size)
        try:
            _print(found, form, list(spec.cards))
        finally:  # what came before an error is shown
            shown = _shown(rows, images)
            if rows and form is None:
                _print_table(rows, shown, spec)
    if page is not None:
        _write_page(page, rows, shown, pictures, spec)
    return (
        ExitCode.DONE if any(row["status"] == Status.OK for row in rows) else ExitCode.TOO_MANY_BAD
    )


def _rows(
    names: Sequence[str],
    files: "IsolatedFiles",
    spec: "ScoringSpec",
    accepted: Sequence[str],
    rows: list[dict[str, Any]],
    pictures: list[bytes | None],
    size: "PictureSize",
) -> Iterator[dict[str, Any]]:
    """A row per name, in order, as they come; each is also noted in `rows`, and its picture in
    `pictures`.
    """
    # children decode while torch is imported here
    arriving = zip(names, files.ahead(names), strict=True)
    from ray_app.inference.ensemble import Ensemble
    from ray_app.inference.small_pictures import small_jpeg

    ensemble = Ensemble(
        spec.ensemble,
        device=spec.device,
        limits=spec.limits,
        accept_licences=accepted,
        children=files.children,
    )
    side_by_side = _threads(len(names), spec)
    # one for each thread
    free = deque([ensemble, *(ensemble.twin() for _ in range(side_by_side - 1))])

    def scored(chunk: list[tuple[str, "ReadFile"]]) -> "list[Result]":
        mine = free.popleft()
        try:
            return mine.score_read(file.given for _, file in chunk)
        finally:
            free.append(mine)

    chunks = iter(lambda: list(islice(arriving, spec.slots)), [])
    with ThreadPoolExecutor(side_by_side, thread_name_prefix="scorer") as pool:
        at_work = deque(
            (chunk, pool.submit(scored, chunk)) for chunk in islice(chunks, 2 * side_by_side)
        )
        while at_work:
            chunk, results = at_work.popleft()
            for (name, file), result in zip(chunk, results.result(), strict=True):
                rows.append(_row(name, file, result))
                shape = rows[-1]["width"] or 1, rows[-1]["height"] or 1
                pictures.append(
                    None if file.picture is None else small_jpeg(file.picture, *shape, size)
                )
                yield rows[-1]
            at_work += ((chunk, pool.submit(scored, chunk)) for chunk in islice(chunks, 1))


def _threads(pictures: int, spec: "ScoringSpec") -> int:
    """Return how many batches are scored at once: several only if all networks are small and run in
    one thread each.
    """
    from ray_app.storage.node_budget import usable_cores

    is_small = all(
        card.size is not None and card.size.parameters < _SMALL for card in spec.cards.values()
    )
    several = (
        spec.device == "cpu"
        and is_small
        and spec.describer is None
        and os.environ.get("OMP_NUM_THREADS") == "1"
    )
    return min(usable_cores(), _MOST_THREADS, -(-pictures // spec.slots)) if several else 1


def _row(name: str, file: "ReadFile", result: "Result") -> dict[str, Any]:
    from ray_app.storage.urls import local_uri, strip_secrets

    row = result.to_dict()
    del row["source"]
    uri = (
        strip_secrets(name) if "://" in name or name == STDIN else local_uri(os.path.abspath(name))
    )
    return {
        "uri": uri,
        **row,
        "provenance": file.provenance and json.loads(file.provenance.row() or "null"),
    }


def _print(rows: Iterator[dict[str, Any]], form: str | None, detectors: Sequence[str]) -> None:
    if form == "csv":
        from ray_app.reports.check import csv_lines

        for line in csv_lines(rows, detectors):
            click.echo(line)
        return
    for row in rows:
        if form == "json":
            click.echo(options.json_text(row))


def _shown(rows: Sequence[dict[str, Any]], images: Sequence[str]) -> list[str]:
    """What people see of each row's place: of a local file its way from the folder that holds all
    that was named, else its uri.
    """
    from ray_app.storage.urls import local_path, scheme_of

    named = [
        os.path.dirname(os.path.abspath(local_path(one)))
        for one in images
        if one != STDIN and scheme_of(one) == "file"
    ]
    base = os.path.commonpath(named) if named else ""
    uris = [row["uri"] for row in rows]
    return [
        local_path(uri).removeprefix(base).removeprefix("/") if scheme_of(uri) == "file" else uri
        for uri in uris
    ]


def _print_table(rows: Sequence[dict[str, Any]], names: Sequence[str], spec: "ScoringSpec") -> None:
    from ray_app.reports.check import CheckFacts, check_lines
    from ray_app.reports.text import terminal_width

    lines = check_lines(rows, names, CheckFacts.of(spec), terminal_width())
    click.echo("\n".join(lines))


def _write_page(
    page: Path,
    rows: Sequence[dict[str, Any]],
    names: Sequence[str],
    pictures: Sequence[bytes | None],
    spec: "ScoringSpec",
) -> None:
    from ray_app.reports.check import CheckFacts, render_check
    from ray_app.runs import fingerprint
    from ray_app.scoring.identity import scoring_facts

    facts = CheckFacts.of(spec, fingerprint(scoring_facts(spec)))
    half = page.with_name(f".{page.name}.{os.getpid()}")
    try:
        with half.open("w", encoding="utf-8") as stream:
            stream.writelines(render_check(rows, names, pictures, facts, page, version=__version__))
        half.replace(page)
    except OSError as error:
        raise ConfigError(
            f"--html {page}: {error.strerror}", hint="name a file that can be written"
        ) from None
    finally:
        half.unlink(missing_ok=True)
    click.echo(f"page: {page}", err=True)


def _page_path(html: str) -> Path:
    page = Path(html)
    if page.suffix.lower() not in (".html", ".htm") or "://" in html:
        raise ConfigError(
            f"--html {html}: not the name of a local .html file",
            hint="for example --html verdicts.html",
        )
    if not page.parent.is_dir():
        raise ConfigError(
            f"--html {html}: there is no folder {page.parent}",
            hint="make it first, or name another one",
        )
    return page


def _listed(images: Sequence[str]) -> tuple[list[str], dict[str, SourceError]]:
    """List what is asked for, in order; a folder stands for everything below it.

    Returns:
        The names, and why the folders among them cannot be listed.

    Raises:
        ConfigError: Nothing is there.
    """
    from ray_app.storage.listing import not_there
    from ray_app.storage.urls import local_path, scheme_of

    if images.count(STDIN) > 1:
        raise ConfigError("`-` stands for one picture on stdin", hint="name it once")
    names, closed = list[str](), dict[str, SourceError]()
    for one in images:
        if one == STDIN or scheme_of(one) != "file":
            names.append(one)
            continue
        path = local_path(one)
        if not os.path.lexists(path):
            raise not_there(path)
        names += _below(path, closed) if os.path.isdir(path) else [path]
    if not names:
        raise ConfigError(
            f"nothing to check: there is no file in {', '.join(images)}",
            hint="name pictures, or a folder with pictures",
        )
    return names, closed


def _below(folder: str, closed: dict[str, SourceError]) -> Iterator[str]:
    """Everything below a folder that is not a folder, and folders that cannot be listed, which are
    added to `closed`.
    """
    from ray_app.storage.errors import closed_folder
    from ray_app.storage.local import walk_folder

    try:
        for path, error in walk_folder(folder):
            if error is not None:
                closed[path] = closed_folder(error)
            yield path
    except OSError as error:
        closed[folder] = closed_folder(error)
        yield folder


def _read(max_bytes: int, closed: Mapping[str, SourceError], name: str) -> bytes:
    """The bytes of an image by its name; web URLs over https and from public addresses alone.
    Raises InputError.
    """
    from ray_app.images.provenance import attach_sidecar
    from ray_app.storage import Fetcher
    from ray_app.storage.urls import local_uri, scheme_of

    if name in closed:
        raise closed[name]
    if name == STDIN:
        data = sys.stdin.buffer.read(max_bytes + 1)
        if len(data) > max_bytes:
            raise InputError(
                Status.IMAGE_TOO_LARGE,
                f"over max_bytes ({max_bytes})",
                limit=max_bytes,
                observed=len(data),
            )
        return data
    if scheme_of(name) in ("http", "https"):
        return _from_web(name, max_bytes)
    if scheme_of(name) != "file":
        return Fetcher(signed=[name]).fetch(name, "", max_bytes)
    _require_file(name)
    path = os.path.abspath(name)
    return attach_sidecar(Fetcher().fetch(local_uri(path), "", max_bytes), path)


def _require_file(name: str) -> None:
    """A pipe would be waited for, and a folder behind a link is none of those that were named."""
    try:
        os.stat(name)
    except FileNotFoundError:
        raise SourceError(
            Status.SOURCE_MISSING, "a link to nothing" if os.path.islink(name) else "no such file"
        ) from None
    except OSError as error:
        raise SourceError(Status.SOURCE_DENIED, error.strerror or "cannot be read") from None
    if os.path.isdir(name):
        raise SourceError(Status.SOURCE_DENIED, "a link to a folder, which is not followed")
    if not os.path.isfile(name):
        raise InputError(Status.UNSUPPORTED_FORMAT, "not a regular file")


def _from_web(url: str, max_bytes: int) -> bytes:
    import asyncio

    from ray_app.storage import guarded_http

    return asyncio.run(guarded_http.fetch_image(url, max_bytes))
