"""`touchstone plan`: what a run will do and how long it takes, before it does it."""

import json
from typing import Any

import click

from ray_app.cli.options import as_json, configured, licence_option, overrides, what_is_scored


@click.command()
@what_is_scored
@click.option("--probe", type=click.IntRange(min=0), default=16, show_default=True, help="Members to score for the rate, on one core.")
@click.option("--price-per-hour", type=click.FloatRange(min=0), help="What the planned machines cost per hour together.")
@licence_option
@overrides
@as_json
def plan(
    source: tuple[str, ...],
    config_file: str | None,
    probe: int,
    price_per_hour: float | None,
    accepted: tuple[str, ...],
    assignments: tuple[str, ...],
    as_json: bool,
    **given: Any,
) -> int:
    """Show what scoring SOURCE would do: tensors and backbones shared, processes, a rate from a short probe, hours and cost.

    No run is begun and no cluster started; weights that are missing are fetched for the probe. Cores and GPUs are those of
    --set cluster.cpus and cluster.gpus, else this machine's.

    \b
    touchstone plan photos/ --ensemble published
    """
    from ray_app.reports import plan_lines
    from ray_app.scoring import ScoreConfig
    from ray_app.scoring.forecasting import forecast

    settings = configured("score", config_file, ScoreConfig, {"source": source, "accept_licences": accepted, **given}, assignments)
    made = forecast(settings, probe=probe, price_per_hour=price_per_hour)
    click.echo(json.dumps(made, indent=2) if as_json else "\n".join(plan_lines(made)))
    return 0
