"""`touchstone gallery`: the images of a run as pages that any browser opens, with what is known and what is said of them."""

import json

import click

from ray_app.cli.options import as_json


@click.command()
@click.argument("run", metavar="RUN")
@click.option("--out", required=True, metavar="DIR", help="Where the pages go; any fsspec URL. A gallery that is there is replaced.")
@click.option("--verdict", type=click.Choice(["fake", "real", "abstain"]), help="Only images with this verdict.")
@click.option("--generator", metavar="NAME", help="Only images said to be of this generator or family; `unknown`: like none known.")
@click.option("--most", type=click.IntRange(min=1), metavar="N", help="Only the N highest scores of these.")
@click.option("--per-page", type=click.IntRange(1, 1000), default=60, show_default=True, help="Images on one page.")
@as_json
def gallery(run: str, out: str, verdict: str | None, generator: str | None, most: int | None, per_page: int, as_json: bool) -> int:
    """Write the images of RUN as pages with small pictures, verdicts, generators and words; index.html is the first.

    Every page stands alone: pictures are in it, and it loads nothing. Known generators and words are those of the source's own
    columns `generator` and `prompt`, predicted ones are the ensemble's profile.

    \b
    touchstone gallery run --out gallery
    touchstone gallery run --out s3://bucket/gallery --verdict fake --generator midjourney --most 500
    """
    from ray_app.reports.wording import counted
    from ray_app.scoring.gallery import Choice, make_gallery

    made = make_gallery(run, out, Choice(verdict, generator, most), per_page=per_page, quiet=as_json)
    if as_json:
        click.echo(json.dumps(made, indent=2, ensure_ascii=False))
        return 0
    click.echo(f"{counted(made['images'], 'image')} on {counted(made['pages'], 'page')}: {made['out']}/index.html")
    return 0
