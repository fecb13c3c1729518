"""`touchstone collect`: a list of urls → images with their words, politely."""

import json
from typing import Any

import click

from ray_app.cli.options import as_json, configured, overrides


def _statuses(context: click.Context, option: click.Parameter, text: str | None) -> tuple[str, ...]:
    from ray_app.collecting.config import failures

    try:
        return failures(text) if text else ()
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command()
@click.argument("meta", required=False)
@click.option("--out", metavar="DIR", help="Where to write; any fsspec URL. The same command on it goes on.")
@click.option("--meta_file", metavar="FILE", help="META, as DFLIP-3K's own downloader calls it.")
@click.option("--save_dir", metavar="DIR", help="DIR as DFLIP-3K's own downloader has it: files directly in it, our records in _collected.")
@click.option("--form", type=click.Choice(["files", "parquet", "webdataset"]), help="Files named after ids, or shards.  [default: files]")
@click.option("--per-host", type=click.IntRange(min=1), help="Requests at once to one host.  [default: 2]")
@click.option("--pause", metavar="SECONDS", type=click.FloatRange(min=0), help="Between two requests to one host.  [default: 0]")
@click.option("--contact", metavar="MAIL|URL", help="Whom owners of hosts may turn to; stands in the User-Agent.")
@click.option("--generator", metavar="NAME", help="Who made the images, where the list does not say.")
@click.option("--limit", type=click.IntRange(min=1), help="Collect no more than the first so many.")
@click.option("--retry", metavar="STATUS,…", callback=_statuses, help="Ask those urls again that ended with these statuses.")
@click.option("--config", "config_file", metavar="FILE", help="YAML of a collection.")
@overrides
@as_json
def collect(config_file: str | None, assignments: tuple[str, ...], retry: tuple[str, ...], as_json: bool, **given: Any) -> int:
    """Fetch the images that META lists by url: DFLIP-3K's dalle.json, mj.json, pd.json, or a CSV, JSONL or Parquet of urls.

    Only what decodes counts. Every url ends with a row: an image, or a status and why. Restarted, it asks for what is missing alone.

    \b
    touchstone collect pd.json --out s3://bucket/dflip --contact me@example.org
    touchstone collect urls.csv --out images --form webdataset --per-host 1 --pause 0.5
    touchstone collect urls.csv --out images --retry source_timeout,source_throttled
    touchstone collect --meta_file mj.json --save_dir mj
    """
    from ray_app.collecting import CollectConfig
    from ray_app.collecting.collect import collect as run_collect
    from ray_app.collecting.words import collect_lines

    config = configured("collect", config_file, CollectConfig, _given(given), [*_polite(given), *assignments])
    if not (config.politeness.contact or config.politeness.user_agent):
        click.echo("no --contact: owners of the hosts cannot reach you, and may refuse you for it", err=True)
    summary = run_collect(config, retry=retry)
    click.echo(json.dumps(summary, indent=2, ensure_ascii=False) if as_json else "\n".join(collect_lines(summary)))
    return 0


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """The keys of the config that were given; the other downloader's names are second."""
    meta, out, save = options["meta"] or options["meta_file"], options["out"], options["save_dir"]
    keys = {name: options[name] for name in ("form", "generator", "limit")}
    return keys | {"meta": meta, "out": out or save, "folder": "" if save and not out else None}


def _polite(options: dict[str, Any]) -> list[str]:
    keys = {"per_host": options["per_host"], "pause_s": options["pause"], "contact": options["contact"]}
    return [f"politeness.{key}={json.dumps(value)}" for key, value in keys.items() if value is not None]
