"""The commands `train` and `detectors fit`, which train detectors with your labelled images."""

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
    help="Directory for the card, the weights, the metrics, and the report; any fsspec URL. Run the same command again to resume.",
)
@click.option(
    "--dry-run", is_flag=True, help="Show steps, memory, and data counts without training."
)
@click.option(
    "--push",
    metavar="URL",
    help="Also upload the card and the weights to this URL: any fsspec URL, or hf://ORGANISATION/NAME.",
)
@options.licence_option
@options.overrides
@options.json_option
def train(
    config_file: str,
    dry_run: bool,
    push: str | None,
    assignments: tuple[str, ...],
    accepted: tuple[str, ...],
    as_json: bool,
    **values: Any,
) -> int:
    """Train a detector, an identifier, or a describer with a recipe.

    An identifier names the generator of a fake, and a describer predicts the prompt of an image. CONFIG is the name of a shipped
    recipe, or the path of a YAML file.

    \b
    touchstone train quick --out runs/quick
    """
    from ray_app.training.config import TrainConfig
    from ray_app.training.run import train as run_training

    if push is not None:
        assignments = (*assignments, f"export.push={json.dumps(push)}")
    config = options.load_config(
        "train", config_file, TrainConfig, {"accept_licences": accepted, **values}, assignments
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
    help="The same as INDEX: a CSV, JSONL, or Parquet file, or a folder with an index.parquet.",
)
@options.licence_option
def fit(index: str | None, labels: str | None, accepted: tuple[str, ...], **values: Any) -> int:
    """Fit a linear head on the backbone of a detector, with your labelled images.

    INDEX has a row for each image, with the columns `uri` (relative to INDEX) and `label` (real, fake, 0, or 1). An optional column
    `group`, `family`, or `source` names groups of images, which the cross-validation does not divide.

    \b
    touchstone detectors fit unifd mine.csv --out heads/mine
    """
    from ray_app.training.config import FitHeadConfig
    from ray_app.training.fit_head import fit_labelled_images

    if (index is None) == (labels is None):
        raise click.UsageError(
            "name the labelled images either as INDEX or with --labels FILE, but not with both"
        )
    config = options.load_config(
        "fit",
        None,
        FitHeadConfig,
        {"labels": index or labels, "accept_licences": accepted, **values},
        (),
    )
    lines = fit_labelled_images(config, lambda line: click.echo(line, err=True))
    click.echo("\n".join(lines))
    return 0
