"""`touchstone audit`: a sample of a run for people to label, and what their labels say of the archive."""

import json
import shlex
import shutil

import click

from ray_app.cli.options import as_json, local_folder


@click.command()
@click.argument("run", metavar="RUN")
@click.option("--draw", type=click.IntRange(min=50), metavar="N", help="Draw so many images: sample.csv, audit.html and audit.json.")
@click.option("--labels", metavar="FILE", help="The sample's labels, as audit.html saved them or as sample.csv was filled in.")
@click.option("--out", required=True, metavar="DIR", help="Local folder of the audit; --labels finds there what --draw wrote.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Another one draws other images.")
@click.option("--thumbnails/--no-thumbnails", default=True, help="Pictures in audit.html, read from the archive.  [default: with them]")
@as_json
def audit(run: str, draw: int | None, labels: str | None, out: str, seed: int, thumbnails: bool, as_json: bool) -> int:
    """Tell how many images of RUN's archive are fake, and how many of them it flags, from a sample that people label.

    The sample is stratified by verdict and score; the page shows neither. Labels are real, fake or unsure; prevalence, precision and recall
    come with 95 % intervals. Images without a verdict are no part of it.

    \b
    touchstone audit run --draw 300 --out audit      then open audit/audit.html, label, save labels.csv
    touchstone audit run --labels labels.csv --out audit
    """
    if (draw is None) == (labels is None):
        raise click.UsageError("give --draw N, to make a sample, or --labels FILE, to read one back")
    folder = local_folder(out)
    if draw is not None:
        from ray_app.auditing.sample import PAGE, SAMPLE, draw_sample

        drawn = draw_sample(run, draw, folder, seed=seed, pictures=thumbnails)
        if as_json:
            click.echo(json.dumps(drawn.facts, indent=2, ensure_ascii=False))
            return 0
        click.echo(f"drawn: {len(drawn.images):,} of {drawn.scored:,} images, from {len(drawn.strata)} strata")
        click.echo(f"label: {folder / PAGE} in a browser, or the last column of {folder / SAMPLE}")
        click.echo(f"then:  {shlex.join(['touchstone', 'audit', run, '--labels', 'labels.csv', '--out', out])}")
        return 0
    from ray_app.auditing.estimating import estimate
    from ray_app.reports.audit_page import audit_lines

    document = estimate(run, str(labels), folder)
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    click.echo(text if as_json else "\n".join(audit_lines(document, shutil.get_terminal_size((120, 24)).columns)))
    return 0
