"""`touchstone compare`: what changed from one run to another, and whether it is more than chance."""

import json
from pathlib import Path
from typing import Literal

import click

from ray_app.cli.options import as_json, local_folder


@click.command()
@click.argument("run_a", metavar="RUN_A")
@click.argument("run_b", metavar="RUN_B")
@click.option("--labels", metavar="FILE|INDEX", help="CSV, JSONL, Parquet or an index with labels.  [default: the runs' own columns]")
@click.option(
    "--by", type=click.Choice(["image_id", "sha256"]), help="What is the same in both.  [default: image_id, or sha256 if no id is shared]"
)
@click.option("--out", metavar="DIR", help="Local folder for comparison.html and comparison.json.")
@as_json
def compare(run_a: str, run_b: str, labels: str | None, by: Literal["image_id", "sha256"] | None, out: str | None, as_json: bool) -> int:
    """Tell what changed from RUN_A to RUN_B: verdicts, scores, drift and, with labels, which of them is better.

    Rows are matched image by image. A change is said where it is significant and not negligible; equal runs differ in nothing.

    \b
    touchstone compare run-fp32 run-bf16
    touchstone compare s3://bucket/monday s3://bucket/tuesday --out drift
    touchstone compare old new --labels truth.csv --json | jq .headline
    """
    from ray_app.comparison.comparing import compare as compare_runs
    from ray_app.reports.comparison_report import comparison_lines, render_comparison

    folder: Path | None = local_folder(out) if out else None
    document = compare_runs(run_a, run_b, labels, by=by)
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    click.echo(text if as_json else "\n".join(comparison_lines(document)))
    if folder:
        (folder / "comparison.json").write_text(text, encoding="utf-8")
        (folder / "comparison.html").write_text(render_comparison(document), encoding="utf-8")
        click.echo(f"report: {folder / 'comparison.html'}", err=as_json)
    return 0
