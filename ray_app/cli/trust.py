"""Commands on how far to trust a run: `calibrate` a card, `audit` a sample."""

import shlex
from typing import Any

import click

from ray_app.cli import options
from ray_app.cli.config_options import ConfigCommand

_LEAST_DRAWN = 50  # of a sample of the whole archive


@click.command(
    cls=ConfigCommand,
    config="ray_app.evaluation.calibrate.config:CalibrateConfig",
    fields={
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
@click.argument("run", metavar="RUN")
@click.option(
    "--out",
    metavar="CARD.yaml",
    required=True,
    help="Path of the card. The labels of the held-out part are written next to it.",
)
@options.as_json
def calibrate(as_json: bool, **given: Any) -> int:
    """Calibrate detectors on labels, and write an ensemble card with a bound on false positives.

    \b
    touchstone detectors calibrate run --labels labels.csv --out mine.yaml
    """
    from ray_app.evaluation.calibrate.config import CalibrateConfig
    from ray_app.evaluation.calibrate.run import calibrate_run
    from ray_app.reports.calibration import calibration_lines
    from ray_app.reports.text import terminal_width

    calibration = calibrate_run(options.configured("calibrate", None, CalibrateConfig, given, ()))
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
    help="Draw this many images; writes sample.csv, audit.html and audit.json.",
)
@click.option(
    "--flagged",
    is_flag=True,
    help="With --draw: only images flagged as fake; 30 bound how many of those are real.",
)
@click.option(
    "--labels",
    metavar="FILE",
    help="The sample's labels: sample.csv with its last column filled in.",
)
@click.option(
    "--out",
    required=True,
    metavar="DIR",
    help="Local folder of the audit; --labels finds there what --draw wrote.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Another seed draws other images.",
)
@click.option(
    "--thumbnails/--no-thumbnails",
    default=True,
    help="Pictures in audit.html, read from the archive.  [default: with them]",
)
@options.as_json
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
    """Estimate from a labelled sample of a run how many images are fake, and how many verdicts are right.

    \b
    touchstone runs audit run --draw 300 --out audit      then fill in audit/sample.csv while you look at audit/audit.html
    touchstone runs audit run --labels audit/sample.csv --out audit
    """
    if (draw is None) == (labels is None):
        raise click.UsageError(
            "give --draw N, to make a sample, or --labels FILE, to read one back"
        )
    if flagged and draw is None:
        raise click.UsageError(
            "--flagged belongs to --draw: --labels reads from the sample how it was drawn"
        )
    if draw is not None and draw < _LEAST_DRAWN and not flagged:
        raise click.UsageError(f"--draw: at least {_LEAST_DRAWN} images, or 10 with --flagged")
    folder = options.local_folder(out)
    if draw is not None:
        from ray_app.evaluation.audit.sample import PAGE, SAMPLE, draw_sample

        drawn = draw_sample(run, draw, folder, only_flagged=flagged, seed=seed, pictures=thumbnails)
        asked = [one for one in drawn.strata if one.drawn]
        among = (
            f"{sum(one.size for one in asked):,} images flagged as fake"
            if flagged
            else f"{drawn.scored:,} images"
        )
        lines = [
            f"drawn: {len(drawn.images):,} of {among}, from {len(asked)} {'stratum' if len(asked) == 1 else 'strata'}",
            f"label: look at {folder / PAGE}, and fill in the last column of {folder / SAMPLE}",
            f"then:  {shlex.join(['touchstone', 'runs', 'audit', run, '--labels', str(folder / SAMPLE), '--out', out])}",
        ]
        options.echo_document(drawn.facts, lines, as_json)
        return 0
    from ray_app.evaluation.audit.estimate import estimate
    from ray_app.reports.audit import audit_lines
    from ray_app.reports.text import terminal_width

    document = estimate(run, str(labels), folder)
    options.echo_document(document, audit_lines(document, terminal_width()), as_json)
    return 0
