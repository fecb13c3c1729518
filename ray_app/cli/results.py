"""`touchstone results`: the current rows of a run, filtered, sorted, as a table, JSON lines, CSV or
Parquet; and commands on the images of a run: `gallery`, `masks`.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import click

from ray_app.cli import options
from ray_app.errors import ConfigError, Status

if TYPE_CHECKING:
    import pyarrow as pa

    from ray_app.runs import RunDirectory
    from ray_app.runs.table_files import Form

_SHOWN = 50  # rows in a table, where no limit is given


@click.command()
@click.argument("run", metavar="RUN")
@click.option(
    "--verdict", type=click.Choice(["real", "fake", "abstain"]), help="Only rows with this verdict."
)
@click.option(
    "--finding",
    metavar="WORDS",
    help="Only rows whose finding has these words, as 'says that' or 'signed by'.",
)
@click.option(
    "--status",
    type=click.Choice([status.value for status in Status]),
    metavar="STATUS",
    help="Only rows with this status.",
)
@click.option(
    "--generator",
    metavar="NAME",
    help="Only rows attributed to this generator or family; `unknown`: to none that is known.",
)
@click.option(
    "--match",
    metavar="GLOB",
    help="Only files whose uri matches, with * for any characters: '*/2024/*.jpg'.",
)
@click.option(
    "--min-score", type=float, help="Only rows with this score (log-odds of fake) or a higher one."
)
@click.option("--max-score", type=float, help="Only rows with this score or a lower one.")
@click.option("--since", metavar="TIME|DURATION", callback=lambda context, option, text: None if text is None else options.moment(text),
              help="Only rows scored since then: 15m, 24h, 7d, 2026-11-26 or 2026-11-26T08:30, in UTC.")  # fmt: skip
@click.option(
    "--sort",
    "order",
    metavar="COLUMN",
    help="Sort by this column: score has the lowest first, -score the highest.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=None,
    help="No more than this many rows.  [default: 50 in a table, else all]",
)
@click.option("--vanished", is_flag=True, help="Also files that the last listing no longer found.")
@click.option(
    "--unfinished", is_flag=True, help="Also files of a listing that is still being scored."
)
@click.option(
    "--image",
    metavar="URI",
    help="Only the row of this file, by uri, path or image_id; with --json, also digests and versions.",
)
@click.option(
    "--member", metavar="NAME", help="With --image: the name in the container that URI names."
)
@click.option(
    "--out", metavar="FILE", help="Write the rows to this .csv or .parquet file; any fsspec URL."
)
@options.as_json
def results(
    run: str,
    image: str | None,
    member: str | None,
    limit: int | None,
    as_json: bool,
    out: str | None,
    **given: Any,
) -> int:
    """List the verdicts of a run, as a table or a file.

    \b
    touchstone results run --verdict fake --sort -score --limit 20
    touchstone results run --image photos/cat.jpg --json
    """
    from ray_app.runs import RunDirectory
    from ray_app.runs.selection import RowFilter, selected_tables

    if member is not None and image is None:
        raise click.UsageError("--member belongs to --image")
    if image is not None:
        vanished, _ = given.pop("vanished"), given.pop("unfinished")
        if out or limit or any(given.values()):
            raise click.UsageError(
                "--image shows one row: leave out filters, --sort, --limit, and --out"
            )
        return _show_image(
            RunDirectory.open(run), image, member, vanished=vanished, as_json=as_json
        )
    if out and as_json:
        raise click.UsageError("--json prints and --out writes a file: choose one")
    opened = RunDirectory.open(run)
    in_table = not (as_json or out)
    most = (limit or _SHOWN) + 1 if in_table else limit  # one more tells that there are more
    order = given.pop("order")
    which = {name: given.pop(name) for name in ("vanished", "unfinished")}
    tables = selected_tables(opened, RowFilter(**given), order=order, limit=most, **which)
    if out:
        return _write(opened, tables, out)
    for line in _guarantee_notes(opened):
        click.echo(line, err=True)
    _print(chain.from_iterable(table.to_pylist() for table in tables), limit, as_json)
    if not as_json:
        _print_operating_point(opened)
    return 0


def _print_operating_point(run: "RunDirectory") -> None:
    """Print the rates of the operating point at which a finished run decides, if its card has one."""
    from ray_app.reports.format import visible
    from ray_app.runs.document import RunSummary

    if not run.store.exists("summary.json"):
        return
    summary = RunSummary.model_validate(run.read_json("summary.json"))
    if summary.ensemble.thresholds and summary.ensemble.thresholds.target_fpr is not None:
        click.echo(visible(summary.error_rates))


def _print(rows: Iterable[Mapping[str, Any]], limit: int | None, as_json: bool) -> None:
    """Print the rows as JSON lines, or the first ones as a table."""
    from ray_app.reports import verdict_table
    from ray_app.reports.text import terminal_width

    rows = iter(rows)
    if as_json:
        for row in islice(rows, limit):
            click.echo(options.json_text(_parse_provenance(row), default=str))
        return
    shown = list(islice(rows, limit or _SHOWN))
    click.echo(verdict_table(shown, terminal_width()))
    if next(rows, None) is not None:
        click.echo(f"… the first {len(shown)}; --limit, --json or --out shows more")


def _parse_provenance(row: Mapping[str, Any]) -> dict[str, Any]:
    return {**row, "provenance": json.loads(row.get("provenance") or "null")}


def _show_image(
    run: "RunDirectory", image: str, member: str | None, *, vanished: bool, as_json: bool
) -> int:
    """Print the row of one image: in a table, or as one JSON document with the digests and versions
    of what scored it.
    """
    from ray_app.runs.image_row import describe_image_row, find_image_row

    row = find_image_row(run, image, member, vanished=vanished)
    for line in _guarantee_notes(run):
        click.echo(line, err=True)
    if not as_json:
        _print([row], None, as_json)
        _print_operating_point(run)
        return 0
    click.echo(
        options.json_text(describe_image_row(run, _parse_provenance(row)), indent=2, default=str)
    )
    return 0


def _write(run: "RunDirectory", tables: "Iterator[pa.Table]", out: str) -> int:
    """Write the rows, be they none, as the file's ending says. Raises ConfigError for another
    ending.
    """
    from ray_app.reports.format import counted
    from ray_app.runs import CurrentRows
    from ray_app.runs.row_shape import RowShape
    from ray_app.runs.table_files import write_tables
    from ray_app.storage import Store, strip_secrets

    folder, slash, name = out.rpartition("/")
    stem, _, ending = name.rpartition(".")
    forms: dict[str, Form] = {"csv": "csv", "parquet": "parquet"}
    if not stem or ending not in forms:
        raise ConfigError(
            f"--out {strip_secrets(out)}: the name ends with neither .csv nor .parquet",
            hint="for example --out verdicts.csv",
        )
    files = CurrentRows.at_end(run).files()
    if not files:
        raise ConfigError(
            f"{run.store.url} has no rows yet",
            hint="run the touchstone score command that began it again",
        )
    shape = RowShape.of_files(run, files)
    schema, tables = shape.schema, map(shape.apply, tables)
    if ending == "csv":
        # A column per detector, and per column of the source.
        schema = schema.empty_table().flatten().schema
        tables = (table.flatten() for table in tables)
    store = Store.open(folder or slash or ".")
    rows = write_tables(store, stem, schema, tables, forms=(forms[ending],))
    click.echo(f"{counted(rows, 'row')}: {strip_secrets(out)}")
    return 0


def _guarantee_notes(run: "RunDirectory") -> list[str]:
    """What a run found of its card's guarantee, where it is not known to hold."""
    section = (
        run.read_json("summary.json").get("guarantee") if run.store.exists("summary.json") else None
    )
    if not section or section["holds"] is True:
        return []
    from ray_app.reports.run import guarantee_lines

    return guarantee_lines(section)


