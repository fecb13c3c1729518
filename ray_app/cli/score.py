"""Commands that score archives or process finished runs.

They are `demo`, `plan`, and `score`, and `report`, `decide`, `compact`, and `verify` of `touchstone
runs`.
"""

import tempfile
from pathlib import Path
from typing import Any

import click

from ray_app.cli import options
from ray_app.cli.config_options import ConfigCommand
from ray_app.cli.endpoint import endpoint_options, score_at_endpoint
from ray_app.cli.options import ENSEMBLE

_CONFIG = "ray_app.scoring.config:ScoreConfig"
_SOURCE_FIELDS = {
    "fpr": "--fpr RATE",
    "include": "--include GLOB",
    "exclude": "--exclude GLOB",
    "limit": "--limit",
    "perturb": "--perturb NAME",
    "features": "--features NAME",
    "identifier": "--identifier NAME|PATH",
}


@click.command()
@click.argument("images", required=False, metavar="[FOLDER]")
@click.option(
    "--out",
    metavar="DIR",
    help="Folder for the run and the sample archive.  [default: a new temporary folder]",
)
@click.option(
    "--images",
    "limit",
    type=click.IntRange(min=10, max=5000),
    help="Maximum number of files to score.  [default: all of the sample archive, or 500 of FOLDER]",
)
@click.option(
    "--archive-only",
    is_flag=True,
    help="Only write the sample archive and its labels.",
)
def demo(images: str | None, out: str | None, limit: int | None, archive_only: bool) -> int:
    """Score a small sample archive with the ensemble `tiny`, or a FOLDER with the default ensemble.

    With --archive-only, the sample archive and its labels are written, and nothing is scored.

    \b
    touchstone demo
    """
    if archive_only and (images or limit):
        raise click.UsageError(
            "--archive-only writes the whole sample archive: leave out FOLDER and --images"
        )
    from ray_app.scoring import demo

    folder = Path(out or tempfile.mkdtemp(prefix="touchstone-demo-")).resolve()
    if archive_only:
        click.echo("\n".join(demo.describe_sample(demo.copy_sample(folder))))
        return 0
    result = demo.run_demo(folder, images=Path(images).resolve() if images else None, limit=limit)
    click.echo("\n".join(result.lines()))
    return result.finished.exit_code


@click.command(cls=ConfigCommand, config=_CONFIG, fields=_SOURCE_FIELDS)
@options.source_options
@click.option(
    "--out",
    metavar="DIR",
    help="The run directory. If it has a run, the plan covers the remaining files. Nothing is written.",
)
@click.option(
    "--cluster",
    metavar="NAME|FILE",
    help="Machines and prices: laptop, cpu-pool, gpu-spot-pool, gpu-fleet, or your own YAML file.",
)
@click.option(
    "--price-per-hour",
    type=click.FloatRange(min=0),
    help="Total price of the planned machines per hour.",
)
@click.option(
    "--probe",
    type=click.IntRange(min=0),
    default=64,
    show_default=True,
    help="Number of files to score now as a run would, to measure the rates. With 0, the plan has no times.",
)
@options.licence_option
@options.overrides
@options.json_option
def plan(
    source: tuple[str, ...],
    config_file: str | None,
    cluster: str | None,
    price_per_hour: float | None,
    probe: int,
    accepted: tuple[str, ...],
    assignments: tuple[str, ...],
    as_json: bool,
    **values: Any,
) -> int:
    """Predict the time, the storage requests, and the cost of a run by scoring a few files.

    \b
    touchstone plan s3://bucket/2024 --cluster gpu-spot-pool --out s3://bucket/run
    """
    from ray_app.reports import plan_lines
    from ray_app.reports.text import terminal_width
    from ray_app.scoring import ScoreConfig
    from ray_app.scoring.config import load_cluster
    from ray_app.scoring.plan import plan_run

    settings = options.load_config(
        "score",
        config_file,
        ScoreConfig,
        {"source": source, "accept_licences": accepted, **values},
        assignments,
    )
    machines = load_cluster(cluster) if cluster else None
    run_plan = plan_run(settings, probe=probe, cluster=machines, price_per_hour=price_per_hour)
    options.echo_document(run_plan.to_dict(), plan_lines(run_plan, terminal_width()), as_json)
    return 0


