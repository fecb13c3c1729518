"""The command `touchstone check`: score a few images in this process, without a cluster.

It prints the verdicts and writes no run directory.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ray_app import __version__
from ray_app.cli import options
from ray_app.errors import ConfigError, ExitCode, Status

if TYPE_CHECKING:
    from ray_app.inference.check_files import CheckedFile
    from ray_app.inference.spec import ScoringSpec


@click.command()
@click.argument("images", nargs=-1, metavar="IMAGE…")
@options.ensemble_option
@options.detectors_option
@options.fpr_option
@click.option(
    "--device",
    default="cpu",
    show_default=True,
    help="Device to run the detectors on: cpu, cuda, or cuda:0.",
)
@options.licence_option
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON per image.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV, with one line per image.")
@click.option(
    "--html",
    metavar="FILE",
    help="Also write a page to FILE (.html): a report on a single image, or a tile for each of several.",
)
def check(
    images: tuple[str, ...],
    ensemble: str | None,
    detectors: tuple[str, ...],
    fpr: float | None,
    device: str,
    accepted: tuple[str, ...],
    as_json: bool,
    as_csv: bool,
    html: str | None,
) -> int:
    """Check whether a few images are fake: files, folders, https URLs, or `-` for stdin.

    \b
    touchstone check photo.jpg
    touchstone check holiday/ --html verdicts.html
    """
    if not images:
        raise ConfigError(
            "nothing to check: no image was given", hint="run touchstone check FILE|FOLDER|URL|-"
        )
    if detectors and ensemble:
        raise ConfigError(
            "--detector and --ensemble cannot be given together",
            hint="use --detector to name detectors, or --ensemble to name their ensemble",
        )
    if as_json and as_csv:
        raise ConfigError(
            "--json and --csv cannot be given together", hint="choose one format for stdout"
        )
    form = "json" if as_json else "csv" if as_csv else None
    page = None if html is None else _page_path(html)

    from ray_app.inference.named_files import list_named_files

    files = list_named_files(images)
    # Must be set before torch is imported. Workers of a run use the same setting, so that their
    # scores are equal.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

    from ray_app.ensembles import build_ensemble, choose_operating_point, load_ensemble_card
    from ray_app.images import BatchLimits
    from ray_app.inference.check_files import check_files
    from ray_app.inference.spec import make_spec
    from ray_app.reports.check import choose_picture_size, name_rows

    card = (
        build_ensemble(list(detectors)) if detectors else load_ensemble_card(ensemble or "default")
    )
    if fpr is not None:
        card = choose_operating_point(card, fpr)
    spec = make_spec(card, limits=BatchLimits(), device=device)
    size = choose_picture_size(len(files.names)) if page else None
    checked: list[CheckedFile] = []
    with closing(check_files(files, spec, accept_licences=accepted, picture_size=size)) as arriving:
        try:
            _print(_keep(arriving, checked), form, list(spec.cards))
        finally:  # Show the rows that arrived before an error.
            rows = [file.row for file in checked]
            names = name_rows(rows, images)
            if rows and form is None:
                _print_table(rows, names, spec)
    if page is not None:
        _write_page(page, checked, names, spec)
    return (
        ExitCode.DONE if any(row["status"] == Status.OK for row in rows) else ExitCode.TOO_MANY_BAD
    )


def _keep(
    arriving: "Iterator[CheckedFile]", checked: "list[CheckedFile]"
) -> Iterator[dict[str, Any]]:
    """Yield the row of each file, and add the file to `checked`."""
    for file in arriving:
        checked.append(file)
        yield file.row


def _print(rows: Iterator[dict[str, Any]], form: str | None, detectors: Sequence[str]) -> None:
    if form == "csv":
        from ray_app.reports.check import csv_lines

        for line in csv_lines(rows, detectors):
            click.echo(line)
        return
    for row in rows:
        if form == "json":
            click.echo(options.to_json(row))


def _print_table(rows: Sequence[dict[str, Any]], names: Sequence[str], spec: "ScoringSpec") -> None:
    from ray_app.reports.check import CheckFacts, check_lines
    from ray_app.reports.text import terminal_width

    lines = check_lines(rows, names, CheckFacts.from_spec(spec), terminal_width())
    click.echo("\n".join(lines))


def _write_page(
    page: Path, checked: "Sequence[CheckedFile]", names: Sequence[str], spec: "ScoringSpec"
) -> None:
    from ray_app.reports.check import CheckFacts, write_check_page
    from ray_app.runs import fingerprint
    from ray_app.scoring.identity import scoring_facts

    facts = CheckFacts.from_spec(spec, fingerprint(scoring_facts(spec)))
    rows, pictures = [file.row for file in checked], [file.picture for file in checked]
    write_check_page(page, rows, names, pictures, facts, version=__version__)
    click.echo(f"page: {page}", err=True)


def _page_path(html: str) -> Path:
    page = Path(html)
    if page.suffix.lower() not in (".html", ".htm") or "://" in html:
        raise ConfigError(
            f"--html must be the path of a local .html file, got {html}",
            hint="use a name such as --html verdicts.html",
        )
    if not page.parent.is_dir():
        raise ConfigError(
            f"--html {html}: the folder {page.parent} does not exist",
            hint="create the folder, or choose another one",
        )
    return page