@click.command()
@click.argument("run", metavar="RUN")
@click.option(
    "--out",
    required=True,
    metavar="DIR",
    help="Where the pages go; any fsspec URL. A gallery that is there is replaced.",
)
@click.option(
    "--verdict",
    type=click.Choice(["fake", "real", "abstain"]),
    help="Only images with this verdict.",
)
@click.option(
    "--generator",
    metavar="NAME",
    help="Only images attributed to this generator or family; `unknown`: to none that is known.",
)
@click.option(
    "--most", type=click.IntRange(min=1), metavar="N", help="Only the N highest scores of these."
)
@click.option(
    "--per-page",
    type=click.IntRange(1, 1000),
    default=60,
    show_default=True,
    help="Images on one page.",
)
@options.as_json
def gallery(
    run: str,
    out: str,
    verdict: str | None,
    generator: str | None,
    most: int | None,
    per_page: int,
    as_json: bool,
) -> int:
    """Write the images of a run as pages to browse, with verdicts; index.html is the first page.

    \b
    touchstone runs gallery run --out gallery --verdict fake
    """
    from ray_app.reports.format import counted
    from ray_app.runs.selection import RowFilter
    from ray_app.scoring.gallery import make_gallery

    made = make_gallery(
        run, out, RowFilter(verdict, generator=generator), most, per_page=per_page, quiet=as_json
    )
    options.echo_document(
        made,
        [
            f"{counted(made['images'], 'image')} on {counted(made['pages'], 'page')}: {made['out']}/index.html"
        ],
        as_json,
    )
    return 0


@click.command()
@click.argument("run", metavar="RUN")
@click.option("--out", required=True, metavar="FOLDER", help="Where the PNG files go.")
@click.option(
    "--min-area",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    help="Only masks that cover at least this share of the image.",
)
@click.option(
    "--native",
    is_flag=True,
    help="At the network's own size; without it, stretched to the image's.",
)
@click.option(
    "--vanished", is_flag=True, help="Also masks of files that the last listing no longer found."
)
def masks(run: str, out: str, min_area: float, native: bool, vanished: bool) -> int:
    """Write the masks of a run as 8-bit PNG files, white where a detector finds altered pixels.

    \b
    touchstone runs masks run --out masks --min-area 0.05
    """
    from ray_app.reports.format import counted
    from ray_app.runs import CurrentRows, RunDirectory, mask_image

    folder = options.local_folder(out)
    written = 0
    for row in CurrentRows.read(RunDirectory.open(run)).masks(vanished=vanished):
        image, area = mask_image(row, stretched=not native)
        if area >= min_area:
            image.save(folder / f"{row['image_id']}-{row['detector'].replace(':', '-')}.png")
            written += 1
    click.echo(f"{counted(written, 'mask')} in {folder}")
    if not written:
        click.echo(
            "none: no detector of this run localizes (see `touchstone detectors list`), or --min-area is too large",
            err=True,
        )
    return 0
