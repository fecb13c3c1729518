"""The commands `evaluate`, `compare`, and `runs leaderboard` of `touchstone`.

They measure detectors on labelled images, compare two runs, and rank evaluations.
"""

from pathlib import Path
from typing import Any, Literal

import click

from ray_app.cli import options
from ray_app.cli.config_options import ConfigCommand
from ray_app.cli.options import DETECTOR, ENSEMBLE, PROTOCOL

_intervals_option = click.option(
    "--intervals",
    type=click.Choice(["generators", "images"]),
    help="Population that intervals and tests describe: new generators and sources, or only new images of the same ones.  "
    "[default: generators, if the labels name eight or more]",
)


@click.command(
    cls=ConfigCommand,
    config="ray_app.evaluation.config:EvaluateConfig",
    fields={
        "labels": "--labels FILE|INDEX",
        "out": "--out DIR",
        "layout": "--layout NAME",
        "key": "--key",
        "split": "--split NAME",
        "score.perturb": "--perturb NAME",
        "score.include": "--include GLOB",
        "score.exclude": "--exclude GLOB",
        "score.limit": "--limit",
        "leave_out_faults": "--leave-out-faults",
        "intervals": "--intervals",
        "regenerated": "--regenerated FOLDER",
        "thumbnails": "--thumbnails/--no-thumbnails",
    },
)
@click.argument("at", metavar="RUN|SOURCE…", nargs=-1)
@click.option(
    "--protocol",
    type=PROTOCOL,
    metavar="NAME|PATH",
    help="Follow the protocol of a paper, and show its published metrics next to the measured ones.",
)
@click.option(
    "--ensemble",
    "score__ensemble",
    type=ENSEMBLE,
    metavar="NAME|PATH",
    help="The ensemble that scores a SOURCE.  [default: the protocol's, else default]",
)
@click.option(
    "--detector",
    "score__detectors",
    type=DETECTOR,
    multiple=True,
    metavar="NAME|PATH",
    help="Score with this detector instead of an ensemble; repeatable.",
)
@click.option(
    "--fragility",
    metavar="FILE",
    help="Also write to FILE how perturbations weaken each detector, as a section for its card.",
)
@options.licence_option
@options.overrides
@options.json_option
def evaluate(
    assignments: tuple[str, ...],
    accepted: tuple[str, ...],
    as_json: bool,
    fragility: str | None,
    **values: Any,
) -> int:
    """Measure how well detectors separate fake images from real ones.

    The images are those of a finished RUN, or of a SOURCE, which is scored first.

    \b
    touchstone evaluate run --labels labels.csv --out figures
    touchstone evaluate photos/ --layout folders --detector unifd --out figures
    """
    from ray_app.evaluation.config import EvaluateConfig
    from ray_app.evaluation.fragility import fragility_yaml
    from ray_app.evaluation.run import evaluate as run_evaluation
    from ray_app.reports.evaluation.page import evaluation_lines
    from ray_app.storage import strip_secrets

    values["score__accept_licences"] = accepted
    config = options.load_config("evaluate", None, EvaluateConfig, values, assignments)
    evaluated = run_evaluation(config)
    result = evaluated.result
    if fragility is not None:
        (options.make_local_folder(Path(fragility).parent) / Path(fragility).name).write_text(
            fragility_yaml(result), encoding="utf-8"
        )
    options.echo_document(result.to_json(), evaluation_lines(result), as_json)
    click.echo(
        f"report: {strip_secrets(config.out or '').rstrip('/')}/report.html (metrics.csv next to it shows why a value or an interval is missing)",
        err=as_json,
    )
    return evaluated.exit_code


@click.command()
@click.argument("run_a", metavar="RUN_A")
@click.argument("run_b", metavar="RUN_B")
@click.option(
    "--labels",
    metavar="FILE|INDEX",
    help="CSV, JSONL, or Parquet file, or index, with labels.  [default: the runs' own columns]",
)
@click.option(
    "--by",
    type=click.Choice(["image_id", "sha256"]),
    help="Column that matches the rows of both runs.  [default: image_id, or sha256 if no id is shared]",
)
@_intervals_option
@options.json_option
def compare(
    run_a: str,
    run_b: str,
    labels: str | None,
    by: Literal["image_id", "sha256"] | None,
    intervals: Literal["generators", "images"] | None,
    as_json: bool,
) -> int:
    """Compare the verdicts and scores of two runs on the images that both scored.

    With labels, the comparison also has true-positive and true-negative rates and AUC.

    \b
    touchstone compare old new --labels truth.csv
    """
    from ray_app.evaluation.compare import compare as compare_runs
    from ray_app.reports.compare import comparison_lines
    from ray_app.reports.text import terminal_width

    comparison = compare_runs(run_a, run_b, labels, by=by, intervals=intervals or "generators")
    options.echo_document(
        comparison.to_dict(), comparison_lines(comparison, terminal_width()), as_json
    )
    return 0


@click.command()
@click.argument("evaluations", metavar="DIR…", nargs=-1, required=True)
@click.option(
    "--figure",
    default="auc",
    show_default=True,
    metavar="NAME",
    help="Metric to order the table by: a value of the column `figure` of metrics.csv.",
)
@options.json_option
def leaderboard(evaluations: tuple[str, ...], figure: str, as_json: bool) -> int:
    """Rank the detectors and ensembles of several evaluations of the same labelled images.

    Each DIR is the output of `touchstone evaluate`.

    \b
    touchstone runs leaderboard figures-a figures-b
    """
    from ray_app.evaluation.leaderboard import rank_systems
    from ray_app.reports.evaluation.leaderboard import leaderboard_lines
    from ray_app.reports.text import terminal_width

    entries = rank_systems(evaluations, figure)
    lines = leaderboard_lines(entries, figure, terminal_width())
    options.echo_document([entry.to_dict() for entry in entries], lines, as_json)
    return 0
