"""`touchstone labels`: whether labels could be told by files alone, stand under both names, or are doubted."""

import json
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import click

from ray_app.cli.options import as_json, local_folder


@click.command()
@click.argument("at", metavar="INDEX|RUN")
@click.option("--out", required=True, metavar="DIR", help="Local folder for labels.html, labels.json and suspicious.parquet.")
@click.option("--labels", metavar="FILE|INDEX", help="Of a RUN: CSV, JSONL, Parquet or an index.  [default: the run's own columns]")
@click.option("--key", type=click.Choice(["image_id", "sha256", "uri"]), help="What joins labels to rows.  [default: the first there is]")
@click.option("--read", is_flag=True, help="Of an INDEX: open its files for format, size, quality and metadata, on Ray.")
@click.option("--features", metavar="NAME", help="Whose kept embeddings doubt labels.  [default: the first kept; else the scores]")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Draws folds.")
@click.option("--thumbnails/--no-thumbnails", default=True, help="Pictures in the report.  [default: with them]")
@as_json
def labels(at: str, out: str, read: bool, as_json: bool, **given: Any) -> int:
    """Audit labels: in what the files of fakes and real images differ, what stands under both labels, and which labels are doubted.

    An INDEX knows names, sizes and hashes; --read looks into its files. A RUN knows formats and qualities, and what detectors made of the
    pictures: only that can doubt a label.

    \b
    touchstone labels index --read --out audit
    touchstone score list::labels.csv --detector unifd --features unifd --out run
    touchstone labels run --labels index --out audit
    """
    from ray_app.archives import in_turn
    from ray_app.evaluation.label_audit import audit_labels
    from ray_app.reports.labels_report import labels_lines

    folder, each = local_folder(out), in_turn
    started: AbstractContextManager[None] = nullcontext()
    if read:
        from ray_app.scoring.cluster import cluster
        from ray_app.scoring.config import ScoreConfig
        from ray_app.scoring.tasks import on_ray

        started, each = cluster(ScoreConfig().cluster), on_ray
    with started:
        document = audit_labels(at, folder, read=read, each=each, **given)
    click.echo(json.dumps(document, indent=1, ensure_ascii=False) if as_json else "\n".join(labels_lines(document)))
    click.echo(f"report: {folder / 'labels.html'}", err=as_json)
    return 0
