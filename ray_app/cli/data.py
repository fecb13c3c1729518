"""Commands on data: `pack` archives; `collect`, `generate`, `split` and `index` images to train and
evaluate.
"""

from dataclasses import asdict
from typing import Any

import click

from ray_app.cli import options
from ray_app.cli.config_options import ConfigCommand


@click.command(
    cls=ConfigCommand,
    config="ray_app.datajobs.shards.config:PackConfig",
    fields={
        "out": "--out DIR",
        "form": "--as",
        "shard_mb": "--shard-mb",
        "include": "--include GLOB",
        "exclude": "--exclude GLOB",
        "limit": "--limit",
    },
)
@click.argument("source", nargs=-1)
@click.option("--config", "config_file", metavar="FILE", help="YAML of a packing job.")
@options.retry_shards_option
@options.overrides
@options.as_json
def pack(
    config_file: str | None, assignments: tuple[str, ...], retry: bool, as_json: bool, **given: Any
) -> int:
    """Pack the files of SOURCE into shards, bytes untouched; DIR/unpacked.parquet lists files that cannot be read.

    \b
    touchstone data pack s3://bucket/photos --out s3://bucket/shards
    """
    from ray_app.datajobs.shards import PackConfig
    from ray_app.datajobs.shards.run import pack_archive, pack_lines

    summary = pack_archive(
        options.configured("pack", config_file, PackConfig, given, assignments), retry=retry
    )
    options.echo_document(summary, pack_lines(summary), as_json)
    return 0


def _statuses(context: click.Context, option: click.Parameter, text: str | None) -> tuple[str, ...]:
    from ray_app.datajobs.download.config import failures

    try:
        return failures(text) if text else ()
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command(
    cls=ConfigCommand,
    config="ray_app.datajobs.download.config:CollectConfig",
    fields={
        "form": "--form",
        "politeness.per_host": "--per-host",
        "politeness.pause_s": "--pause",
        "politeness.contact": "--contact",
        "generator": "--generator",
        "limit": "--limit",
    },
)
@click.argument("meta", required=False)
@options.out_option
@click.option("--meta_file", metavar="FILE", help="META, as DFLIP-3K's own downloader calls it.")
@click.option(
    "--save_dir",
    metavar="DIR",
    help="DIR as DFLIP-3K's own downloader has it: files directly in it, our records in _collected.",
)
@click.option(
    "--retry",
    metavar="STATUS,…",
    callback=_statuses,
    help="Fetch again the urls that ended with these statuses.",
)
@click.option("--config", "config_file", metavar="FILE", help="YAML of a collection.")
@options.overrides
@options.as_json
def collect(
    meta: str | None,
    out: str | None,
    meta_file: str | None,
    save_dir: str | None,
    config_file: str | None,
    assignments: tuple[str, ...],
    retry: tuple[str, ...],
    as_json: bool,
    **given: Any,
) -> int:
    """Fetch the images at the URLs of META: DFLIP-3K's JSON, or a CSV, JSONL, or Parquet table.

    \b
    touchstone data collect urls.csv --out images --contact me@example.org
    """
    from ray_app.datajobs.download import CollectConfig
    from ray_app.datajobs.download.run import collect as run_collect
    from ray_app.datajobs.download.run import collect_lines

    # The other downloader's names are second.
    paths = {
        "meta": meta or meta_file,
        "out": out or save_dir,
        "folder": "" if save_dir and not out else None,
    }
    config = options.configured("collect", config_file, CollectConfig, paths | given, assignments)
    if not (config.politeness.contact or config.politeness.user_agent):
        click.echo(
            "no --contact: the owners of the hosts cannot reach you, and may refuse you for that",
            err=True,
        )
    summary = run_collect(config, retry=retry)
    options.echo_document(summary, collect_lines(summary), as_json)
    return 0


def _accept(
    context: click.Context, option: click.Parameter, names: tuple[str, ...]
) -> tuple[str, ...]:
    if not names:
        return ()
    from ray_app.datajobs.generate.config import accept

    return options.accepted_by(accept, names)


@click.command(
    cls=ConfigCommand,
    config="ray_app.datajobs.generate.config:GenerateConfig",
    fields={
        "out": "--out DIR",
        "prompts": "--prompts FILE",
        "seed": "--seed",
        "per_prompt": "--per-prompt",
        "limit": "--limit",
        "batch": "--batch",
    },
)
@click.argument("config_file", type=options.ShippedName("generate"), metavar="CONFIG")
@click.option("--retry", is_flag=True, help="Make again the blocks in which images failed.")
@click.option("--accept-licence", "accept_licences", multiple=True, metavar="NAME", callback=_accept,
              help="Accept the licence of this pipeline (or a licence by its id) and remember that; repeatable.")  # fmt: skip
@options.overrides
@options.as_json
def generate(
    config_file: str, assignments: tuple[str, ...], retry: bool, as_json: bool, **given: Any
) -> int:
    """Generate labelled images with a diffusion pipeline: a shipped one by name, a card, or the YAML of a job.

    \b
    touchstone data generate flux.1-dev --prompts prompts.txt --out flux
    """
    from ray_app.datajobs.generate.run import generate_images, generate_lines
    from ray_app.errors import ExitCode

    summary = generate_images(_config(config_file, given, assignments), retry=retry)
    options.echo_document(summary, generate_lines(summary), as_json)
    return ExitCode.DONE if summary["made"] else ExitCode.TOO_MANY_BAD


