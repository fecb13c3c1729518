"""The command `touchstone ensembles suggest`: which of a run's detectors to combine."""

import json
import shutil
from typing import Any

import click

from ray_app.cli.options import as_json, configured

_AIMS = ["auc", "tpr_at_fpr_1", "tpr_at_fpr_5"]


@click.command()
@click.argument("run", metavar="RUN")
@click.option("--labels", metavar="FILE|INDEX", help="CSV, JSONL, Parquet or an index with labels.  [default: the run's own columns]")
@click.option("--size", type=click.IntRange(min=1), help="Detectors at most.  [default: 5]")
@click.option("--by", type=click.Choice(_AIMS), help="The figure that is to grow.  [default: auc]")
@click.option("--per-cost", is_flag=True, help="Write the card of what gives the most per cost instead of the most.")
@click.option("--detector", "detectors", multiple=True, metavar="NAME", help="Choose among these of the run's detectors; repeatable.")
@click.option(
    "--key",
    type=click.Choice(["image_id", "sha256", "uri"]),
    help="The column that joins labels to rows.  [default: the first of them that the labels have]",
)
@click.option("--split", metavar="NAME", help="Only labels of this split.")
@click.option("--out", metavar="CARD.yaml", help="Where the ensemble's card goes; touchstone score --ensemble takes it.")
@click.option("--seed", type=int, help="Seed by which groups are dealt to folds.  [default: 0]")
@as_json
def suggest(as_json: bool, **given: Any) -> int:
    """Suggest which of a run's detectors to combine.

    Takes one detector after another, each time the one that adds most to the mean of calibrated log-odds, until none adds more than chance
    would. Figures are of held-out folds: whole sources of real images and whole generators of fakes, as labels name them (`source`,
    `generator`), for which everything was chosen and fitted on the other folds. Beside each step stands what it costs: milliseconds where
    the run measured its detectors one by one, else the cards' multiply-adds.

    \b
    touchstone ensembles suggest run --labels labels.csv
    touchstone ensembles suggest run --labels labels.csv --size 3 --by tpr_at_fpr_5 --out mine.yaml
    touchstone score archive/ --ensemble mine.yaml --out archive-run
    """
    from ray_app.evaluation.suggested_card import SuggestConfig, suggest_ensemble
    from ray_app.reports.suggestion import suggestion_lines

    config = configured("suggest", None, SuggestConfig, given, ())
    report = suggest_ensemble(config)
    width = shutil.get_terminal_size((120, 24)).columns
    text = json.dumps(report.written(), indent=1, ensure_ascii=False) if as_json else "\n".join(suggestion_lines(report, width))
    click.echo(text)
    if config.out:
        click.echo(f"card: {config.out} (touchstone score SOURCE --ensemble {config.out} --out RUN)", err=as_json)
    return 0
