"""Commands that show the results of a run: `results`, `runs gallery`, and `runs masks`.

`results` lists the rows of images. The other two write HTML pages and masks.
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

_DEFAULT_ROWS = 50  # Rows in a table without --limit.


@click.command()
@click.argument("run", metavar="RUN")
@click.option(
    "--verdict", type=click.Choice(["real", "fake", "abstain"]), help="Only rows with this verdict."
)
@click.option(
    "--finding",
    metavar="WORDS",
    help="Only rows whose finding contains these words, such as 'says that' or 'signed by'.",
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
    help="Only rows attributed to this generator or family. `unknown` selects rows attributed to no known generator.",
)
@click.option(
    "--match",
    metavar="GLOB",
    help="Only files whose uri matches this pattern, in which * matches any characters: '*/2024/*.jpg'.",
)
@click.option(
    "--min-score", type=float, help="Only rows with this score (log-odds of fake) or a higher one."
)
@click.option("--max-score", type=float, help="Only rows with this score or a lower one.")
@click.option("--since", metavar="TIME|DURATION", callback=lambda context, option, text: None if text is None else options.parse_time(text),
              help="Only rows scored since this time in UTC, or within this duration: 15m, 24h, 7d, 2026-11-26, or 2026-11-26T08:30.")  # fmt: skip
@click.option(
    "--sort",
    "order",
    metavar="COLUMN",
    help="Sort by this column: score for ascending order, -score for descending order.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=None,
    help="Maximum number of rows.  [default: 50 in a table, else all]",
)
@click.option(
    "--vanished", is_flag=True, help="Also show files that are missing from the last listing."
)
@click.option(
    "--unfinished", is_flag=True, help="Also show files of a listing that is still being scored."
)
@click.option(
    "--image",
    metavar="URI",
    help="Only the row of this file, by uri, path, or image_id; with --json, also digests and versions.",
)
@click.option(
    "--member", metavar="NAME", help="With --image: the name of a file inside the container URI."
)
@click.option(
    "--out", metavar="FILE", help="Write the rows to this .csv or .parquet file; any fsspec URL."
)
@options.json_option
def results(
    run: str,
    image: str | None,
    member: str | None,
    limit: int | None,
    as_json: bool,
    out: str | None,
    **values: Any,
) -> int:
    """Show the verdicts of a run as a table, or write them to a file.

    \b
    touchstone results run --verdict fake --sort -score --limit 20
    touchstone results run --image photos/cat.jpg --json
    """
    from ray_app.runs import RunDirectory
    from ray_app.runs.selection import RowFilter, selected_tables

    if member is not None and image is None:
        raise click.UsageError("--member requires --image")
    if image is not None:
        vanished, _ = values.pop("vanished"), values.pop("unfinished")
        if out or limit or any(values.values()):
            raise click.UsageError(
                "--image shows one row: leave out filters, --sort, --limit, and --out"
            )
        return _show_image(
            RunDirectory.open(run), image, member, vanished=vanished, as_json=as_json
        )
    if out and as_json:
        raise click.UsageError("--json and --out cannot be used together")
    directory = RunDirectory.open(run)
    in_table = not (as_json or out)
    # A table reads one row more, to see whether there are further rows.
    max_rows = (limit or _DEFAULT_ROWS) + 1 if in_table else limit
    order = values.pop("order")
    scope = {name: values.pop(name) for name in ("vanished", "unfinished")}
    tables = selected_tables(directory, RowFilter(**values), order=order, limit=max_rows, **scope)
    if out:
        return _write(directory, tables, out)
    for line in _guarantee_notes(directory):
        click.echo(line, err=True)
    _print(chain.from_iterable(table.to_pylist() for table in tables), limit, as_json)
    if not as_json:
        _print_operating_point(directory)
    return 0


def _print_operating_point(run: "RunDirectory") -> None:
    """Print the error rates of a finished run if its thresholds are those of an operating point."""
    from ray_app.reports.format import escape_invisible
    from ray_app.runs.document import RunSummary

    if not run.store.exists("summary.json"):
        return
    summary = RunSummary.model_validate(run.read_json("summary.json"))
    if summary.ensemble.thresholds and summary.ensemble.thresholds.target_fpr is not None:
        click.echo(escape_invisible(summary.error_rates))


def _print(rows: Iterable[Mapping[str, Any]], limit: int | None, as_json: bool) -> None:
    """Print the rows as JSON lines, or the first ones as a table."""
    from ray_app.reports import verdict_table
    from ray_app.reports.text import terminal_width

    rows = iter(rows)
    if as_json:
        for row in islice(rows, limit):
            click.echo(options.to_json(_parse_provenance(row), default=str))
        return
    first_rows = list(islice(rows, limit or _DEFAULT_ROWS))
    click.echo(verdict_table(first_rows, terminal_width()))
    if next(rows, None) is not None:
        click.echo(
            f"… only the first {len(first_rows)} rows; use --limit, --json, or --out to get more"
        )


def _parse_provenance(row: Mapping[str, Any]) -> dict[str, Any]:
    return {**row, "provenance": json.loads(row.get("provenance") or "null")}


def _show_image(
    run: "RunDirectory", image: str, member: str | None, *, vanished: bool, as_json: bool
) -> int:
    """Print the row of one image, as a table or as JSON.

    The JSON document also has the digests and versions of the detectors that scored the image.
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
        options.to_json(describe_image_row(run, _parse_provenance(row)), indent=2, default=str)
    )
    return 0


