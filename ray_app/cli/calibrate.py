"""`touchstone calibrate`: a labelled run → an ensemble card whose false-positive rate is known."""

import json
from typing import Any

import click

from ray_app.cli.options import as_json, configured

_RULES = ["stacked", "weighted", "cascade", "mean-logit", "mean-probability", "soft-or", "max", "median", "log-sum-exp"]


@click.command()
@click.argument("run", metavar="RUN")
@click.option("--labels", metavar="FILE|INDEX", help="CSV, JSONL, Parquet or an index with labels.  [default: the run's own columns]")
@click.option("--out", metavar="CARD.yaml", required=True, help="Where the card goes; its reference scores and report go beside it.")
@click.option("--key", type=click.Choice(["image_id", "sha256", "uri"]), help="What joins labels to rows.  [default: the first there is]")
@click.option("--split", metavar="NAME", help="Only labels of this split.")
@click.option(
    "--detector", "detectors", multiple=True, metavar="NAME", help="Only these of the run's detectors, in this order; repeatable."
)
@click.option("--fpr", type=float, help="The share of reals that may be called fake.  [default: 0.01]")
@click.option("--confidence", type=float, help="How sure that is.  [default: 0.95]")
@click.option("--rule", type=click.Choice(_RULES), help="How detectors combine.  [default: stacked; of one, its own score]")
@click.option("--method", type=click.Choice(["platt", "isotonic", "temperature"]), help="What makes chances of scores.  [default: platt]")
@click.option("--first", type=int, metavar="N", help="Cascade: so many detectors look at every image.  [default: 1]")
@click.option("--share", type=float, help="Cascade: the share of images that may go on to all detectors.  [default: 0.2]")
@click.option("--audit", type=float, help="Cascade: the share that goes on whatever it scores, out of --share.  [default: 0.01]")
@click.option("--miss", type=float, help="The share of fakes that may be called real.  [default: 0.05]")
@click.option("--prevalence", type=float, help="The share of fakes where the card is used.  [default: as among the labels]")
@click.option("--regroup", is_flag=True, help="Where the labels' own `part` divides images that hang together, move them to one part.")
@click.option("--share-generators", is_flag=True, help="Let the parts share generators; needed where there are fewer than three.")
@click.option("--seed", type=int, help="Draws the parts.  [default: 0]")
@as_json
def calibrate(as_json: bool, **given: Any) -> int:
    """Calibrate the detectors of RUN on labels, and choose thresholds whose false-positive rate has an exact bound.

    The labelled images fall into three parts, never dividing a source, near-duplicates or a generator: calibrations and the rule are
    fitted on the first, the ensemble's calibration on the second, and thresholds are chosen on the third, on which nothing is fitted. A
    detector alone has one calibration, fitted on the first two.
    Besides `label` and a key, labels may have `generator`, `source` or `group`, `phash`, and `part` (fit, calibrate, choose).

    \b
    touchstone score photos/ --detector unifd --detector npr --set perceptual_hash=true --out run
    touchstone calibrate run --labels labels.csv --out mine.yaml
    touchstone score archive/ --ensemble mine.yaml --out archive-run
    touchstone calibrate run --labels labels.csv --rule cascade --first 1 --share 0.2 --fpr 0.001 --out cascade.yaml
    """
    from ray_app.calibration.calibrating import calibrate_run
    from ray_app.calibration.config import CalibrateConfig
    from ray_app.reports.calibration_lines import calibration_lines

    report = calibrate_run(configured("calibrate", None, CalibrateConfig, given, ()))
    click.echo(json.dumps(report, indent=1, ensure_ascii=False) if as_json else "\n".join(calibration_lines(report)))
    return 0
