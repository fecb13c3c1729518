"""The commands `train` and `detectors fit`, which make detectors, identifiers, and describers."""

import json
from typing import Any

import click

from ray_app.cli import options
from ray_app.cli.config_options import ConfigCommand
from ray_app.cli.options import RECIPE


@click.command()
@click.argument("config_file", type=RECIPE, metavar="CONFIG")
@click.option(
    "--out",
    metavar="DIR",
    help="Where card, weights, figures and report go; any fsspec URL. The same command resumes there.",
)
@click.option(
    "--dry-run", is_flag=True, help="Show steps, memory and data counts, and train nothing."
)
@click.option(
    "--push",
    metavar="URL",
    help="Also put card and weights there: any fsspec URL, or hf://ORGANISATION/NAME.",
)
@options.licence_option
@options.overrides
@options.as_json
def train(
    config_file: str,
    dry_run: bool,
    push: str | None,
    assignments: tuple[str, ...],
    accepted: tuple[str, ...],
    as_json: bool,
    **given: Any,
) -> int:
    """Train a detector, an identifier, or a describer by a recipe: a shipped one by name, or a YAML file.

    \b
    touchstone train quick --out runs/quick
    """
    from ray_app.training.config import TrainConfig
    from ray_app.training.run import train as run_training

    if push is not None:
        assignments = (*assignments, f"export.push={json.dumps(push)}")
    config = options.configured(
        "train", config_file, TrainConfig, {"accept_licences": accepted, **given}, assignments
    )
    trained = run_training(config, dry_run=dry_run)
    if trained.facts:
        options.echo_document(trained.facts, trained.lines(), as_json)
    return 0


@click.command(
    "fit",
    cls=ConfigCommand,
    config="ray_app.training.config:FitHeadConfig",
    fields={
        "out": "--out DIR",
        "folds": "--folds COLUMN",
        "even": "--even",
        "features": "--features DIR",
        "install": "--install",
        "classifier": "--classifier",
        "name": "--name",
        "device": "--device",
    },
)
@click.argument("card", type=options.DETECTOR, metavar="CARD")
@click.argument("index", required=False, metavar="[INDEX]")
@click.option(
    "--labels",
    metavar="FILE",
    help="The same as INDEX: a CSV, JSONL or Parquet, or a folder with an index.parquet.",
)
@options.licence_option
def fit(index: str | None, labels: str | None, accepted: tuple[str, ...], **given: Any) -> int:
    """Fit a linear head to labelled images, on the backbone of CARD.

    INDEX has a row per image: `uri` (relative to the file), `label` (real, fake, 0 or 1), and optionally `group`, `family` or `source`.

    \b
    touchstone detectors fit unifd mine.csv --out heads/mine
    """
    from ray_app.training.config import FitHeadConfig
    from ray_app.training.fit_head import fit_labelled_images

    if (index is None) == (labels is None):
        raise click.UsageError("name one file of labelled images, as INDEX or by --labels")
    config = options.configured(
        "fit",
        None,
        FitHeadConfig,
        {"labels": index or labels, "accept_licences": accepted, **given},
        (),
    )
    lines = fit_labelled_images(config, lambda line: click.echo(line, err=True))
    click.echo("\n".join(lines))
    return 0
