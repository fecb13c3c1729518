"""`touchstone split`: an index → training, validation and test images that share nothing; or what splits that are there share."""

import json
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

import click

from ray_app.cli.options import as_json, configured

_MOST_LINES = 40


def _words(context: click.Context, option: click.Parameter, text: str | None) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip()) if text else ()


@click.command()
@click.argument("at", metavar="INDEX")
@click.option("--out", metavar="DIR", help="Where the divided index goes; any fsspec URL.")
@click.option("--train", type=float, help="The share of images to learn from.  [default: 0.8]")
@click.option("--validation", type=float, help="The share that chooses and calibrates.  [default: 0.1]")
@click.option("--test", type=float, help="The share that is only measured.  [default: 0.1]")
@click.option("--by", metavar="KINDS", callback=_words, help="What binds images: group, prompt, looks.  [default: group,prompt,looks]")
@click.option(
    "--prompts",
    type=click.FloatRange(0.3, 1, min_open=True),
    help="The share of words that prompts nearly the same share; 1 = equal ones only.  [default: 0.9]",
)
@click.option("--hold-out", multiple=True, metavar="NAME|SHARE", help="A generator that is in test alone, or a share of all; repeatable.")
@click.option("--keep", multiple=True, type=click.Choice(["train", "validation", "test"]), help="A split of INDEX that stays; repeatable.")
@click.option("--after", metavar="DIR", help="An earlier split, none of whose images is moved.")
@click.option(
    "--even", is_flag=True, default=None, help="Divide every generator evenly; added images may then move others, but for --after."
)
@click.option("--seed", type=click.IntRange(min=0), help="Another one divides otherwise.  [default: 0]")
@click.option("--check", is_flag=True, help="Only tell what the splits that INDEX has share; exits with 2 if they share anything.")
@as_json
def split(at: str, check: bool, as_json: bool, **given: Any) -> int:
    """Divide INDEX into train, validation and test, never by image: what is of one prompt, one scene or one picture stays together.

    Images are bound by group, by prompts that are nearly the same, by equal bytes and by looks (where INDEX has hashes). Where a group
    falls follows from its name and the seed alone, so it stays there when images are added.

    \b
    touchstone index photos/ --layout folders --hash sha256,phash --out index
    touchstone split index --out divided
    touchstone split index --out divided --hold-out midjourney-7 --hold-out flux.2
    touchstone split grown --out divided-2 --after divided
    touchstone split index --check
    """
    from ray_app.datasets.split_index import SplitConfig, check_splits, split_index
    from ray_app.errors import ConfigError, ExitCode
    from ray_app.reports.wording import visible

    if check:
        found = check_splits(at, **({"prompts": given["prompts"]} if given["prompts"] else {}))
        click.echo(json.dumps(found, indent=1, ensure_ascii=False) if as_json else "\n".join(map(visible, _checked(found))))
        return ExitCode.USAGE if any(one["values"] for one in found["leaks"]) else ExitCode.DONE
    if not given["out"]:
        raise ConfigError("no directory for the divided index: --out DIR is missing", hint="touchstone split INDEX --out DIR")
    document = split_index(configured("split", None, SplitConfig, {"at": at, **given}, ()))
    click.echo(json.dumps(document, indent=1, ensure_ascii=False) if as_json else "\n".join(map(visible, _lines(document, given["out"]))))
    return ExitCode.DONE


def _lines(document: Mapping[str, Any], out: str) -> Iterator[str]:
    from ray_app.reports.text_table import table

    yield f"{document['images']:,} images in {document['groups']:,} groups, the largest of {document['largest_group']:,}"
    yield ""
    asked = document["asked"]["shares"]
    rows = [
        [name, f"{one['images']:,}", "–" if one["share"] is None else f"{one['share']:.1%}", f"{asked[name]:.1%}" if name in asked else "–",
         f"{one['real']:,}", f"{one['fake']:,}"]
        for name, one in document["splits"].items() if one["images"] or name in asked
    ]  # fmt: skip
    yield from table(["split", "images", "share", "asked", "real", "fake"], rows, 100, right=[1, 2, 3, 4, 5])
    yield ""
    names = list(document["splits"])
    strata = [
        [one["label"], one["generator"] + (" (held out)" if one["held_out"] else ""), *(f"{one[name]:,}" for name in names)]
        for one in document["strata"]
    ]
    yield from table(["label", "generator", *names], strata[:_MOST_LINES], 120, right=[2, 3, 4, 5])
    if len(strata) > _MOST_LINES:
        yield f"… and {len(strata) - _MOST_LINES:,} more; split.json has all"
    yield ""
    yield from document["remarks"]
    yield from _leaking(document["leaks"])
    yield f"next: touchstone train configs/train/FILE.yaml --out DIR, whose data says {{at: {out}, split: train}} and so on"
    yield f"      {shlex.join(['touchstone', 'evaluate', 'RUN', '--labels', out, '--split', 'test', '--out', 'figures'])}"


def _checked(found: Mapping[str, Any]) -> Iterator[str]:
    yield " · ".join(f"{name} {count:,}" for name, count in found["images"].items() if count)
    for one in found["leaks"]:
        if not one["known"]:
            yield f"not known: {one['what']} (the index has nothing to tell it by)"
    leaking = list(_leaking(found["leaks"]))
    yield from leaking or ["the splits share nothing that is known"]


def _leaking(leaks: list[dict[str, Any]]) -> Iterator[str]:
    for one in leaks:
        if one["values"]:
            between = ", ".join(f"{name}: {count:,}" for name, count in one["between"].items())
            yield f"LEAK by {one['what']}: {one['images']:,} images ({between})"
            for first, second in one["examples"]:
                yield f"  {first}"
                yield f"  = {second}"
