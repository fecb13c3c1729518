"""`touchstone plan`: what a run will do, how long it takes and what it costs, before it does it."""

import json
from typing import Any

import click

from ray_app.cli.options import as_json, configured, licence_option, overrides, what_is_scored


@click.command()
@what_is_scored
@click.option("--out", metavar="DIR", help="The run directory; where it holds a run, what that has done is left out. Nothing is written.")
@click.option("--cluster", metavar="NAME|FILE", help="Machines and their prices: laptop, cpu-pool, gpu-spot-pool, or a YAML of yours.")
@click.option("--price-per-hour", type=click.FloatRange(min=0), help="What the planned machines cost per hour together.")
@click.option("--probe", type=click.IntRange(min=0), default=64, show_default=True, help="Members to try out for the rates, on one core.")
@licence_option
@overrides
@as_json
def plan(
    source: tuple[str, ...],
    config_file: str | None,
    cluster: str | None,
    price_per_hour: float | None,
    probe: int,
    accepted: tuple[str, ...],
    assignments: tuple[str, ...],
    as_json: bool,
    **given: Any,
) -> int:
    """Show what scoring SOURCE would do and cost: stages and the slowest of them, requests, bytes, hours, and the bill.

    No run is begun and no cluster started; weights that are missing are fetched for the probe. Cores, GPUs and prices are those of
    --cluster, else of --set cluster.cpus, cluster.gpus and prices.per_hour, else this machine's, which cost nothing.

    \b
    touchstone plan photos/ --ensemble published
    touchstone plan s3://bucket/2024 --cluster gpu-spot-pool --out s3://bucket/run
    """
    from ray_app.reports import plan_lines
    from ray_app.scoring import ScoreConfig
    from ray_app.scoring.forecasting import forecast
    from ray_app.scoring.machines import load_cluster

    settings = configured("score", config_file, ScoreConfig, {"source": source, "accept_licences": accepted, **given}, assignments)
    described = load_cluster(cluster) if cluster else None
    made = forecast(settings, probe=probe, cluster=described, price_per_hour=price_per_hour)
    click.echo(json.dumps(made, indent=2) if as_json else "\n".join(plan_lines(made)))
    return 0
