"""`touchstone rescore`: another head on embeddings that a run has kept."""

import json

import click

from ray_app.cli.options import as_json, licence_option, unguarded_option
from ray_app.errors import ConfigError


@click.command()
@click.argument("run", metavar="RUN")
@click.option("--detector", "detectors", multiple=True, metavar="NAME|PATH", help="The head's card; repeatable, then their mean decides.")
@click.option("--ensemble", metavar="NAME|PATH", help="Instead: an ensemble card whose detectors are such heads.")
@click.option("--identifier", metavar="PATH", help="Instead: whose head names the generators anew; scores and verdicts stay.")
@click.option("--out", required=True, metavar="DIR", help="The new run directory; any fsspec URL. The same command on it resumes.")
@unguarded_option
@licence_option
@as_json
def rescore(
    run: str,
    detectors: tuple[str, ...],
    ensemble: str | None,
    identifier: str | None,
    out: str,
    unguarded: bool,
    accepted: tuple[str, ...],
    as_json: bool,
) -> int:
    """Score the archive of RUN by another head, or name its generators by another identifier, on the embeddings that RUN has kept.

    No image is fetched or decoded.

    RUN was made with `score --features NAME`. The head's card must have the same backbone, preprocessing, precision and resize mode. The
    new run directory is what `touchstone score` with that head would have made of the same images, and that command goes on with it.

    \b
    touchstone score photos/ --detector unifd --features unifd --out run
    touchstone detectors fit unifd --labels mine.csv --name my-head --out my-head
    touchstone rescore run --detector my-head/card.yaml --out my-run
    touchstone rescore run --identifier runs/identify/identifier.yaml --out named-run
    """
    from ray_app.reports import summary_lines
    from ray_app.scoring.rescoring import rescore_run

    if identifier is not None:
        if detectors or ensemble:
            raise ConfigError("--identifier leaves scores as they are", hint="leave --detector and --ensemble out, or rescore twice")
        from ray_app.scoring.naming import name_run

        summary = name_run(run, out, identifier, unguarded=unguarded)
        click.echo(json.dumps(summary, indent=2) if as_json else "\n".join(summary_lines(summary)))
        return 0
    summary = rescore_run(run, out, detectors, ensemble, accept_licences=accepted, unguarded=unguarded)
    click.echo(json.dumps(summary, indent=2) if as_json else "\n".join(summary_lines(summary)))
    return 0