def _write(run: "RunDirectory", tables: "Iterator[pa.Table]", out: str) -> int:
    """Write the rows to a CSV or Parquet file; without rows, the file has only the columns."""
    from ray_app.reports.format import pluralize
    from ray_app.runs import CurrentRows
    from ray_app.runs.row_shape import RowShape
    from ray_app.runs.table_files import write_tables
    from ray_app.storage import Store, strip_secrets

    folder, slash, name = out.rpartition("/")
    stem, _, suffix = name.rpartition(".")
    forms: dict[str, Form] = {"csv": "csv", "parquet": "parquet"}
    if not stem or suffix not in forms:
        raise ConfigError(
            f"--out {strip_secrets(out)}: the name must end with .csv or .parquet",
            hint="use a name such as --out verdicts.csv",
        )
    files = CurrentRows.at_end(run).files()
    if not files:
        raise ConfigError(
            f"{run.store.url} has no rows yet",
            hint="run the touchstone score command of this run again",
        )
    shape = RowShape.of_files(run, files)
    schema, tables = shape.schema, map(shape.apply, tables)
    if suffix == "csv":
        # CSV has no nested columns: each detector and each column of the source gets its own.
        schema = schema.empty_table().flatten().schema
        tables = (table.flatten() for table in tables)
    store = Store.open(folder or slash or ".")
    rows = write_tables(store, stem, schema, tables, forms=(forms[suffix],))
    click.echo(f"{pluralize(rows, 'row')}: {strip_secrets(out)}")
    return 0


def _guarantee_notes(run: "RunDirectory") -> list[str]:
    """Return lines on the guarantee of the run's ensemble card, unless it is known to hold."""
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
    help="Directory for the pages; any fsspec URL. An existing gallery is replaced.",
)
@click.option(
    "--verdict",
    type=click.Choice(["fake", "real", "abstain"]),
    help="Only images with this verdict.",
)
@click.option(
    "--generator",
    metavar="NAME",
    help="Only images attributed to this generator or family. `unknown` selects images attributed to no known generator.",
)
@click.option(
    "--most",
    type=click.IntRange(min=1),
    metavar="N",
    help="Only the N selected images with the highest scores.",
)
@click.option(
    "--per-page",
    type=click.IntRange(1, 1000),
    default=60,
    show_default=True,
    help="Number of images on a page.",
)
@options.json_option
def gallery(
    run: str,
    out: str,
    verdict: str | None,
    generator: str | None,
    most: int | None,
    per_page: int,
    as_json: bool,
) -> int:
    """Write HTML pages to browse the images of a run with their verdicts.

    The first page is DIR/index.html.

    \b
    touchstone runs gallery run --out gallery --verdict fake
    """
    from ray_app.reports.format import pluralize
    from ray_app.runs.selection import RowFilter
    from ray_app.scoring.gallery import make_gallery

    summary = make_gallery(
        run, out, RowFilter(verdict, generator=generator), most, per_page=per_page, quiet=as_json
    )
    options.echo_document(
        summary,
        [
            f"{pluralize(summary['images'], 'image')} on {pluralize(summary['pages'], 'page')}: {summary['out']}/index.html"
        ],
        as_json,
    )
    return 0


@click.command()
@click.argument("run", metavar="RUN")
@click.option("--out", required=True, metavar="FOLDER", help="Local folder for the PNG files.")
@click.option(
    "--min-area",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    help="Only masks that cover at least this fraction of the image.",
)
@click.option(
    "--native",
    is_flag=True,
    help="Keep the size of the network's output. By default, masks are resized to the image.",
)
@click.option(
    "--vanished",
    is_flag=True,
    help="Also write masks of files that are missing from the last listing.",
)
def masks(run: str, out: str, min_area: float, native: bool, vanished: bool) -> int:
    """Write the predicted masks of a run as 8-bit PNG files; white marks altered pixels.

    Masks are resized to the image, unless --native is set. With --vanished, files that are missing
    from the archive are included.

    \b
    touchstone runs masks run --out masks --min-area 0.05
    """
    from ray_app.reports.format import pluralize
    from ray_app.runs import CurrentRows, RunDirectory, mask_image

    folder = options.make_local_folder(out)
    written = 0
    for row in CurrentRows.read(RunDirectory.open(run)).masks(vanished=vanished):
        image, area = mask_image(row, stretched=not native)
        if area >= min_area:
            image.save(folder / f"{row['image_id']}-{row['detector'].replace(':', '-')}.png")
            written += 1
    click.echo(f"{pluralize(written, 'mask')} in {folder}")
    if not written:
        click.echo(
            "no masks: no detector of this run localizes (see `touchstone detectors list`), or --min-area is too large",
            err=True,
        )
    return 0
