"""Names of the command line that version 1.0 retires, each with its replacement.

`COMMANDS`, `OPTIONS`, and `VARIABLES` are the only list of such names. A command line with a
retired name fails with exit code 2 and one line that names the replacement. Version 1.1 removes
this file.
"""

from collections.abc import Mapping

import click

_TABLE = "append the rows of the finished run with deltalake.write_deltalake(URL, ray_app.load_run(RUN).table(), mode='append')"
_REUSE = "score a list of one file per SHA-256, which DuckDB writes (UPGRADING.md has the query)"
_RESCORE = "use touchstone score features::RUN --detector CARD --out NEW, or --identifier CARD"

COMMANDS: dict[str, str] = {
    # Short names from before 0.15.
    "report": "use touchstone runs report",
    "gallery": "use touchstone runs gallery",
    "masks": "use touchstone runs masks",
    "audit": "use touchstone runs audit",
    "split": "use touchstone data split",
    # Runs.
    "rescore": _RESCORE,
    "runs rescore": _RESCORE,
    # Evaluation.
    "evidence": "use touchstone results RUN --image URI --json, and touchstone check FILE --html PAGE",
    "runs evidence": "use touchstone results RUN --image URI --json, and touchstone check FILE --html PAGE",
    "ensembles suggest": "use touchstone detectors calibrate RUN --rule stacked, or touchstone evaluate RUN to compare detectors",
    "leaderboard": "use touchstone runs leaderboard",
    # Data.
    "runs filter": "use touchstone results RUN --verdict real --out LIST.csv, then touchstone data pack list::LIST.csv --out DIR",
    "filter": "use touchstone results RUN --verdict real --out LIST.csv, then touchstone data pack list::LIST.csv --out DIR",
    # Detectors and training.
}
"""Retired commands, such as `runs rescore`, each with the instruction to use instead."""

OPTIONS: dict[str, dict[str, str]] = {
    # Runs.
    "demo": {"--photos": "use touchstone evaluate FOLDER --layout folders --out DIR"},
    "plan": {"--table": _TABLE},
    "score": {
        "--events": "use --follow 5m",
        "--reuse": _REUSE,
        "--stability": "use --perturb jpeg:75 and compare the column views with the column score",
        "--table": _TABLE,
    },
    # Evaluation.
    "compare": {"--out": "use --json > comparison.json"},
    "detectors calibrate": {
        "--method": "leave the option out; every calibration is Platt scaling",
        "--regroup": "give all images of a group the same value in the column `part` of the labels, or leave the column out",
    },
    "detectors show": {"--yaml": "leave the option out; the card is printed as YAML"},
    "results": {
        "--fdr": "use --verdict fake, and touchstone runs audit RUN --draw N --flagged --out DIR to bound the number of reals among them"
    },
    # Data.
    "data split": {
        "--prompts": "equal prompts stay together; give images of similar prompts the same value in the column `group` of the index"
    },
    "data generate": {
        "--like": "use touchstone data generate … --set 'encode.format=[JPEG,PNG]' --set 'encode.quality=[70,95]'"
    },
    # Serving.
    "serve": {
        "--arena": "use touchstone runs audit RUN --draw N --out DIR, whose page shows images without verdicts"
    },
    # Detectors and training.
    "detectors add": {
        "--card": "use touchstone detectors add FILE --as NAME, or weights.uri with the path of the file in your card",
        "--option": "write the argument into a copy of examples/detectzoo_adapter.py or examples/imdlbenco_adapter.py",
    },
}
"""Retired options by command, such as `data split`, each with the instruction to use instead."""

VARIABLES: dict[str, str] = {
    "TOUCHSTONE_CONNECTIONS": "use --set limits.max_connections=N, limits.header_timeout_s=S, or limits.max_header_bytes=N; "
    "with --ray, use configs/proxy/nginx.conf",
    "TOUCHSTONE_HAPROXY_ON_LOOPBACK": "set tokens, or access.anonymous: true",
}
"""Retired environment variables of `touchstone serve`, each with what to use instead."""


def explain_retired_name(
    error: click.ClickException, short_names: Mapping[str, str]
) -> click.ClickException:
    """Replace click's error "no such option" if the option is a retired one.

    Args:
        error: The error that click raised for the command line.
        short_names: The group of each command that may be typed without its group, such as
            `{"pack": "data"}` for `touchstone data pack`.

    Returns:
        An error that names the replacement, or `error` itself if no option is retired.
    """
    if not isinstance(error, click.NoSuchOption) or error.ctx is None:
        return error
    path = error.ctx.command_path.removeprefix("touchstone ")
    path = f"{short_names[path]} {path}" if path in short_names else path
    replacement = OPTIONS.get(path, {}).get(error.option_name)
    return (
        click.ClickException(f"'{path} {error.option_name}' is retired: {replacement}")
        if replacement
        else error
    )


def refuse_retired_command(path: str) -> None:
    """Raise an error that names the replacement if a command is retired.

    Args:
        path: The command without `touchstone`, such as "runs rescore".

    Raises:
        click.ClickException: If the command is retired.
    """
    if replacement := COMMANDS.get(path):
        raise click.ClickException(f"'{path}' is retired: {replacement}")


def refuse_retired_variables(environment: Mapping[str, str]) -> None:
    """Raise an error that names the replacement if a retired environment variable is set.

    `touchstone serve` calls this function when it starts.

    Args:
        environment: The environment variables by name.

    Raises:
        click.ClickException: If a variable of `VARIABLES` is set and not empty.
    """
    for name, replacement in VARIABLES.items():
        if environment.get(name):
            raise click.ClickException(f"{name} is retired: {replacement}")
