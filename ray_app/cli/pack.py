"""`touchstone pack`: any source into Parquet or WebDataset shards."""

import json
from typing import Any

import click

from ray_app.cli.options import as_json, configured, overrides


@click.command()
@click.argument("source", nargs=-1)
@click.option("--out", metavar="DIR", help="Where to write; any fsspec URL. The same command on it goes on.")
@click.option("--as", "form", type=click.Choice(["parquet", "webdataset"]), help="Form of the shards.  [default: parquet]")
@click.option("--shard-mb", type=click.FloatRange(min=0, min_open=True), help="Bytes of members in one shard, in MB.  [default: 256]")
@click.option("--config", "config_file", metavar="FILE", help="YAML of a packing job.")
@click.option("--include", multiple=True, metavar="GLOB", help="Only paths below the source that match; repeatable.")
@click.option("--exclude", multiple=True, metavar="GLOB", help="Not the paths that match; repeatable.")
@click.option("--limit", type=click.IntRange(min=1), help="Pack no more than this many members.")
@click.option("--retry", is_flag=True, help="Write those shards again in which members could not be read from storage.")
@overrides
@as_json
def pack(config_file: str | None, assignments: tuple[str, ...], retry: bool, as_json: bool, **given: Any) -> int:
    """Turn SOURCE into shards of a size that storage likes, bytes untouched: Parquet as the Hugging Face hub writes it, or tars.

    SOURCE is what `touchstone score` takes. A member that cannot be read is in no shard but in DIR/unpacked.parquet, with the reason.

    \b
    touchstone pack s3://bucket/photos --out s3://bucket/shards
    touchstone pack photos/ --out shards --as webdataset --shard-mb 512
    """
    from ray_app.packing import PackConfig
    from ray_app.packing.pack import pack_archive
    from ray_app.packing.words import pack_lines

    summary = pack_archive(configured("pack", config_file, PackConfig, given, assignments), retry=retry)
    click.echo(json.dumps(summary, indent=2, ensure_ascii=False) if as_json else "\n".join(pack_lines(summary)))
    return 0
