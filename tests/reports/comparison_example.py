"""A comparison of two small runs, as `ray_app.evaluation.compare` returns it."""

from ray_app.metrics.values import MetricValue, undefined
from ray_app.reports.compare import VERDICTS, Comparison, MetricDifference, ScoreDifference

URL_A, URL_B, LABELS = "s3://archive/runs/monday", "s3://archive/runs/tuesday", "truth.csv"
DETECTOR = "touchstone-tiny"


def example_comparison(*, n=2_400, shared=True, text=None):
    """Return a comparison of runs with n rows. If `text` is given, it replaces every name."""
    name = (lambda _: text) if text is not None else (lambda known: known)
    both = n if shared else 0
    changed = both // 10
    verdicts = {a: dict.fromkeys(VERDICTS, 0) for a in VERDICTS}
    verdicts["fake"]["fake"], verdicts["real"]["fake"] = both - changed, changed
    rate = MetricValue(0.25, 0.2, 0.3, n, "clopper-pearson") if n else undefined("no verdict")
    missing = undefined("no image has a score in both runs")
    systems = [name("ensemble"), name(DETECTOR)]
    return Comparison(
        a=name(URL_A),
        b=name(URL_B),
        by="image_id",
        rows_a=n,
        rows_b=n,
        shared=both,
        settings=[(name(f"precision.{DETECTOR}"), '"fp32"', '"bf16"')] * 7,
        detectors_only_a=[name("npr")],
        detectors_only_b=[],
        statuses=[("ok", "corrupt_image", 12)] if both else [],
        verdicts=verdicts,
        flagged_a=rate,
        flagged_b=rate,
        scores=[
            ScoreDifference(
                system=system,
                n=both,
                equal=0,
                only_a=0,
                only_b=0,
                mean=MetricValue(-0.3, -0.4, -0.2, both, "student") if both else missing,
                quantiles={"0.05": -0.9, "0.95": 0.2} if both else {},
                max_difference=1.5 if both else None,
                moved=MetricValue(0.9, 0.8, 0.95, both, "clopper-pearson") if both else missing,
                ks=0.12 if n else None,
                ks_p=0.003 if n else None,
            )
            for system in systems
        ],
        labels=name(LABELS) if both else None,
        labelled=both,
        groups={"fake": 12, "real": 0},
        metrics=[
            MetricDifference(
                system,
                metric,
                MetricValue(0.9, 0.8, 0.95, both, "jackknife"),
                MetricValue(0.8, 0.7, 0.85, both, "jackknife"),
                MetricValue(-0.1, -0.2, -0.05, both, "jackknife"),
                0.0004,
            )
            for system in systems
            for metric in ("tpr", "tnr", "auc")
            if both
        ],
    )
