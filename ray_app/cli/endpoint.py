"""Run an HTTP endpoint that scores images (`serve`), and send files to it.

`score_at_endpoint` implements the command `touchstone score --endpoint URL`.
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
    help="Address to listen on. An address that other machines can reach requires tokens.",
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
    help="Serve config to read settings from (its `args` and `logging_config`): a YAML file, or a shipped name: laptop, ensemble, published.",
)
@click.option(
    "--ensemble",
    "ensembles",
    type=ENSEMBLE,
    multiple=True,
    metavar="NAME|PATH",
    help="Serve this ensemble; repeatable. Requests that name no ensemble use the first one.",
)
@options.fpr_option
@click.option(
    "--optional-detector",
    "optional",
    type=DETECTOR,
    multiple=True,
    metavar="NAME|PATH",
    help="Also load this detector for requests that name it; repeatable. It does not affect verdicts.",
)
@options.licence_option
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    help="Set any key of the endpoint's config, for example limits.deadline_s=10; repeatable. docs/serving.md links to all keys.",
)
@click.option(
    "--workers",
    type=click.IntRange(1),
    help="Number of worker processes, each with all detectors.  [default: one per core, up to 4; 1 on a GPU]",
)
@click.option(
    "--ray",
    "on_ray",
    is_flag=True,
    help="Start a local Ray cluster and serve with Ray Serve: replicas, rolling updates, autoscaling.",
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
    """Serve an ensemble over HTTP, with an API and a web page.

    \b
    touchstone serve --ensemble fusion-clip-corvi --port 8080

    If no access tokens are set, for example in $TOUCHSTONE_TOKENS, the server accepts requests from
    this machine only. To serve on a cluster, run the command of Ray Serve:
    `serve deploy configs/serve/ensemble.yaml`.
    """
    from ray_app.cli.retired import refuse_retired_variables
    from ray_app.config import validate
    from ray_app.serving import ServeConfig
    from ray_app.serving.config import read_file

    refuse_retired_variables(os.environ)
    args, source, logs = read_file(config_file)
    values = {"ensembles": ensembles, "optional_detectors": optional, "accept_licences": accepted}
    args |= {key: list(value) for key, value in values.items() if value}
    if fpr is not None:
        args["fpr"] = fpr
    config: Any = validate(args, ServeConfig, where=source, overrides=assignments)

    stdout = sys.stdout  # While the command is connected to Ray, sys.stdout is stderr.

    def announce(url: str) -> None:
        click.echo(f"{url}/" if config.page else url, file=stdout)
        click.echo(f"ready: {', '.join(config.ensembles)}; press Ctrl-C to stop", err=True)

    if not (on_ray or os.environ.get("RAY_ADDRESS")):
        from ray_app.serving import server

        click.echo("starting: loading the detectors", err=True)
        server.serve(config, host, port, announce, workers=workers, logs=logs)
        click.echo("stopped; all running requests were finished", err=True)
        return 0
    if workers is not None:
        raise click.UsageError(
            "--workers cannot be used with Ray: use --set replica.replicas=N instead"
        )
    from ray_app.cluster.config import ClusterConfig
    from ray_app.serving.ray_server import endpoint

    click.echo("starting: loading Ray, then the detectors", err=True)
    with endpoint(config, host, port, ClusterConfig(), logs) as url:
        stop = threading.Event()
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, lambda *_: stop.set())
        announce(url)
        while not stop.wait(3600):
            pass
        click.echo("stopping; finishing the running requests", err=True)
    return 0


Command = TypeVar("Command", bound=Callable[..., Any])

TOKEN_VARIABLE = "TOUCHSTONE_TOKEN"  # noqa: S105 - the name of a variable
# Parameters of `score` that have an effect with --endpoint.
ENDPOINT_PARAMETERS = frozenset(
    {"source", "endpoint", "token_file", "ensemble", "detectors", "fpr", "as_json"}
)


def endpoint_options(command: Command) -> Command:
    """Add the options `--endpoint URL` and `--token-file FILE` to a click command.

    With them, `touchstone score` sends files to a running endpoint; see `score_at_endpoint`.
    """
    text = (
        "Send local files and folders to this endpoint, and print its verdicts instead of writing a run. "
        "--ensemble must then be an ensemble that the endpoint serves, --fpr one of its operating points, and --detector one of its "
        "optional detectors, whose scores --json shows."
    )
    token = click.option(
        "--token-file",
        metavar="FILE",
        help=f"File whose first line is the token of the endpoint.  [default: ${TOKEN_VARIABLE}, if set]",
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
    """Send local files to an endpoint of `touchstone serve`, and print its verdicts.

    JSON lines are printed as responses arrive. If an error occurs, the responses that arrived
    before it are printed.

    Args:
        url: URL of the endpoint. None if the user did not set `--endpoint`, which is an error.
        source: Local files and folders.
        ensemble: An ensemble that the endpoint serves. None for its default.
        detectors: Optional detectors of the endpoint to run in addition. Only JSON lines show their
            scores.
        fpr: False-positive rate of one of the ensemble's operating points. None for the default.
        token_file: File whose first line is the token. None for $TOUCHSTONE_TOKEN, if it is set.
        as_json: Whether to print JSON lines instead of a table.

    Returns:
        The exit code 0.

    Raises:
        click.UsageError: If the user set an option that has no effect with `--endpoint`.
        ConfigError: If an option is invalid, or the endpoint does not accept it.
        StorageError: If a folder in `source` cannot be listed.
        ClusterError: If the endpoint is unreachable.
    """
    from ray_app.errors import ConfigError
    from ray_app.serving.client import EndpointClient
    from ray_app.serving.local_files import find_local_files

    if not url:
        raise ConfigError("--token-file requires --endpoint URL")
    _reject_unused_options(click.get_current_context())
    if detectors and not as_json:
        raise click.UsageError(
            "--detector with --endpoint requires --json: the table shows verdicts, which optional detectors do not affect."
        )
    files = list(find_local_files(source))
    with EndpointClient(url, _read_token(token_file)) as endpoint:
        answers = endpoint.score(files, ensemble, detectors=detectors, fpr=fpr)
        requested = ensemble or next(
            (served.name for served in endpoint.describe().ensembles if served.default), None
        )
        is_demonstration = any(
            served.demonstration
            for served in endpoint.describe().ensembles
            if served.name == requested
        )
        if not as_json:
            _print_table(answers, is_demonstration)
            return 0
        for answer in answers:
            click.echo(options.to_json(_make_row(answer)))
    return 0


def _print_table(answers: Iterator[Mapping[str, Any]], is_demonstration: bool) -> None:
    from ray_app.reports import format as text_format
    from ray_app.reports import verdict_table
    from ray_app.reports.check import reason_lines
    from ray_app.reports.text import terminal_width

    rows: list[dict[str, Any]] = []
    try:
        for answer in answers:
            rows.append(
                _make_row(answer) | {"provenance": (answer.get("image") or {}).get("provenance")}
            )
    finally:  # Show the rows that arrived before an error.
        if rows:
            click.echo(verdict_table(rows, terminal_width()))
        for line in reason_lines([_with_reason(row) for row in rows]):
            click.echo(line)
        for line in {
            text_format.escape_invisible(row["error_rates"])
            for row in rows
            if row.get("error_rates")
        }:
            click.echo(line)
    if is_demonstration:
        click.echo(text_format.DEMONSTRATION)


def _with_reason(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row with its file name as `uri`, and the message of its error as `detail`."""
    return {**row, "uri": row["name"], "detail": (row.get("error") or {}).get("message")}