def _config(named: str, given: dict[str, Any], assignments: tuple[str, ...]) -> Any:
    """A job's YAML, or the job that a card alone makes."""
    from ray_app.config import find_config, read_mapping
    from ray_app.datajobs.generate import GenerateConfig

    is_card = "diffusers_class" in read_mapping(find_config("generate", named))
    return options.configured(
        "generate",
        None if is_card else named,
        GenerateConfig,
        given | ({"pipeline": named} if is_card else {}),
        assignments,
    )


def _comma_separated(
    context: click.Context, option: click.Parameter, text: str | None
) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip()) if text else ()


@click.command(
    cls=ConfigCommand,
    config="ray_app.datasets.split_index:SplitConfig",
    fields={
        "out": "--out DIR",
        "train": "--train",
        "validation": "--validation",
        "test": "--test",
        "hold_out": "--hold-out NAME|FRACTION",
        "keep": "--keep",
        "after": "--after DIR",
        "even": "--even",
        "seed": "--seed",
    },
)
@click.argument("at", metavar="INDEX")
@click.option(
    "--by",
    metavar="KINDS",
    callback=_comma_separated,
    help="What keeps images together: group, prompt, looks.  [default: group,prompt,looks]",
)
@click.option(
    "--clip",
    metavar="FOLDER",
    help="Also hold prompts against their images, by the CLIP in this folder.",
)
@click.option(
    "--check",
    is_flag=True,
    help="Only report what the splits of INDEX share; exit code 2 if they share anything.",
)
@options.as_json
def split(at: str, check: bool, clip: str | None, as_json: bool, **given: Any) -> int:
    """Divide an index into train, validation, and test, and keep images of one prompt, scene, or look together.

    \b
    touchstone data split index --out divided
    touchstone data split index --check
    """
    from ray_app.datasets.split_index import SplitConfig, check_splits, split_index
    from ray_app.errors import ConfigError, ExitCode
    from ray_app.evaluation.data_faults import faults_of_index
    from ray_app.reports.datasets import leak_lines, split_lines
    from ray_app.reports.format import visible

    if check:
        found = check_splits(at)
        found["remarks"] = faults_of_index(at, clip)
        options.echo_document(found, map(visible, [*found["remarks"], *leak_lines(found)]), as_json)
        return ExitCode.USAGE if any(one["values"] for one in found["leaks"]) else ExitCode.DONE
    if not given["out"]:
        raise ConfigError(
            "no directory for the divided index: --out DIR is missing",
            hint="touchstone data split INDEX --out DIR",
        )
    document = split_index(
        options.configured("split", None, SplitConfig, {"at": at, **given}, ()),
        lambda: faults_of_index(at, clip),
    )
    options.echo_document(document, map(visible, split_lines(document, given["out"])), as_json)
    return ExitCode.DONE


@click.command(
    cls=ConfigCommand,
    config="ray_app.datasets.config:DatasetSource",
    fields={
        "layout": "--layout NAME",
        "include": "--include GLOB",
        "exclude": "--exclude GLOB",
        "limit": "--limit",
        "leave_out_faults": "--leave-out-faults",
    },
)
@click.argument("at", metavar="SOURCE…", nargs=-1, required=True)
@click.option("--out", metavar="DIR", required=True, help="Where the index goes; any fsspec URL.")
@click.option(
    "--hash",
    "hashes",
    metavar="sha256,phash",
    callback=_comma_separated,
    help="Compute these, to find leakage: reads every image.",
)
@click.option(
    "--complete", is_flag=True, help="Exit with 2 unless the counts are the published ones."
)
@options.overrides
@options.as_json
def index(
    out: str, complete: bool, assignments: tuple[str, ...], as_json: bool, **given: Any
) -> int:
    """List the images of SOURCE with their labels, for training and evaluation.

    \b
    Layouts: columns · folders · openfake · openfake-csv · openfake-ood · opensdi · community-forensics
             community-forensics-folders · dflip · opendeepfake-preview · imdlbenco-json · imdlbenco-folder
             paths · table · words · genimage · drct-2m · chameleon · aigcdetect · univfd
             synthbuster · deepfake-eval-2024 · so-fake · ntire-2026 · ai-genbench
             diffusionforensics · forensichub
    Their arguments are set by --set arguments.KEY=VALUE.

    \b
    touchstone data index photos/ --layout folders --out index --hash sha256,phash
    """
    from ray_app.archives.progress import ProgressLog
    from ray_app.datasets import DatasetSource, build_index
    from ray_app.errors import ConfigError
    from ray_app.reports.datasets import index_lines
    from ray_app.storage import Store

    source = options.configured("index", None, DatasetSource, given, assignments)
    if source.split or source.generators:
        raise ConfigError(
            "split and generators are chosen by those who read an index",
            hint="say them in the recipe's data",
        )
    info = build_index(source, Store.open(out), progress=ProgressLog("index"))
    faults = info.fault_lines()
    lines = [*index_lines(info), *(f"known fault: {line}" for line in faults)]
    options.echo_document(asdict(info) | {"known_faults": faults}, lines, as_json)
    if complete and not info.agrees:
        message = (
            "no published count to compare with"
            if info.agrees is None
            else "the counts are not the published ones"
        )
        raise ConfigError(
            f"{out}: {message}", hint="the index is written; without --complete this is no error"
        )
    return 0
