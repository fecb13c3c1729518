"""The commands of `touchstone data`: `index`, `split`, `collect`, `generate`, and `pack`.

`pack` packs archives. The other commands prepare images to train and evaluate detectors.
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
@click.option(
    "--config", "config_file", metavar="FILE", help="YAML file with the settings of a packing job."
)
@options.retry_shards_option
@options.overrides
@options.json_option
def pack(
    config_file: str | None, assignments: tuple[str, ...], retry: bool, as_json: bool, **values: Any
) -> int:
    """Pack the files of SOURCE into shards without changing their bytes.

    DIR/unpacked.parquet lists the files that cannot be read.

    \b
    touchstone data pack s3://bucket/photos --out s3://bucket/shards
    """
    from ray_app.datajobs.shards import PackConfig
    from ray_app.datajobs.shards.run import pack_archive, pack_lines

    summary = pack_archive(
        options.load_config("pack", config_file, PackConfig, values, assignments), retry=retry
    )
    options.echo_document(summary, pack_lines(summary), as_json)
    return 0


def _parse_statuses(
    context: click.Context, option: click.Parameter, text: str | None
) -> tuple[str, ...]:
    from ray_app.datajobs.download.config import parse_statuses

    try:
        return parse_statuses(text) if text else ()
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
@click.option(
    "--meta_file",
    metavar="FILE",
    help="The same as META, under the name that DFLIP-3K's own downloader uses.",
)
@click.option(
    "--save_dir",
    metavar="DIR",
    help="Output directory in the layout of DFLIP-3K's own downloader: images directly in DIR, records of this command in DIR/_collected.",
)
@click.option(
    "--retry",
    metavar="STATUS,…",
    callback=_parse_statuses,
    help="Fetch the URLs with one of these statuses again.",
)
@click.option(
    "--config", "config_file", metavar="FILE", help="YAML file with the settings of a collection."
)
@options.overrides
@options.json_option
def collect(
    meta: str | None,
    out: str | None,
    meta_file: str | None,
    save_dir: str | None,
    config_file: str | None,
    assignments: tuple[str, ...],
    retry: tuple[str, ...],
    as_json: bool,
    **values: Any,
) -> int:
    """Download the images at the URLs that META lists.

    META is the JSON file of the data set DFLIP-3K, or a CSV, JSONL, or Parquet table.

    \b
    touchstone data collect urls.csv --out images --contact me@example.org
    """
    from ray_app.datajobs.download import CollectConfig
    from ray_app.datajobs.download.run import collect as run_collect
    from ray_app.datajobs.download.run import collect_lines

    # META and --out override the options of DFLIP-3K's downloader.
    paths = {
        "meta": meta or meta_file,
        "out": out or save_dir,
        "folder": "" if save_dir and not out else None,
    }
    config = options.load_config("collect", config_file, CollectConfig, paths | values, assignments)
    if not (config.politeness.contact or config.politeness.user_agent):
        click.echo(
            "--contact is not set: owners of hosts cannot reach you, and may block your requests",
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

    return options.accept_licences(accept, names)


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
@click.option("--retry", is_flag=True, help="Generate the blocks with failed images again.")
@click.option("--accept-licence", "accept_licences", multiple=True, metavar="NAME", callback=_accept,
              help="Accept the licence of this pipeline, or the licence with this id, and remember that; repeatable.")  # fmt: skip
@options.overrides
@options.json_option
def generate(
    config_file: str, assignments: tuple[str, ...], retry: bool, as_json: bool, **values: Any
) -> int:
    """Generate fake images with a diffusion pipeline, labelled for training and evaluation.

    CONFIG is the name of a shipped pipeline, or a YAML file. The file is a card that describes a
    pipeline, or has the settings of this command.

    \b
    touchstone data generate flux.1-dev --prompts prompts.txt --out flux
    """
    from ray_app.datajobs.generate.run import generate_images, generate_lines
    from ray_app.errors import ExitCode

    summary = generate_images(_load_config(config_file, values, assignments), retry=retry)
    options.echo_document(summary, generate_lines(summary), as_json)
    return ExitCode.DONE if summary["made"] else ExitCode.TOO_MANY_BAD


def _load_config(name_or_path: str, values: dict[str, Any], assignments: tuple[str, ...]) -> Any:
    """Load the config of a job from its YAML file, or make it from a pipeline card."""
    from ray_app.config import find_config, read_mapping
    from ray_app.datajobs.generate import GenerateConfig

    is_card = "diffusers_class" in read_mapping(find_config("generate", name_or_path))
    return options.load_config(
        "generate",
        None if is_card else name_or_path,
        GenerateConfig,
        values | ({"pipeline": name_or_path} if is_card else {}),
        assignments,
    )


def _split_at_commas(
    context: click.Context, option: click.Parameter, text: str | None
) -> tuple[str, ...]:
    return tuple(item.strip() for item in text.split(",") if item.strip()) if text else ()


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
    callback=_split_at_commas,
    help="Keep images in one split if they share their group, prompt, or looks.  [default: group,prompt,looks]",
)
@click.option(
    "--clip",
    metavar="FOLDER",
    help="Also check prompts against their images, with the CLIP model in this folder.",
)
@click.option(
    "--check",
    is_flag=True,
    help="Write nothing; report what the splits of INDEX share, and exit with 3 if they share anything.",
)
@options.json_option
def split(at: str, check: bool, clip: str | None, as_json: bool, **values: Any) -> int:
    """Split an index into train, validation, and test.

    An index is the folder that `touchstone data index` writes: a table of images with their labels.
    Images of the same prompt or scene, and images that look alike, stay in the same split.

    \b
    touchstone data split index --out divided
    touchstone data split index --check
    """
    from ray_app.datasets.split_index import SplitConfig, check_splits, split_index
    from ray_app.errors import ConfigError, ExitCode
    from ray_app.evaluation.data_faults import find_index_faults
    from ray_app.reports.datasets import leak_lines, split_lines
    from ray_app.reports.format import escape_invisible

    if check:
        ineffective = sorted(name for name, value in values.items() if value not in (None, ()))
        if ineffective:
            raise ConfigError(
                f"--check writes no index, and --{ineffective[0].replace('_', '-')} has no effect with it",
                hint=f"run touchstone data split {at} --check",
            )
        report = check_splits(at)
        report["remarks"] = find_index_faults(at, clip)
        options.echo_document(
            report, map(escape_invisible, [*report["remarks"], *leak_lines(report)]), as_json
        )
        has_leak = any(leak["values"] for leak in report["leaks"])
        return ExitCode.TOO_MANY_BAD if has_leak else ExitCode.DONE
    if not values["out"]:
        raise ConfigError(
            "--out DIR is missing: the split index needs a directory",
            hint="run touchstone data split INDEX --out DIR",
        )
    document = split_index(
        options.load_config("split", None, SplitConfig, {"at": at, **values}, ()),
        lambda: find_index_faults(at, clip),
    )
    options.echo_document(
        document, map(escape_invisible, split_lines(document, values["out"])), as_json
    )
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
@click.option(
    "--out", metavar="DIR", required=True, help="Directory for the index; any fsspec URL."
)
@click.option(
    "--hash",
    "hashes",
    metavar="sha256,phash",
    callback=_split_at_commas,
    help="Compute these hashes, which find leakage between splits. This reads every image.",
)
@click.option(
    "--complete",
    is_flag=True,
    help="Exit with 3 if the index has other counts than the published ones, and with 2 if none are published.",
)
@options.overrides
@options.json_option
def index(
    out: str, complete: bool, assignments: tuple[str, ...], as_json: bool, **values: Any
) -> int:
    """List the images of SOURCE with their labels, for training and evaluation.

    A layout, set by --layout, reads the labels of images that are stored in one way, such as a folder per class.

    \b
    Layouts: columns · folders · openfake · openfake-csv · openfake-ood · opensdi · community-forensics
             community-forensics-folders · dflip · opendeepfake-preview · imdlbenco-json · imdlbenco-folder
             paths · table · words · genimage · drct-2m · chameleon · aigcdetect · univfd
             synthbuster · deepfake-eval-2024 · so-fake · ntire-2026 · ai-genbench
             diffusionforensics · forensichub
    Set the arguments of a layout with --set arguments.KEY=VALUE.

    \b
    touchstone data index photos/ --layout folders --out index --hash sha256,phash
    """
    from ray_app.archives.progress import ProgressLog
    from ray_app.datasets import DatasetSource, build_index
    from ray_app.errors import ConfigError, ExitCode
    from ray_app.reports.datasets import index_lines
    from ray_app.storage import Store

    source = options.load_config("index", None, DatasetSource, values, assignments)
    if source.split or source.generators:
        raise ConfigError(
            "split and generators cannot be set for an index: a recipe selects them when it reads the index",
            hint="set them in the section `data` of the training recipe",
        )
    info = build_index(source, Store.open(out), progress=ProgressLog("index"))
    faults = info.fault_lines()
    lines = [*index_lines(info), *(f"known fault: {line}" for line in faults)]
    options.echo_document(asdict(info) | {"known_faults": faults}, lines, as_json)
    if complete and info.agrees is None:
        raise ConfigError(
            f"{out}: there is no published count to compare with",
            hint="leave out --complete: the index has been written",
        )
    if complete and not info.agrees:
        click.echo(f"{out}: the counts differ from the published ones", err=True)
        return ExitCode.TOO_MANY_BAD
    return 0
