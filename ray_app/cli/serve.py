"""`touchstone serve`: the endpoint on this machine, until interrupted."""

import signal
import threading
from typing import Any

import click

from ray_app.cli.options import licence_option


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on. Any but this machine's own needs tokens.")
@click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True, help="Port to listen on.")
@click.option(
    "--config",
    "config_file",
    metavar="FILE",
    help="Take the settings from a Serve config (its `args` and `logging_config`), or a shipped one by name (laptop, ensemble, published).",
)
@click.option(
    "--ensemble", "ensembles", multiple=True, metavar="NAME|PATH", help="Serve this ensemble; repeatable, the first is the default."
)
@click.option(
    "--optional-detector",
    "optional",
    multiple=True,
    metavar="NAME|PATH",
    help="Load this detector too, for requests that name it; it enters no verdict. Repeatable.",
)
@licence_option
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    help="Any setting of the endpoint, for example --set limits.deadline_s=10; docs/serving.md has them; repeatable.",
)
def serve(
    host: str,
    port: int,
    config_file: str | None,
    ensembles: tuple[str, ...],
    optional: tuple[str, ...],
    accepted: tuple[str, ...],
    assignments: tuple[str, ...],
) -> int:
    """Put an ensemble behind HTTP: an API and a page on this machine.

    Its address goes to stdout once it can score. Ctrl-C ends it, after the requests at work. Without tokens only this machine is answered.

    \b
    touchstone serve
    touchstone serve --ensemble fusion-clip-corvi --port 8080
    TOUCHSTONE_TOKENS=… touchstone serve --host 0.0.0.0

    On a cluster: `serve deploy configs/serve/ensemble.yaml`. Tokens, limits, metrics, updates: docs/serving.md.
    """
    from ray_app.cluster.config import ClusterConfig
    from ray_app.config import validate
    from ray_app.serving import ServeConfig
    from ray_app.serving.local import endpoint, read_file

    args, where, logs = read_file(config_file)
    given = {"ensembles": ensembles, "optional_detectors": optional, "accept_licences": accepted}
    args |= {key: list(value) for key, value in given.items() if value}
    config: Any = validate(args, ServeConfig, where=where, overrides=assignments)
    click.echo("starting: Ray, then the detectors", err=True)
    with endpoint(config, host, port, ClusterConfig(), logs) as url:
        click.echo(f"{url}/" if config.page else url)
        click.echo(f"ready: {', '.join(config.ensembles)}; Ctrl-C ends it", err=True)
        _wait_for_the_end()
        click.echo("ending: requests at work are finished", err=True)
    return 0


def _wait_for_the_end() -> None:
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    while not ended.wait(3600):
        pass
