"""`touchstone evaluate`: a run, or a source that is scored first, and its labels → figures and a report."""

import json
from typing import Any

import click

from ray_app.cli.options import as_json, configured, licence_option, overrides

_OF_SCORING = ("ensemble", "detectors", "include", "exclude", "limit", "perturb")


@click.command()
@click.argument("at", metavar="RUN|SOURCE…", nargs=-1)
@click.option("--labels", metavar="FILE|INDEX", help="CSV, JSONL or Parquet; or an index.  [default: the layout's, else the run's own]")
@click.option("--out", metavar="DIR", help="Where metrics.json, metrics.csv and report.html go; any fsspec URL.")
@click.option("--protocol", metavar="NAME|PATH", help="Evaluate as a paper did; its published figures stand beside ours.")
@click.option("--layout", metavar="NAME", help="How the source tells labels; touchstone index --help names the layouts.")
@click.option("--key", type=click.Choice(["image_id", "sha256", "uri"]), help="What joins labels to rows.  [default: the first there is]")
@click.option("--split", metavar="NAME", help="Only labels of this split.")
@click.option("--ensemble", metavar="NAME|PATH", help="Which ensemble scores a SOURCE.  [default: the protocol's, else default]")
@click.option("--detector", "detectors", multiple=True, metavar="NAME|PATH", help="Score with these detectors instead; repeatable.")
@click.option("--perturb", multiple=True, metavar="NAME", help="Score perturbed images too: a list by name, or jpeg:75; repeatable.")
@click.option("--include", multiple=True, metavar="GLOB", help="Only paths below the source that match; repeatable.")
@click.option("--exclude", multiple=True, metavar="GLOB", help="Not the paths that match; repeatable.")
@click.option("--limit", type=click.IntRange(min=1), help="Score no more than this many members.")
@click.option("--thumbnails/--no-thumbnails", default=None, help="Pictures of mistakes in the report.  [default: with them]")
@licence_option
@overrides
@as_json
def evaluate(assignments: tuple[str, ...], accepted: tuple[str, ...], as_json: bool, **given: Any) -> int:
    """Say how well a RUN tells fakes from real images: on what, how surely, and where it breaks.

    A SOURCE is scored into DIR/run first; the same command goes on where it was interrupted. Labels have `label` (real, fake, 0 or 1)
    and one of `image_id`, `sha256`, `uri` (with `member`), maybe `generator`, `mask_uri`, `prompt`, `kind` (whole, local), `split`.

    \b
    touchstone evaluate run --labels labels.csv --out figures
    touchstone evaluate s3://bucket/openfake --protocol openfake-v1 --out s3://bucket/figures
    touchstone evaluate photos/ --layout folders --detector unifd --detector npr --perturb standard --out figures
    touchstone evaluate run --labels labels.parquet --out figures --json | jq .systems[0].figures.auc
    """
    from ray_app.evaluation.config import EvaluateConfig
    from ray_app.evaluation.run import evaluate as run_evaluation
    from ray_app.reports.evaluation_report import evaluation_lines

    scoring = {name: given.pop(name) for name in _OF_SCORING} | {"accept_licences": accepted}
    scoring = {name: list(value) if isinstance(value, tuple) else value for name, value in scoring.items() if value not in (None, ())}
    evaluated = run_evaluation(configured("evaluate", None, EvaluateConfig, {**given, "score": scoring}, assignments))
    document = evaluated.document
    click.echo(json.dumps(document, indent=1, ensure_ascii=False) if as_json else "\n".join(evaluation_lines(document)))
    return evaluated.exit_code
