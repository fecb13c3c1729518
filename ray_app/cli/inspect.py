"""Commands on the images of a run: `gallery`, `masks`, `explain`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ray_app.cli.options import DETECTOR, ENSEMBLE, as_json, licence_option, local_folder
from ray_app.errors import ConfigError, ExitCode, InputError

if TYPE_CHECKING:
    from PIL import Image

    from ray_app.detectors import DetectorCard
    from ray_app.inference.occlusion import Explanation, ExplanationCost

_SLOW_S = 10.0  # from here on a person is told how long it will take


@click.command()
@click.argument("run", metavar="RUN")
@click.option("--out", required=True, metavar="DIR", help="Where the pages go; any fsspec URL. A gallery that is there is replaced.")
@click.option("--verdict", type=click.Choice(["fake", "real", "abstain"]), help="Only images with this verdict.")
@click.option("--generator", metavar="NAME", help="Only images attributed to this generator or family; `unknown`: to none that is known.")
@click.option("--most", type=click.IntRange(min=1), metavar="N", help="Only the N highest scores of these.")
@click.option("--per-page", type=click.IntRange(1, 1000), default=60, show_default=True, help="Images on one page.")
@as_json
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
    from ray_app.scoring.report import Choice, make_gallery

    made = make_gallery(run, out, Choice(verdict, generator, most), per_page=per_page, quiet=as_json)
    if as_json:
        click.echo(json.dumps(made, indent=2, ensure_ascii=False))
        return 0
    click.echo(f"{counted(made['images'], 'image')} on {counted(made['pages'], 'page')}: {made['out']}/index.html")
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

    folder = local_folder(out)
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


@click.command()
@click.argument("image", metavar="IMAGE")
@click.option(
    "--detector", "detectors", type=DETECTOR, multiple=True, metavar="NAME|PATH", help="Explain this detector's score; repeatable."
)
@click.option("--ensemble", type=ENSEMBLE, metavar="NAME|PATH", help="Explain every detector of this ensemble.  [default: default]")
@click.option("--out", required=True, metavar="FOLDER", type=click.Path(path_type=Path), help="Where pictures and maps go; a local folder.")
@click.option("--grid", type=click.IntRange(2, 64), default=14, show_default=True, help="Cells along each side: finer takes more passes.")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:0.")
@licence_option
@as_json
def explain(
    image: str,
    detectors: tuple[str, ...],
    ensemble: str | None,
    out: Path,
    grid: int,
    device: str,
    accepted: tuple[str, ...],
    as_json: bool,
) -> int:
    """Show which regions of an image a score rests on.

    A map for each detector, and whether a deletion test confirms it. IMAGE is a path or any fsspec URL. FOLDER gets, per detector,
    NAME.png (the map over the image), NAME.npy (the map) and NAME.json.

    Where no region moves a detector's score by a hundredth of it, there is no map, and the picture stays as it is; exit code 3 says that
    this is so of every detector.

    \b
    touchstone runs explain photo.jpg --detector touchstone-tiny --out explained
    touchstone runs explain s3://bucket/photo.jpg --ensemble default --out explained
    """
    cards = _cards(detectors, ensemble, accepted)
    try:
        pixels = _pixels(image)
    except InputError as refused:
        return _refused(image, refused)
    local_folder(out)
    results, code = [], ExitCode.DONE
    for card in cards:
        try:
            results.append(_explained(card, pixels, image, out, grid, device, quiet=as_json))
        except InputError as refused:
            code = _refused(image, refused)
    if as_json:
        click.echo(json.dumps(results, indent=2))
    if code == ExitCode.DONE and all(result["negligible"] for result in results):
        return ExitCode.TOO_MANY_BAD
    return code


def _cards(detectors: Sequence[str], ensemble: str | None, accepted: Sequence[str]) -> "list[DetectorCard]":
    from ray_app.detectors import licences, load_card
    from ray_app.ensembles import load_ensemble_card

    if detectors and ensemble:
        raise ConfigError("--detector and --ensemble cannot be given together", hint="name the detectors, or the ensemble they belong to")
    names = detectors or [member.detector for member in load_ensemble_card(ensemble or "default").members]
    cards = [load_card(name) for name in dict.fromkeys(names)]
    for card in cards:
        licences.require_accepted(card, accepted)
    return cards


def _pixels(uri: str) -> "Image.Image":
    from ray_app.images import BatchLimits, decode_image
    from ray_app.storage import Fetcher

    limits = BatchLimits()
    return decode_image(Fetcher(signed=[uri]).fetch(uri, "", limits.max_bytes), limits).pixels


def _refused(image: str, refused: InputError) -> ExitCode:
    click.echo(f"touchstone: {image}: {refused.status}: {refused.detail}", err=True)
    return ExitCode.USAGE


def _explained(
    card: "DetectorCard", pixels: "Image.Image", image: str, out: Path, grid: int, device: str, *, quiet: bool
) -> dict[str, Any]:
    import numpy as np

    from ray_app.detectors import load_detector
    from ray_app.inference import occlusion
    from ray_app.reports.explanation import explanation_figure
    from ray_app.reports.format import visible

    detector = load_detector(card, device=device)
    found = occlusion.explain(detector, pixels, grid=grid, announce=lambda cost: _announce(card.name, cost))
    place = out / card.name.replace(":", "-")
    doubt = card.valid_range.doubt(pixels.width, pixels.height)
    files = {kind: str(place.with_name(f"{place.name}.{kind}")) for kind in ("png", "npy", "json")}
    explanation_figure(found, pixels, visible(image).encode("ascii", "backslashreplace").decode()).save(files["png"])
    np.save(files["npy"], found.map)
    result = {**found.as_dict(), "image": image, "out_of_range": doubt, "demonstration": card.demonstration, "files": files}
    Path(files["json"]).write_text(json.dumps(result, indent=2), encoding="utf-8")
    if not quiet:
        click.echo("\n".join(_lines(found, pixels, doubt, files["png"], demonstration=card.demonstration)))
    return result


def _announce(name: str, cost: "ExplanationCost") -> None:
    from ray_app.reports.format import duration

    long = f", about {duration(cost.seconds)} on this device; a smaller --grid takes fewer" if cost.seconds >= _SLOW_S else ""
    click.echo(f"{name}: {cost.passes:,} forward passes{long}", err=True)


def _lines(found: "Explanation", pixels: "Image.Image", doubt: str | None, picture: str, *, demonstration: bool) -> list[str]:
    from ray_app.reports.format import DEMONSTRATION

    value, box = found.strongest
    left, right = (round(edge * pixels.width) for edge in (box.left, box.right))
    top, bottom = (round(edge * pixels.height) for edge in (box.top, box.bottom))
    where = f"x {left} to {right}, y {top} to {bottom} px"
    lines = [f"{found.detector}: score {found.score:+.2f} (log-odds of fake)", f"  {found.words()}"]
    if found.faithful:
        lines.append(f"  region that counts most: {where}; without its detail the score moves by {-value:+.2f}")
    lines.append(f"  {picture}")
    if doubt:
        lines.append(f"  out of the valid range: {doubt}")
    if demonstration:
        lines.append(f"  {DEMONSTRATION}")
    return lines
