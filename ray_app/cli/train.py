"""`touchstone train`: a recipe → a card that `score`, `evaluate` and `serve` take, or that of an identifier or a describer."""

import json
from typing import Any

import click

from ray_app.cli.options import as_json, configured, licence_option, overrides


@click.command()
@click.argument("config_file", metavar="CONFIG")
@click.option("--out", metavar="DIR", help="Where card, weights, figures and report go; any fsspec URL. The same command on it resumes.")
@click.option("--dry-run", is_flag=True, help="Say steps, memory and data counts; train nothing.")
@click.option("--push", metavar="URL", help="Put card and weights there too: any fsspec URL, or hf://ORGANISATION/NAME.")
@licence_option
@overrides
@as_json
def train(
    config_file: str,
    dry_run: bool,
    push: str | None,
    assignments: tuple[str, ...],
    accepted: tuple[str, ...],
    as_json: bool,
    **given: Any,
) -> int:
    """Train a detector by CONFIG, a shipped recipe by name or a YAML file.

    A finished DIR is only reported; one that was interrupted goes on from its last checkpoint.

    \b
    touchstone train quick --out runs/quick
    touchstone train configs/train/community-forensics.yaml --out s3://bucket/cf --set workers.count=8
    touchstone train openfake-swinv2 --dry-run
    touchstone score photos/ --out run --detector runs/quick/card.yaml
    touchstone train identify --out runs/identify
    touchstone train prompt-prefix --out runs/prompts
    """
    from ray_app.training.config import TrainConfig
    from ray_app.training.run import train as run_training

    if push is not None:
        assignments = (*assignments, f"export.push={json.dumps(push)}")
    config = configured("train", config_file, TrainConfig, {"accept_licences": accepted, **given}, assignments)
    trained = run_training(config, dry_run=dry_run)
    click.echo(json.dumps(trained.facts, indent=2, ensure_ascii=False) if as_json else "\n".join(_lines(trained.facts, dry_run)))
    return trained.exit_code


def _lines(facts: dict[str, Any], dry_run: bool) -> list[str]:
    if facts.get("method") == "identify":
        from ray_app.reports.attribution import identifier_lines, identifier_plan_lines

        return identifier_plan_lines(facts) if dry_run else identifier_lines(facts)
    if facts.get("method") == "describe":
        from ray_app.reports.attribution import describer_lines, describer_plan_lines

        return describer_plan_lines(facts) if dry_run else describer_lines(facts)
    if dry_run:
        from ray_app.training.plan import plan_lines

        return plan_lines(facts)
    from ray_app.reports.training import training_lines

    return [*training_lines(facts), *([f"pushed to {facts['pushed']}"] if "pushed" in facts else [])]
