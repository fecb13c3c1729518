"""`touchstone generate`: prompts into images of a diffusion pipeline, with all that a training needs to know of them."""

import json
from typing import Any

import click

from ray_app.cli.options import accepted_by, as_json, configured, overrides


def _accept(context: click.Context, option: click.Parameter, names: tuple[str, ...]) -> tuple[str, ...]:
    if not names:
        return ()
    from ray_app.generation.licences import accept

    return accepted_by(accept, names)


@click.command()
@click.argument("config_file", metavar="CONFIG")
@click.option("--out", metavar="DIR", help="Where to write; any fsspec URL. The same command on it goes on.")
@click.option("--prompts", metavar="FILE", help="Text, CSV, JSONL, Parquet or an index; for inpainting a table of images.")
@click.option("--like", metavar="SOURCE", help="Draw format and quality of files from these real images: a run, an index, a folder.")
@click.option("--seed", type=click.IntRange(min=0), help="Base seed; each image has one of its own that follows from it.  [default: 0]")
@click.option("--per-prompt", type=click.IntRange(min=1), help="Images of each prompt.  [default: 1]")
@click.option("--limit", type=click.IntRange(min=1), help="Use only the first so many prompts.")
@click.option("--batch", type=click.IntRange(min=1), help="Images at once, halved when memory is short.  [default: the card's]")
@click.option("--retry", is_flag=True, help="Make those blocks again in which images failed.")
@click.option("--accept-licence", "accept_licences", multiple=True, metavar="NAME", callback=_accept,
              help="Accept the licence of this pipeline (or a licence by its id) and remember that; repeatable.")  # fmt: skip
@overrides
@as_json
def generate(config_file: str, like: str | None, assignments: tuple[str, ...], retry: bool, as_json: bool, **given: Any) -> int:
    """Make images from prompts, or alter real ones in part, for training and for tests. Needs touchstone[generate].

    CONFIG is a shipped pipeline (sd-3.5, flux.1-dev, sd-1.5-inpainting, sd-2-inpainting, sdxl-inpainting), a card of your own, or the
    YAML of a job. Every image has its own noise; DIR/generated.parquet says how each was made, and index and score take it.

    \b
    touchstone generate flux.1-dev --prompts prompts.txt --like runs/real --out s3://bucket/flux
    touchstone generate sd-2-inpainting --prompts index-of-reals --out edits
    """
    from ray_app.generation.run import generate_images
    from ray_app.generation.words import generate_lines

    if like is not None:
        assignments = (f"like.source={json.dumps(like)}", *assignments)
    finished = generate_images(_config(config_file, given, assignments), retry=retry)
    click.echo(json.dumps(finished.summary, indent=2, ensure_ascii=False) if as_json else "\n".join(generate_lines(finished.summary)))
    return finished.exit_code


def _config(named: str, given: dict[str, Any], assignments: tuple[str, ...]) -> Any:
    """A job's YAML, or the job that a card alone makes."""
    from ray_app.config import find_config
    from ray_app.config.loading import read_mapping
    from ray_app.generation import GenerateConfig

    is_card = "diffusers_class" in read_mapping(find_config("generate", named))
    return configured("generate", None if is_card else named, GenerateConfig, given | ({"pipeline": named} if is_card else {}), assignments)
