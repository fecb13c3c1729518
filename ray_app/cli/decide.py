"""`touchstone decide`: other rules or thresholds on scores that are stored."""

import click

from ray_app.cli.options import unguarded_option


@click.command()
@click.argument("run", metavar="RUN")
@click.option("--ensemble", required=True, metavar="NAME|PATH", help="The ensemble card with the new rule or thresholds.")
@click.option("--waive-guarantee", is_flag=True, help="Keep verdicts that the card's guarantee does not cover.")
@unguarded_option
def decide(run: str, ensemble: str, waive_guarantee: bool, unguarded: bool) -> int:
    """Decide RUN anew with another ensemble card over the same detectors; nothing is fetched or scored.

    \b
    touchstone decide run --ensemble stricter.yaml
    """
    from ray_app.reports import summary_lines
    from ray_app.scoring.redeciding import decide_run

    click.echo("\n".join(summary_lines(decide_run(run, ensemble, waive_guarantee=waive_guarantee, unguarded=unguarded))))
    return 0
