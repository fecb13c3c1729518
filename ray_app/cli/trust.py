"""The commands `detectors calibrate` and `runs audit`, which measure error rates of verdicts."""

import shlex
from typing import Any

import click

from ray_app.cli import options
from ray_app.cli.config_options import ConfigCommand

_MIN_SAMPLE = 50  # Images in a sample of the whole archive.


@click.command(
    cls=ConfigCommand,
    config="ray_app.evaluation.calibrate.config:CalibrateConfig",
    fields={
        "reals": "--reals FOLDER",
        "ensemble": "--ensemble NAME|PATH",
        "labels": "--labels FILE|INDEX",
        "key": "--key",
        "split": "--split NAME",
        "detectors": "--detector NAME",
        "fpr": "--fpr",
        "confidence": "--confidence",
        "rule": "--rule",
        "first": "--first",
        "share": "--share",
        "audit": "--audit",
        "miss": "--miss",
        "prevalence": "--prevalence",
        "share_generators": "--share-generators",
        "share_sources": "--share-sources",
        "seed": "--seed",
    },
)
@click.argument("run", metavar="[RUN]", required=False)
@click.option(
    "--out",
    metavar="CARD.yaml",
    required=True,
    help="Path of the new card. The labels of the held-out part are written to the same folder.",
)
@options.json_option
def calibrate(as_json: bool, **values: Any) -> int:
    """Calibrate detectors with labelled images, and write an ensemble card with a bound on false positives.

    The labelled images are those of a run. An ensemble card names detectors, and the rule and thresholds that turn their scores into
    verdicts.

    \b
    touchstone detectors calibrate run --labels labels.csv --out mine.yaml
    touchstone detectors calibrate --reals photos/ --detector npr --fpr 0.01 --out mine.yaml
    """
    from ray_app.evaluation.calibrate.config import CalibrateConfig
    from ray_app.evaluation.calibrate.reals import calibrate_on_reals
    from ray_app.evaluation.calibrate.run import calibrate_run
    from ray_app.reports.calibration import calibration_lines
    from ray_app.reports.text import terminal_width

    config = options.load_config("calibrate", None, CalibrateConfig, values, ())
    calibration = calibrate_run(config) if config.reals is None else calibrate_on_reals(config)
    options.echo_document(
        calibration.to_dict(), calibration_lines(calibration, terminal_width()), as_json
    )
    return 0


@click.command()
@click.argument("run", metavar="RUN")
@click.option(
    "--draw",
    type=click.IntRange(min=10),
    metavar="N",
    help="Draw a sample of this many images, and write sample.csv, audit.html, and audit.json.",
)
@click.option(
    "--flagged",
    is_flag=True,
    help="With --draw: sample only images flagged as fake. 30 images are enough to bound how many of those are real.",
)
@click.option(
    "--labels",
    metavar="FILE",
    help="Labels of the sample: sample.csv with its last column filled in.",
)
@click.option(
    "--out",
    required=True,
    metavar="DIR",
    help="Local folder of the audit. --draw writes to it, and --labels reads from it.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Seed of the sample; another seed draws other images.",
)
@click.option(
    "--thumbnails/--no-thumbnails",
    default=True,
    help="Show the images in audit.html; they are read from the archive.  [default: --thumbnails]",
)
@options.json_option
def audit(
    run: str,
    draw: int | None,
    flagged: bool,
    labels: str | None,
    out: str,
    seed: int,
    thumbnails: bool,
    as_json: bool,
) -> int:
    """Estimate how many images of a run are fake, and how many verdicts are right, from a labelled sample.

    Run the command twice. First, --draw draws the sample, with --flagged only from images flagged
    as fake. Then --labels reads the labels that you filled in, and computes the estimates.

    \b
    touchstone runs audit run --draw 300 --out audit      then look at audit/audit.html, and fill in audit/sample.csv
    touchstone runs audit run --labels audit/sample.csv --out audit
    """
    if (draw is None) == (labels is None):
        raise click.UsageError(
            "use either --draw N to draw a sample, or --labels FILE to read a labelled one"
        )
    if flagged and draw is None:
        raise click.UsageError(
            "--flagged requires --draw. An existing sample already records whether it was drawn from flagged images."
        )
    if draw is not None and draw < _MIN_SAMPLE and not flagged:
        raise click.UsageError(
            f"--draw must be at least {_MIN_SAMPLE}, or 10 with --flagged, got {draw}"
        )
    folder = options.make_local_folder(out)
    if draw is not None:
        from ray_app.evaluation.audit.sample import PAGE, SAMPLE, draw_sample

        sample = draw_sample(
            run, draw, folder, only_flagged=flagged, seed=seed, pictures=thumbnails
        )
        strata = [stratum for stratum in sample.strata if stratum.drawn]
        population = (
            f"{sum(stratum.size for stratum in strata):,} images flagged as fake"
            if flagged
            else f"{sample.scored:,} images"
        )
        lines = [
            f"drawn: {len(sample.images):,} of {population}, from {len(strata)} {'stratum' if len(strata) == 1 else 'strata'}",
            f"label: look at {folder / PAGE}, and fill in the last column of {folder / SAMPLE}",
            f"then:  {shlex.join(['touchstone', 'runs', 'audit', run, '--labels', str(folder / SAMPLE), '--out', out])}",
        ]
        options.echo_document(sample.facts, lines, as_json)
        return 0
    from ray_app.evaluation.audit.estimate import estimate
    from ray_app.reports.audit import audit_lines
    from ray_app.reports.text import terminal_width

    document = estimate(run, str(labels), folder)
    options.echo_document(document, audit_lines(document, terminal_width()), as_json)
    return 0
