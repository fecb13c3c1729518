"""`touchstone leaderboard`: systems of many evaluations on one page."""

import json
import shutil
from collections.abc import Mapping
from typing import Any

import click


@click.command()
@click.argument("evaluations", metavar="RUN…", nargs=-1, required=True)
@click.option("--out", required=True, metavar="FILE.html", help="Where the page goes; any fsspec URL.")
def leaderboard(evaluations: tuple[str, ...], out: str) -> int:
    """Put systems side by side: RUN… are what `touchstone evaluate --out` wrote, folders or their metrics.json.

    Only systems that were measured on the same images by the same rules stand in one list, in order of the lower end of their AUC's
    interval. One page that loads nothing and runs nothing.

    \b
    touchstone leaderboard figures-a figures-b s3://bucket/figures --out leaderboard.html
    """
    from pydantic import ValidationError

    from ray_app.errors import ConfigError
    from ray_app.reports.leaderboard import leaderboard_lines, render_leaderboard
    from ray_app.storage import Store, strip_secrets

    documents = [(strip_secrets(place), _document(place)) for place in dict.fromkeys(evaluations)]
    folder, slash, name = out.rpartition("/")
    if not name.endswith((".html", ".htm")):
        raise ConfigError(f"--out {out}: not the name of an HTML file", hint="for example --out leaderboard.html")
    try:
        page = render_leaderboard(documents)
    except ValidationError as error:
        raise ConfigError(f"not an evaluation's metrics.json: {error}", hint="touchstone evaluate writes it") from None
    Store.open(folder or slash or ".").write(name, page.encode())
    click.echo("\n".join(leaderboard_lines(documents, shutil.get_terminal_size((120, 24)).columns)))
    click.echo(f"page: {strip_secrets(out)}")
    return 0


def _document(place: str) -> Mapping[str, Any]:
    """The document of an evaluation, by its folder or its file. Raises ConfigError."""
    from ray_app.errors import ConfigError
    from ray_app.storage import Store, strip_secrets

    folder, name = (place.rpartition("/")[0] or ".", place.rpartition("/")[2]) if place.endswith(".json") else (place, "metrics.json")
    try:
        document = json.loads(Store.open(folder).read(name))
    except FileNotFoundError:
        hint = "touchstone evaluate writes it into the folder that --out names"
        raise ConfigError(f"{strip_secrets(place)}: no metrics.json there", hint=hint) from None
    except ValueError as error:
        raise ConfigError(f"{strip_secrets(place)}: not JSON: {error}") from None
    if not isinstance(document, dict) or "systems" not in document:
        raise ConfigError(f"{strip_secrets(place)}: not an evaluation's metrics.json", hint="touchstone evaluate writes it")
    return document
