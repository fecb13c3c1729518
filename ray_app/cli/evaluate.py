"""The commands `evaluate` and `compare`."""

from pathlib import Path
from typing import Any, Literal

import click

from ray_app.cli import options
from ray_app.cli.options import ENSEMBLE, PROTOCOL

_OF_SCORING = ("ensemble", "detectors", "include", "exclude", "limit", "perturb")


_OF_WHAT = click.option(
    "--intervals",
    type=click.Choice(["generators", "images"]),
    help="Of what intervals and tests speak: further generators and sources, or further images of these only.  [default: generators, where "
    "labels name eight or more]",
)


@click.command()
@click.argument("at", metavar="RUN|SOURCE…", nargs=-1)
@click.option(
    "--labels",
    metavar="FILE|INDEX",
    help="CSV, JSONL or Parquet; or an index.  [default: the layout's, else the run's own]",
)
@click.option(
    "--out",
    metavar="DIR",
    help="Where metrics.json, .csv, and .parquet and report.html go; any fsspec URL.",
)
@click.option(
    "--protocol",
    type=PROTOCOL,
    metavar="NAME|PATH",
    help="Evaluate as a paper did; its published figures stand beside ours.",
)
@click.option(
    "--layout",
    metavar="NAME",
    help="How the source states its labels; touchstone data index --help lists the layouts.",
)
@options.key_option
@options.split_option
@click.option(
    "--ensemble",
    type=ENSEMBLE,
    metavar="NAME|PATH",
    help="Which ensemble scores a SOURCE.  [default: the protocol's, else default]",
)
@options.detectors_option
@click.option(
    "--perturb",
    multiple=True,
    metavar="NAME",
    help="Score perturbed images too: a list by name, or jpeg:75; repeatable.",
)
@options.include_option
@options.exclude_option
@click.option("--limit", type=click.IntRange(min=1), help="Score no more than this many files.")
@click.option(
    "--leave-out-faults",
    is_flag=True,
    default=None,
    help="Leave out images and prompts that a documented fault spoils.",
)
@_OF_WHAT
@click.option(
    "--regenerated",
    metavar="FOLDER",
    help="Images that data generate --prompts RUN made; with --set clip=FOLDER.",
)
@click.option(
    "--fragility",
    metavar="FILE",
    help="Also write what perturbations leave of each detector, as a section for its card.",
)
@click.option(
    "--thumbnails/--no-thumbnails",
    default=None,
    help="Pictures of mistakes in the report.  [default: with them]",
)
@options.licence_option
@options.overrides
@options.as_json
def evaluate(
    assignments: tuple[str, ...],
    accepted: tuple[str, ...],
    as_json: bool,
    fragility: str | None,
    **given: Any,
) -> int:
    """Measure how well detectors tell fake images from real ones.

    Says how well a RUN did, or a SOURCE that it scores first: on what, how surely, and where it breaks.

    A SOURCE is scored into DIR/run first; the same command goes on where it was interrupted. Labels have `label` (real, fake, 0 or 1)
    and one of `image_id`, `sha256`, `uri` (with `member`), maybe `generator`, `mask_uri`, `prompt`, `kind` (whole, local), `split`.

    \b
    touchstone evaluate run --labels labels.csv --out figures
    touchstone evaluate s3://bucket/openfake --protocol openfake-v1 --out s3://bucket/figures
    touchstone evaluate photos/ --layout folders --detector unifd --detector npr --perturb standard --out figures
    touchstone evaluate photos/ --layout folders --detector unifd --perturb standard --out figures --fragility unifd-fragility.yaml
    touchstone evaluate run --labels labels.parquet --out figures --json | jq '.metrics[] | select(.figure == "auc" and .scope == "all")'
    """
    from ray_app.evaluation.config import EvaluateConfig
    from ray_app.evaluation.fragility import fragility_yaml
    from ray_app.evaluation.run import evaluate as run_evaluation
    from ray_app.reports.evaluation.page import evaluation_lines
    from ray_app.storage import strip_secrets

    scoring = {name: given.pop(name) for name in _OF_SCORING} | {"accept_licences": accepted}
    scoring = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in scoring.items()
        if value not in (None, ())
    }
    config = options.configured(
        "evaluate", None, EvaluateConfig, {**given, "score": scoring}, assignments
    )
    evaluated = run_evaluation(config)
    result = evaluated.result
    if fragility is not None:
        (options.local_folder(Path(fragility).parent) / Path(fragility).name).write_text(
            fragility_yaml(result), encoding="utf-8"
        )
    options.echo_document(result.to_json(), evaluation_lines(result), as_json)
    click.echo(
        f"report: {strip_secrets(config.out or '').rstrip('/')}/report.html (every figure: metrics.json beside it)",
        err=as_json,
    )
    return evaluated.exit_code


@click.command()
@click.argument("run_a", metavar="RUN_A")
@click.argument("run_b", metavar="RUN_B")
@click.option(
    "--labels",
    metavar="FILE|INDEX",
    help="CSV, JSONL, Parquet or an index with labels.  [default: the runs' own columns]",
)
@click.option(
    "--by",
    type=click.Choice(["image_id", "sha256"]),
    help="The column by which rows of both runs are matched.  [default: image_id, or sha256 if no id is shared]",
)
@_OF_WHAT
@options.as_json
def compare(
    run_a: str,
    run_b: str,
    labels: str | None,
    by: Literal["image_id", "sha256"] | None,
    intervals: Literal["generators", "images"] | None,
    as_json: bool,
) -> int:
    """Show what changed between two runs.

    A crosstab of verdicts, differences of scores and, with labels, of TPR, TNR, and AUC.
    Rows are matched image by image.

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
    help="The metric that orders the table, as in the column figure of metrics.csv.",
)
@options.as_json
def leaderboard(evaluations: tuple[str, ...], figure: str, as_json: bool) -> int:
    """Order the systems of several evaluations of the same labelled images.

    \b
    touchstone runs leaderboard figures-a figures-b
    touchstone runs leaderboard figures-* --figure tpr_at_fpr_1 --json
    """
    from ray_app.evaluation.leaderboard import rank_systems
    from ray_app.reports.evaluation.leaderboard import leaderboard_lines
    from ray_app.reports.text import terminal_width

    entries = rank_systems(evaluations, figure)
    lines = leaderboard_lines(entries, figure, terminal_width())
    options.echo_document([entry.to_dict() for entry in entries], lines, as_json)
    return 0
