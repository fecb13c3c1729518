"""Commands on the images of a run: `gallery`, `masks`."""

import click

from ray_app.cli import options


@click.command()
@click.argument("run", metavar="RUN")
@click.option("--out", required=True, metavar="DIR", help="Where the pages go; any fsspec URL. A gallery that is there is replaced.")
@click.option("--verdict", type=click.Choice(["fake", "real", "abstain"]), help="Only images with this verdict.")
@click.option("--generator", metavar="NAME", help="Only images attributed to this generator or family; `unknown`: to none that is known.")
@click.option("--most", type=click.IntRange(min=1), metavar="N", help="Only the N highest scores of these.")
@click.option("--per-page", type=click.IntRange(1, 1000), default=60, show_default=True, help="Images on one page.")
@options.as_json
def gallery(run: str, out: str, verdict: str | None, generator: str | None, most: int | None, per_page: int, as_json: bool) -> int:
    """Write the images of a run as pages to browse.

    Pages have small pictures, verdicts, generators and words; index.html is the first.

    Every page stands alone: pictures are in it, and it loads nothing. Known generators and words are those of the source's own
    columns `generator` and `prompt`, predicted ones are the ensemble's profile.

    \b
    touchstone runs gallery run --out gallery
    touchstone runs gallery run --out s3://bucket/gallery --verdict fake --generator midjourney --most 500
    """
    from ray_app.reports.format import counted
    from ray_app.runs.selection import RowFilter
    from ray_app.scoring.gallery import make_gallery

    made = make_gallery(run, out, RowFilter(verdict, generator=generator), most, per_page=per_page, quiet=as_json)
    options.echo_document(
        made, [f"{counted(made['images'], 'image')} on {counted(made['pages'], 'page')}: {made['out']}/index.html"], as_json
    )
    return 0


@click.command()
@click.argument("run", metavar="RUN")
@click.option("--out", required=True, metavar="FOLDER", help="Where the PNG files go.")
@click.option(
    "--min-area",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    help="Only masks that cover at least this share of the image.",
)
@click.option("--native", is_flag=True, help="At the network's own size; without it, stretched to the image's.")
@click.option("--vanished", is_flag=True, help="Also masks of files that the last listing no longer found.")
def masks(run: str, out: str, min_area: float, native: bool, vanished: bool) -> int:
    """Write the masks of a run as PNG files.

    They are 8-bit, named IMAGE_ID-DETECTOR.png, and white where a detector says that pixels were altered.

    \b
    touchstone runs masks run --out masks --min-area 0.05
    """
    from ray_app.reports.format import counted
    from ray_app.runs import RunDirectory, current_masks, mask_image

    folder = options.local_folder(out)
    written = 0
    for row in current_masks(RunDirectory.open(run), vanished=vanished):
        image, area = mask_image(row, stretched=not native)
        if area >= min_area:
            image.save(folder / f"{row['image_id']}-{row['detector'].replace(':', '-')}.png")
            written += 1
    click.echo(f"{counted(written, 'mask')} in {folder}")
    if not written:
        click.echo("none: no detector of this run localizes (see `touchstone detectors list`), or --min-area is too large", err=True)
    return 0
