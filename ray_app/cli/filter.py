"""`touchstone filter`: a scored archive without what was flagged."""

import json
from typing import Any

import click

from ray_app.cli.options import as_json, configured, overrides


@click.command("filter")
@click.argument("run", metavar="RUN")
@click.option("--out", metavar="DIR", help="Where to write; any fsspec URL. The same command on it goes on.")
@click.option(
    "--as", "form", type=click.Choice(["list", "webdataset", "parquet"]), help="A list of names, or shards with the bytes.  [default: list]"
)
@click.option("--drop", multiple=True, type=click.Choice(["fake", "abstain", "failed"]), help="What goes; repeatable.  [default: fake]")
@click.option("--shard-mb", type=click.FloatRange(min=0, min_open=True), help="Bytes of members in one shard, in MB.  [default: 256]")
@click.option("--retry", is_flag=True, help="Write those shards again in which members could not be read from storage.")
@overrides
@as_json
def filter_command(assignments: tuple[str, ...], retry: bool, as_json: bool, **given: Any) -> int:
    """Write the archive of RUN without the members that it flags, and the list of those with reasons. Nothing is deleted.

    Lists come as Parquet, exact, and as CSV, where a name that a spreadsheet would run as a formula has an apostrophe before it.

    \b
    touchstone filter run --out clean                            names that stay, names that go
    touchstone filter run --out clean --as parquet --drop fake --drop abstain
    """
    from ray_app.packing import FilterConfig
    from ray_app.packing.filtering import filter_run
    from ray_app.packing.words import filter_lines

    summary = filter_run(configured("filter", None, FilterConfig, given, assignments), retry=retry)
    click.echo(json.dumps(summary, indent=2, ensure_ascii=False) if as_json else "\n".join(filter_lines(summary)))
    return 0