def _make_row(answer: Mapping[str, Any]) -> dict[str, Any]:
    """Return a response as a row, with the `uri` that `touchstone results` would show."""
    from ray_app.storage.urls import local_uri

    uri = local_uri(os.path.abspath(answer["name"]))
    return {"uri": uri, **answer, "name": os.path.basename(uri)}


def _read_token(file: str | None) -> str | None:
    """Return the first line of the file, or $TOUCHSTONE_TOKEN if `file` is None."""
    from ray_app.errors import ConfigError

    if file is None:
        return os.environ.get(TOKEN_VARIABLE, "").strip() or None
    try:
        token = Path(file).read_text(encoding="utf-8-sig").strip().partition("\n")[0].strip()
    except (OSError, UnicodeDecodeError):
        raise ConfigError(
            f"--token-file {file}: the file cannot be read",
            hint="name a readable file whose first line is the token",
        ) from None
    if not token:
        raise ConfigError(
            f"--token-file {file}: the file is empty",
            hint="write the token into the first line of the file",
        )
    return token


def _reject_unused_options(context: click.Context) -> None:
    """Raise UsageError if the user set an option that has no effect with `--endpoint`."""
    command_line = click.core.ParameterSource.COMMANDLINE
    unused = [
        option.opts[0]
        for option in context.command.get_params(context)
        if option.name is not None
        and option.name not in ENDPOINT_PARAMETERS
        and context.get_parameter_source(option.name) is command_line
    ]
    if unused:
        verb = "does" if len(unused) == 1 else "do"
        raise click.UsageError(
            f"{', '.join(unused)} {verb} not apply with --endpoint: the endpoint has its own settings."
        )
