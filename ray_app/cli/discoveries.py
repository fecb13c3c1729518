"""`touchstone results --fdr`: the part of `results` that lists fakes with a known share of false ones."""

import json
import shutil
from itertools import islice

import click


def show_discoveries(run: str, rate: float, limit: int | None, as_json: bool) -> int:
    """Print the list at a rate, as a table or JSON lines (each with `p_value`); on stderr what it promises and under what assumption."""
    from ray_app.auditing.discovering import discover
    from ray_app.reports import verdict_table

    found = discover(run, rate)
    for remark in found.remarks:
        click.echo(f"fdr  {remark}", err=True)
    if as_json:
        for row in islice(found.rows(), limit):
            click.echo(json.dumps(row | {"provenance": json.loads(row.get("provenance") or "null")}, default=str, ensure_ascii=False))
        return 0
    shown = list(islice(found.rows(), limit or 50))
    click.echo(verdict_table(shown, shutil.get_terminal_size((120, 24)).columns))
    if len(shown) < found.list.count:
        click.echo(f"… the first {len(shown)} of {found.list.count:,}; --limit or --json shows more")
    return 0
