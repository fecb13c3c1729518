"""Commands on data: `pack` archives; `collect`, `generate`, `split` and `index` images to train and
evaluate.
"""

from dataclasses import asdict
from typing import Any

import click

from ray_app.cli import options
from ray_app.cli.config_options import ConfigCommand


@click.command()
@click.argument("source", nargs=-1)
@options.out_option
@click.option(
    "--as",
    "form",
    type=click.Choice(["parquet", "webdataset"]),
    help="Form of the shards.  [default: parquet]",
)
@options.shard_option
@click.option("--config", "config_file", metavar="FILE", help="YAML of a packing job.")
@options.include_option
@options.exclude_option
@click.option("--limit", type=click.IntRange(min=1), help="Pack no more than this many files.")
@options.retry_shards_option
@options.overrides
@options.as_json
def pack(
    config_file: str | None, assignments: tuple[str, ...], retry: bool, as_json: bool, **given: Any
) -> int:
    """Pack many small files into shards, bytes untouched.

    Shards are Parquet as the Hugging Face hub writes it, or tars. SOURCE is what `touchstone score` takes. A file that cannot be read is
    not packed: DIR/unpacked.parquet lists it with the reason.

    \b
    touchstone data pack s3://bucket/photos --out s3://bucket/shards
    touchstone data pack photos/ --out shards --as webdataset --shard-mb 512
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
    """Fetch images that a list names by url, restartably.

    META is DFLIP-3K's dalle.json, mj.json or pd.json, or a CSV, JSONL or Parquet of urls.
    Only what decodes counts. Every url ends with a row: an image, or a status and why. When started again, it fetches only what is missing.

    \b
    touchstone data collect pd.json --out s3://bucket/dflip --contact me@example.org
    touchstone data collect urls.csv --out images --form webdataset --per-host 1 --pause 0.5
    touchstone data collect urls.csv --out images --retry source_timeout,source_throttled
    touchstone data collect --meta_file mj.json --save_dir mj
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


@click.command()
@click.argument("config_file", type=options.ShippedName("generate"), metavar="CONFIG")
@options.out_option
@click.option(
    "--prompts",
    metavar="FILE",
    help="Text, CSV, JSONL, Parquet, an index, or a run; for inpainting a table of images.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    help="Base seed; each image has one of its own that follows from it.  [default: 0]",
)
@click.option(
    "--per-prompt", type=click.IntRange(min=1), help="Images of each prompt.  [default: 1]"
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    help="Use no more than this many prompts, the first ones.",
)
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    help="Images at once, halved when memory is short.  [default: the card's]",
)
@click.option("--retry", is_flag=True, help="Make again the blocks in which images failed.")
@click.option("--accept-licence", "accept_licences", multiple=True, metavar="NAME", callback=_accept,
              help="Accept the licence of this pipeline (or a licence by its id) and remember that; repeatable.")  # fmt: skip
@options.overrides
@options.as_json
def generate(
    config_file: str, assignments: tuple[str, ...], retry: bool, as_json: bool, **given: Any
) -> int:
    """Make labelled images with a diffusion pipeline.

    From prompts, or by altering parts of real images, for training and for tests. Needs touchstone-forensics[generate].
    CONFIG is a shipped pipeline (sd-1.5, sd-2.1, sdxl, sd-3, sd-3.5, flux.1-dev; sd-1.5-, sd-2-, sdxl-, sd-3- and flux.1-dev-inpainting),
    a card of your own, or the YAML of a job. Every image has its own noise; DIR/generated.parquet says how each was made, and index and
    score take it.

    \b
    touchstone data generate flux.1-dev --prompts prompts.txt --set 'encode.format=[JPEG,PNG]' --set 'encode.quality=[70,95]' --out flux
    touchstone data generate sd-2-inpainting --prompts index-of-reals --out edits
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


@click.command()
@click.argument("at", metavar="INDEX")
@click.option("--out", metavar="DIR", help="Where the divided index goes; any fsspec URL.")
@click.option("--train", type=float, help="The share of images to learn from.  [default: 0.8]")
@click.option(
    "--validation", type=float, help="The share that chooses and calibrates.  [default: 0.1]"
)
@click.option("--test", type=float, help="The share that is only measured.  [default: 0.1]")
@click.option(
    "--by",
    metavar="KINDS",
    callback=_comma_separated,
    help="What keeps images together: group, prompt, looks.  [default: group,prompt,looks]",
)
@click.option(
    "--hold-out",
    multiple=True,
    metavar="NAME|SHARE",
    help="A generator that is in test alone, or a share of all; repeatable.",
)
@click.option(
    "--keep",
    multiple=True,
    type=click.Choice(["train", "validation", "test"]),
    help="A split of INDEX to keep as it is; repeatable.",
)
@click.option("--after", metavar="DIR", help="An earlier split, none of whose images is moved.")
@click.option(
    "--even",
    is_flag=True,
    default=None,
    help="Divide every generator evenly; images added later may then move others, unless --after is given.",
)
@click.option(
    "--seed", type=click.IntRange(min=0), help="Another seed divides differently.  [default: 0]"
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
    """Divide an index into train, validation and test.

    Images of one prompt, one scene or one picture stay together. Images are bound by group, by equal prompts,
    by equal bytes and by looks (where INDEX has hashes). Where a group falls follows from its name and the seed alone,
    so it stays there when images are added.

    \b
    touchstone data index photos/ --layout folders --hash sha256,phash --out index
    touchstone data split index --out divided
    touchstone data split index --out divided --hold-out midjourney-7 --hold-out flux.2
    touchstone data split grown --out divided-2 --after divided
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


@click.command()
@click.argument("at", metavar="SOURCE…", nargs=-1, required=True)
@click.option(
    "--layout",
    metavar="NAME",
    help="How the source states its labels; see below.  [default: columns]",
)
@click.option("--out", metavar="DIR", required=True, help="Where the index goes; any fsspec URL.")
@options.include_option
@options.exclude_option
@options.limit_option
@click.option(
    "--hash",
    "hashes",
    metavar="sha256,phash",
    callback=_comma_separated,
    help="Compute these, to find leakage: reads every image.",
)
@click.option(
    "--leave-out-faults",
    is_flag=True,
    default=None,
    help="Leave out images and prompts that a documented fault spoils.",
)
@click.option(
    "--complete", is_flag=True, help="Exit with 2 unless the counts are the published ones."
)
@options.overrides
@options.as_json
def index(
    out: str, complete: bool, assignments: tuple[str, ...], as_json: bool, **given: Any
) -> int:
    """List images with their labels, for training and evaluation.

    SOURCE is labelled as a published layout does it. An unknown label is an error, never a default.
    SOURCE is what `touchstone score` takes, or sample:: for the shipped sample archive. Counts are compared with the published ones.

    \b
    Layouts: columns · folders · openfake · openfake-csv · openfake-ood · opensdi · community-forensics
             community-forensics-folders · dflip · opendeepfake-preview · imdlbenco-json · imdlbenco-folder
             paths · table · words · genimage · drct-2m · chameleon · aigcdetect · univfd
             synthbuster · deepfake-eval-2024 · so-fake · ntire-2026 · ai-genbench
             diffusionforensics · forensichub
    Their arguments are set by --set arguments.KEY=VALUE; a wrong one is answered with the right ones.

    \b
    touchstone data index hf://datasets/nebula/OpenSDI_train --layout opensdi --out s3://bucket/opensdi
    touchstone data index photos/ --layout folders --out index --hash sha256,phash
    touchstone data index labels.csv --out index --set columns.uri=file --set arguments.label=kind
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