@click.command(
    cls=ConfigCommand,
    config=_CONFIG,
    fields={
        "out": "--out DIR",
        **_SOURCE_FIELDS,
        "max_hours": "--max-hours",
        "max_cost": "--max-cost",
        "prior": "--prior",
    },
)
@options.source_options
@click.option(
    "--follow",
    metavar="INTERVAL",
    help="Keep running: list the source again at this interval, such as 5m or 1h, and score new and changed files.",
)
@click.option(
    "--retry",
    "rescore",
    metavar="STATUS,…",
    callback=lambda context, option, text: (
        tuple(status.strip() for status in text.split(",")) if text is not None else ()
    ),
    help="Score the files whose row has one of these statuses again, and no others.",
)
@endpoint_options
@options.licence_option
@options.overrides
@options.json_option
def score(
    source: tuple[str, ...],
    config_file: str | None,
    assignments: tuple[str, ...],
    accepted: tuple[str, ...],
    endpoint: str | None,
    token_file: str | None,
    as_json: bool,
    **values: Any,
) -> int:
    """Score every file of an archive, and write one row for each. The run can be resumed.

    SOURCE is a folder, a file, a prefix, or a glob: local, s3://, gs://, az://, https://, hf://datasets/. Files inside tar, zip, and
    Parquet files are scored, too. A .csv or .jsonl file is read as a list of files, and so is list::FILE. features::RUN reads the
    embeddings that a run stored with --features, to score them with the head of another detector.

    \b
    touchstone score s3://bucket/2024 --out s3://bucket/run
    touchstone score features::run --detector head.yaml --out new
    touchstone score --endpoint http://localhost:8000 photo.jpg more/
    """
    if endpoint or token_file:
        requested = {key: values[key] for key in ("ensemble", "detectors", "fpr")}
        return score_at_endpoint(
            endpoint, source, **requested, token_file=token_file, as_json=as_json
        )
    from ray_app.reports import summary_lines
    from ray_app.scoring import ScoreConfig
    from ray_app.scoring.run import score_archive

    settings = options.load_config(
        "score",
        config_file,
        ScoreConfig,
        {"source": source, "accept_licences": accepted, **values},
        assignments,
    )
    finished = score_archive(settings)
    options.echo_document(finished.summary, summary_lines(finished.summary), as_json)
    return finished.exit_code


@click.command()
@click.argument("run", metavar="RUN")
@click.option(
    "--prior",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Expected fraction of fakes.",
)
@click.option(
    "--thumbnails/--no-thumbnails",
    default=None,
    help="Show the images with the 12 highest scores.  [default: the setting of the run]",
)
def report(run: str, prior: float | None, thumbnails: bool | None) -> int:
    """Write the report of a finished run again, for example with another expected fraction of fakes.

    \b
    touchstone runs report run --prior 0.05
    """
    from ray_app.reports.run import flag_lines
    from ray_app.runs import RunDirectory
    from ray_app.scoring.report import write_report

    directory = RunDirectory.open(run)
    click.echo(write_report(directory, prior=prior, thumbnails=thumbnails))
    for line in flag_lines(directory.read_json("summary.json"), prior=prior):
        click.echo(line, err=True)
    return 0


@click.command()
@click.argument("run", metavar="RUN")
@click.option(
    "--ensemble",
    type=ENSEMBLE,
    required=True,
    metavar="NAME|PATH",
    help="The ensemble card with the new rule or thresholds.",
)
@click.option(
    "--out", required=True, metavar="NEW", help="Directory of the new run; any fsspec URL."
)
@options.fpr_option
@click.option(
    "--waive-guarantee",
    is_flag=True,
    help="Keep verdicts that the guarantee of the card does not cover.",
)
@options.unguarded_option
def decide(
    run: str,
    ensemble: str,
    out: str,
    fpr: float | None,
    waive_guarantee: bool,
    unguarded: bool,
) -> int:
    """Apply another ensemble card to the scores of a run, and write the new verdicts to another run.

    An ensemble card names detectors, and the rule and thresholds that turn their scores into verdicts. RUN must have scores of every
    detector of the card. If a file was scored several times, the new run NEW gets its newest row.
    Files that RUN's last listing of the archive did not find are left out.

    \b
    touchstone runs decide run --ensemble stricter.yaml --out stricter-run
    """
    from ray_app.reports import summary_lines
    from ray_app.scoring.decide import decide_run

    summary = decide_run(
        run, ensemble, out, fpr=fpr, waive_guarantee=waive_guarantee, unguarded=unguarded
    )
    click.echo("\n".join(summary_lines(summary)))
    return 0


@click.command()
@click.argument("run", metavar="OLD")
@click.argument("out", metavar="NEW")
@options.unguarded_option
def compact(run: str, out: str, unguarded: bool) -> int:
    """Rewrite the finished run OLD as a new run NEW with fewer files.

    If a file was scored several times, NEW gets its newest row. Files that OLD's last listing of
    the archive did not find are left out. `touchstone score` can continue NEW.

    \b
    touchstone runs compact run compacted
    """
    from ray_app.reports import summary_lines
    from ray_app.scoring.compact import compact_run

    click.echo("\n".join(summary_lines(compact_run(run, out, unguarded=unguarded))))
    return 0


@click.command()
@click.argument("run", metavar="RUN")
@options.json_option
def verify(run: str, as_json: bool) -> int:
    """Check that every file of a finished run has exactly one row, and that the summary agrees with the rows.

    \b
    touchstone runs verify run
    """
    from dataclasses import asdict

    from ray_app.reports.format import pluralize
    from ray_app.runs import RunDirectory, verify_run

    verified = verify_run(RunDirectory.open(run))
    lines = [
        f"{pluralize(verified.members, 'row')} of {pluralize(verified.manifests, 'listing')}, {verified.current:,} current: "
        "every file has one row, and the summary agrees"
    ]
    options.echo_document(asdict(verified), lines, as_json)
    return 0
