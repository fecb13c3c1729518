"""`touchstone score --endpoint URL`: local files are sent to an endpoint, and its verdicts shown.

`touchstone serve`: the endpoint on this machine, until interrupted.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from ray_app.cli import options
from ray_app.cli.options import DETECTOR, ENSEMBLE


@click.command()
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on. One that other machines reach needs tokens.",
)
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    default=8000,
    show_default=True,
    help="Port to listen on.",
)
@click.option(
    "--config",
    "config_file",
    metavar="FILE",
    help="Take the settings from a Serve config (its `args` and `logging_config`), or a shipped one by name (laptop, ensemble, published).",
)
@click.option(
    "--ensemble",
    "ensembles",
    type=ENSEMBLE,
    multiple=True,
    metavar="NAME|PATH",
    help="Serve this ensemble; repeatable, the first is the default.",
)
@options.fpr_option
@click.option(
    "--optional-detector",
    "optional",
    type=DETECTOR,
    multiple=True,
    metavar="NAME|PATH",
    help="Load this detector too, for requests that name it; it has no part in verdicts. Repeatable.",
)
@options.licence_option
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    help="Any setting of the endpoint, for example --set limits.deadline_s=10; docs/serving.md has them; repeatable.",
)
@click.option(
    "--workers",
    type=click.IntRange(1),
    help="Worker processes, each with all detectors.  [default: one per core, up to 4; 1 on a GPU]",
)
@click.option(
    "--ray",
    "on_ray",
    is_flag=True,
    help="Run on a Ray of this command's own, as a cluster would: replicas, updates, autoscaling.",
)
def serve(
    host: str,
    port: int,
    workers: int | None,
    on_ray: bool,
    config_file: str | None,
    ensembles: tuple[str, ...],
    fpr: float | None,
    optional: tuple[str, ...],
    accepted: tuple[str, ...],
    assignments: tuple[str, ...],
) -> int:
    """Serve an ensemble over HTTP, with an API and a page.

    \b
    touchstone serve --ensemble fusion-clip-corvi --port 8080

    Without tokens it answers this machine alone. On a cluster: `serve deploy configs/serve/ensemble.yaml`.
    """
    from ray_app.cli.retired import refuse_retired_variables
    from ray_app.config import validate
    from ray_app.serving import ServeConfig
    from ray_app.serving.config import read_file

    refuse_retired_variables(os.environ)
    args, where, logs = read_file(config_file)
    given = {"ensembles": ensembles, "optional_detectors": optional, "accept_licences": accepted}
    args |= {key: list(value) for key, value in given.items() if value}
    if fpr is not None:
        args["fpr"] = fpr
    config: Any = validate(args, ServeConfig, where=where, overrides=assignments)

    stdout = sys.stdout  # While the command is connected to Ray, sys.stdout is stderr.

    def announce(url: str) -> None:
        click.echo(f"{url}/" if config.page else url, file=stdout)
        click.echo(f"ready: {', '.join(config.ensembles)}; Ctrl-C ends it", err=True)

    if not (on_ray or os.environ.get("RAY_ADDRESS")):
        from ray_app.serving import server

        click.echo("starting: loading the detectors", err=True)
        server.serve(config, host, port, announce, workers=workers, logs=logs)
        click.echo("ended; all running requests were finished", err=True)
        return 0
    if workers is not None:
        raise click.UsageError(
            "--workers is for the server without Ray; with --ray: --set replica.replicas=N"
        )
    from ray_app.cluster.config import ClusterConfig
    from ray_app.serving.ray_server import endpoint

    click.echo("starting: Ray first, then the detectors", err=True)
    with endpoint(config, host, port, ClusterConfig(), logs) as url:
        ended = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: ended.set())
        announce(url)
        while not ended.wait(3600):
            pass
        click.echo("ending; running requests are being finished", err=True)
    return 0


Command = TypeVar("Command", bound=Callable[..., Any])

TOKEN_VARIABLE = "TOUCHSTONE_TOKEN"  # noqa: S105 - the name of a variable
# what means something here
APPLY = frozenset({"source", "endpoint", "token_file", "ensemble", "detectors", "fpr", "as_json"})


def endpoint_options(command: Command) -> Command:
    """`--endpoint URL` and `--token-file FILE`."""
    text = (
        "Send local files and folders to this endpoint instead: verdicts on stdout, no --out. "
        "--ensemble is then one that it serves, --fpr one of its operating points, --detector an optional one of its detectors, "
        "shown by --json."
    )
    token = click.option(
        "--token-file",
        metavar="FILE",
        help=f"File with the endpoint's token.  [default: ${TOKEN_VARIABLE}, if set]",
    )
    return click.option("--endpoint", metavar="URL", help=text)(token(command))


def score_at_endpoint(
    url: str | None,
    source: Sequence[str],
    *,
    ensemble: str | None,
    detectors: Sequence[str],
    fpr: float | None,
    token_file: str | None,
    as_json: bool,
) -> int:
    """Show a verdict per file: a table, or JSON lines as they come. What had come before an error
    is shown all the same.

    `detectors`: optional ones, asked besides. Raises ConfigError for what was typed and what the
    endpoint does not allow, ClusterError where it cannot be reached.
    """
    from ray_app.errors import ConfigError
    from ray_app.serving.client import EndpointClient
    from ray_app.serving.local_files import find_local_files

    if not url:
        raise ConfigError("--token-file needs --endpoint URL")
    _refuse_what_does_not_apply(click.get_current_context())
    if detectors and not as_json:
        raise click.UsageError(
            "--detector with --endpoint needs --json: the table shows verdicts, in which optional detectors have no part."
        )
    files = list(find_local_files(source))
    with EndpointClient(url, _token(token_file)) as endpoint:
        answers = endpoint.score(files, ensemble, detectors=detectors, fpr=fpr)
        requested = ensemble or next(
            (one.name for one in endpoint.describe().ensembles if one.default), None
        )
        demonstration = any(
            one.demonstration for one in endpoint.describe().ensembles if one.name == requested
        )
        if not as_json:
            _print_table(answers, demonstration)
            return 0
        for answer in answers:
            click.echo(options.json_text(_row(answer)))
    return 0


def _print_table(answers: Iterator[Mapping[str, Any]], demonstration: bool) -> None:
    from ray_app.reports import format as wording
    from ray_app.reports import verdict_table
    from ray_app.reports.text import terminal_width

    rows: list[dict[str, Any]] = []
    try:  # what came before an error is shown
        for answer in answers:
            rows.append(
                _row(answer) | {"provenance": (answer.get("image") or {}).get("provenance")}
            )
    finally:
        if rows:
            click.echo(verdict_table(rows, terminal_width()))
        for line in {wording.visible(row["error_rates"]) for row in rows if row.get("error_rates")}:
            click.echo(line)
    if demonstration:
        click.echo(wording.DEMONSTRATION)


def _row(answer: Mapping[str, Any]) -> dict[str, Any]:
    """An answer with the `uri` that `touchstone results` would give the file."""
    from ray_app.storage.urls import local_uri

    uri = local_uri(os.path.abspath(answer["name"]))
    return {"uri": uri, **answer, "name": os.path.basename(uri)}


def _token(file: str | None) -> str | None:
    """The first line of the file, else the environment's. Raises ConfigError."""
    from ray_app.errors import ConfigError

    if file is None:
        return os.environ.get(TOKEN_VARIABLE, "").strip() or None
    try:
        token = Path(file).read_text(encoding="utf-8").strip().partition("\n")[0].strip()
    except (OSError, UnicodeDecodeError):
        raise ConfigError(
            f"--token-file {file}: it cannot be read",
            hint="name a file whose first line is the token",
        ) from None
    if not token:
        raise ConfigError(
            f"--token-file {file}: it is empty", hint="its first line should be the token"
        )
    return token


def _refuse_what_does_not_apply(context: click.Context) -> None:
    """An option that would do nothing is refused, so that nobody believes that it did."""
    given = click.core.ParameterSource.COMMANDLINE
    idle = [
        option.opts[0]
        for option in context.command.get_params(context)
        if option.name is not None
        and option.name not in APPLY
        and context.get_parameter_source(option.name) is given
    ]
    if idle:
        verb = "does" if len(idle) == 1 else "do"
        raise click.UsageError(
            f"{', '.join(idle)} {verb} not apply with --endpoint: the endpoint has settings of its own for that."
        )
