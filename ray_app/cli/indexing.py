"""`touchstone index`: a labelled source → an index that recipes name."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from ray_app.cli.options import as_json, configured, overrides

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ray_app.datasets import IndexInfo

_MOST_LINES = 40


def _hashes(context: click.Context, option: click.Parameter, text: str | None) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",")) if text else ()


@click.command()
@click.argument("at", metavar="SOURCE…", nargs=-1, required=True)
@click.option("--layout", metavar="NAME", help="How the source tells labels; see below.  [default: columns]")
@click.option("--out", metavar="DIR", required=True, help="Where the index goes; any fsspec URL.")
@click.option("--include", multiple=True, metavar="GLOB", help="Only paths below the source that match; repeatable.")
@click.option("--exclude", multiple=True, metavar="GLOB", help="Not the paths that match; repeatable.")
@click.option("--limit", type=click.IntRange(min=1), help="List no more than this many members.")
@click.option("--hash", "hashes", metavar="sha256,phash", callback=_hashes, help="Compute these, to find leakage: reads every image.")
@click.option("--complete", is_flag=True, help="Exit with 2 unless the counts are those that the layout is published with.")
@overrides
@as_json
def index(out: str, complete: bool, assignments: tuple[str, ...], as_json: bool, **given: Any) -> int:
    """List SOURCE and label its images as a published layout does, for training. An unknown label is an error, never a default.

    SOURCE is what `touchstone score` takes, or simulated:: for the offline set. Counts are compared with the published ones.

    \b
    Layouts: columns · folders · openfake · openfake-csv · openfake-ood · opensdi · community-forensics
             community-forensics-folders · dflip · opendeepfake-preview · imdlbenco-json · imdlbenco-folder
    Their arguments are set by --set arguments.KEY=VALUE; a wrong one names the right ones.

    \b
    touchstone index hf://datasets/nebula/OpenSDI_train --layout opensdi --out s3://bucket/opensdi
    touchstone index photos/ --layout folders --out index --hash sha256,phash
    touchstone index labels.csv --out index --set columns.uri=file --set arguments.label=kind
    """
    from ray_app.datasets import Source, build_index
    from ray_app.datasets.telling import Telling
    from ray_app.errors import ConfigError
    from ray_app.storage import Store

    source = configured("index", None, Source, given, assignments)
    if source.split or source.generators:
        raise ConfigError("split and generators are chosen by those who read an index", hint="say them in the recipe's data")
    info = build_index(source, Store.open(out), progress=Telling())
    click.echo(json.dumps(asdict(info), indent=1, ensure_ascii=False) if as_json else "\n".join(_lines(info)))
    if complete and not info.agrees:
        told = "no published count to compare with" if info.agrees is None else "the counts are not the published ones"
        raise ConfigError(f"{out}: {told}", hint="the index is written; without --complete this is no error")
    return 0


def _lines(info: "IndexInfo") -> "Iterator[str]":
    from ray_app.reports.text_table import table

    hashed = f" · with {', '.join(info.hashes)}" if info.hashes else ""
    yield f"{info.rows:,} labelled images, layout {info.layout}{hashed} · digest {info.digest[:16]}"
    yield ""
    rows = [[one["split"] or "–", one["label"], one["generator"], f"{one['rows']:,}"] for one in info.counts]
    yield from table(["split", "label", "generator", "images"], rows[:_MOST_LINES], 120, right=[3])
    if len(rows) > _MOST_LINES:
        yield f"… and {len(rows) - _MOST_LINES:,} more; --json shows all"
    yield ""
    for one in info.published:
        told = "no published count" if one["published"] is None else f"published {one['published']:,}"
        word = {True: "agree", False: "DIFFER", None: "unknown"}[one["agrees"]]
        yield f"{one['subset']}: {one['rows']:,} · {told} · {word}"
    for name, kinds in (("left out", info.left_out), ("unreadable", info.unreadable)):
        for one in kinds:
            yield f"{name}: {one['files']:,} × {one['why']}, for example {one['example']}"
    if info.repeated:
        yield f"named more than once by the source, indexed once: {info.repeated:,}"
