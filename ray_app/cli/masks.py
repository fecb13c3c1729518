"""`touchstone masks`: the masks of a run as files that any viewer opens."""

import click

from ray_app.cli.options import local_folder


@click.command()
@click.argument("run", metavar="RUN")
@click.option("--out", required=True, metavar="FOLDER", help="Where the PNG files go.")
@click.option("--min-area", type=click.FloatRange(0, 1), default=0.0, show_default=True, help="Only masks that cover this share.")
@click.option("--native", is_flag=True, help="At the network's own size; without it, stretched to the image's.")
@click.option("--vanished", is_flag=True, help="Also of members that the last listing no longer found.")
def masks(run: str, out: str, min_area: float, native: bool, vanished: bool) -> int:
    """Write the masks of RUN as 8-bit PNG, named IMAGE_ID-DETECTOR.png: white where a detector says that pixels were altered.

    \b
    touchstone masks run --out masks --min-area 0.05
    """
    from ray_app.runs import RunDirectory, current_masks, mask_image

    folder = local_folder(out)
    written = 0
    for row in current_masks(RunDirectory.open(run), vanished=vanished):
        image, area = mask_image(row, stretched=not native)
        if area >= min_area:
            image.save(folder / f"{row['image_id']}-{row['detector'].replace(':', '-')}.png")
            written += 1
    click.echo(f"{written} masks in {folder}")
    if not written:
        click.echo("none: no detector of this run localizes (see `touchstone detectors list`), or --min-area is too large", err=True)
    return 0
