"""The commands `ensembles`, `recipes`, `protocols`, `config`, and `doctor` of `touchstone`.

`ensembles`, `recipes`, and `protocols` list and show the YAML files that are shipped. A recipe
configures a training, and a protocol an evaluation.
"""

import json
import platform
import textwrap
from pathlib import Path
from typing import Any

import click

from ray_app import __version__
from ray_app.cli import options
from ray_app.errors import ExitCode, TouchstoneError, describe_error

_SHELLS = ("bash", "zsh", "fish")


def _make_commands(kind: str, noun: str, example: str) -> tuple[click.Command, click.Command]:
    """Make the commands `list` and `show` for the shipped YAML files of one kind.

    Args:
        kind: The kind of config files, such as `ensembles`.
        noun: The noun for one of them in the help, such as "ensemble".
        example: A shipped name for the example in the help.
    """

    def list_shipped(as_json: bool) -> int:
        from ray_app.config import named_configs
        from ray_app.reports.text import UNLIMITED, table, terminal_width

        entries = [
            {"name": name, "title": _read_title(path), "file": str(path)}
            for name, path in named_configs(kind).items()
        ]
        options.echo_document(
            entries,
            table(
                ["name", "what it is"],
                [[entry["name"], entry["title"]] for entry in entries],
                terminal_width(UNLIMITED),
            ),
            as_json,
        )
        return 0

    def show_shipped(name: str, as_json: bool) -> int:
        from ray_app.config import find_config, read_mapping

        path = find_config(kind, name)
        if as_json:
            click.echo(options.to_json(read_mapping(path), indent=2, default=str))
        else:
            click.echo(f"# {path}\n{path.read_text(encoding='utf-8-sig')}", nl=False)
        return 0

    group = f"{noun}s"
    list_shipped.__doc__ = f"List the shipped {group} by name.\n\n\b\ntouchstone {group} list\n"
    show_shipped.__doc__ = (
        f"Print the YAML file of one of the {group}.\n\n\b\ntouchstone {group} show {example}\n"
    )
    return (
        click.command("list")(options.json_option(list_shipped)),
        click.command("show")(
            click.argument("name", type=options.ShippedName(kind), metavar="NAME|PATH")(
                options.json_option(show_shipped)
            )
        ),
    )


def _read_title(path: Path) -> str:
    from ray_app.config import read_mapping

    data = read_mapping(path)
    return str(data.get("title") or data.get("name") or path.stem)


ENSEMBLES = _make_commands("ensembles", "ensemble", "default")
RECIPES = _make_commands("train", "recipe", "quick")
PROTOCOLS = _make_commands("evaluate", "protocol", "openfake-v1")


@click.command("show")
@click.argument("file", type=options.SCORE, required=False, metavar="[NAME|FILE]")
@options.overrides
@options.json_option
def show_config(file: str | None, assignments: tuple[str, ...], as_json: bool) -> int:
    """Print every setting of a scoring run with its value, as YAML for --config.

    \b
    touchstone config show overnight --set batch_slots=32
    """
    from ray_app.scoring import ScoreConfig

    settings = options.load_config("score", file, ScoreConfig, {}, assignments)
    click.echo(
        json.dumps(settings.model_dump(mode="json"), indent=2)
        if as_json
        else options.to_yaml(settings),
        nl=as_json,
    )
    return 0


@click.group("trust")
def trust_lists() -> None:
    """Download and show the lists of trusted signers of Content Credentials (C2PA)."""


@trust_lists.command("update")
@click.option(
    "--address",
    "addresses",
    multiple=True,
    metavar="NAME=URL|PATH",
    help="Read the list NAME from this URL or path, such as a mirror; repeatable. Names: official, time-stamps, interim, interim-signers.",
)
@options.json_option
def update_trust(addresses: tuple[str, ...], as_json: bool) -> int:
    """Download the official and the older interim C2PA trust lists into the cache.

    They have the certificates of trusted signers and time-stamp authorities.

    \b
    touchstone config trust update
    """
    from ray_app.detectors.weights import is_offline
    from ray_app.images.provenance import trust_lists
    from ray_app.images.provenance.trust_lists import ADDRESSES

    overrides = dict(pair.partition("=")[::2] for pair in addresses)
    if invalid := [
        name for name, address in overrides.items() if name not in ADDRESSES or not address
    ]:
        raise click.UsageError(
            f"--address must be NAME=URL, where NAME is one of {', '.join(ADDRESSES)}, got {invalid[0]}"
        )
    failed = 0
    for name, file, failure in trust_lists.update_cache(
        ADDRESSES | overrides, offline=is_offline()
    ):
        failed += failure is not None
        if failure is not None:
            consequence = (
                "the cache has no earlier copy"
                if file is None
                else f"the copy of {file.fetched_at[:10]} stays in use"
            )
            click.echo(f"{name}: {failure}; {consequence}", err=True)
    _show_trust(as_json)
    return ExitCode.CLUSTER if failed else ExitCode.DONE


@trust_lists.command("show")
@options.json_option
def show_trust(as_json: bool) -> int:
    """Show the cached C2PA trust lists, with their addresses, dates, and SHA-256.

    They have the certificates of trusted signers and time-stamp authorities.

    \b
    touchstone config trust show
    """
    _show_trust(as_json)
    return ExitCode.DONE


def _show_trust(as_json: bool) -> None:
    from ray_app.config import cache_folder
    from ray_app.images.provenance.trust_lists import UPDATE, cached_files

    files = cached_files()
    lines = [
        f"{name}: {file.certificates} certificates, {file.fetched_at[:10]}, sha256 {file.sha256}, from {file.address}"
        for name, file in files.items()
    ]
    lines += (
        [f"in {cache_folder('trust')}; used if the config does not name another list"]
        if files
        else [f"no trust list in the cache: {UPDATE}"]
    )
    options.echo_document({name: file.model_dump() for name, file in files.items()}, lines, as_json)


@click.command()
@click.argument("shell", type=click.Choice(_SHELLS))
def completion(shell: str) -> int:
    """Print the completion script for your shell.

    \b
    eval "$(touchstone config completion bash)"      in ~/.bashrc; zsh: in ~/.zshrc, after compinit
    touchstone config completion fish > ~/.config/fish/completions/touchstone.fish
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    root: Any = click.get_current_context().find_root().command
    click.echo(kind(root, {}, "touchstone", "_TOUCHSTONE_COMPLETE").source())
    return 0


@click.command()
@options.json_option
def doctor(as_json: bool) -> int:
    """Check that this machine has what Touchstone needs, and show how to fix what is missing.

    \b
    touchstone doctor

    FAIL marks a problem because of which `check` or `score` would fail. This command then exits
    with the code that they would exit with. `note` marks advice that can wait. Include the output
    in a bug report.
    """
    from ray_app.cluster.machine import CHECKS

    code, checks = ExitCode.DONE, list[dict[str, str]]()
    lines = [f"Touchstone {__version__}, Python {platform.python_version()}, {platform.platform()}"]
    for name, check in CHECKS.items():
        failed = ExitCode.DONE
        try:
            result, todo = check()
        except TouchstoneError as error:
            failed, result, todo = error.exit_code, error.message, error.hint or ""
        except Exception as error:  # A damaged installation can raise any exception.
            failed, result, todo = (
                ExitCode.DETECTOR,
                describe_error(error),
                "reinstall Touchstone; if the error remains, report it",
            )
        code, state = code or failed, "FAIL" if failed else "note" if todo else "ok"
        checks.append({"name": name, "state": state, "found": result, "todo": todo})
        line = f"{state:4}  {name:10}  {result}{' → ' * bool(todo)}{todo}"
        lines += textwrap.wrap(line, 100, subsequent_indent=" " * 18, break_on_hyphens=False)
    options.echo_document(
        {"machine": lines[0], "exit_code": int(code), "checks": checks}, lines, as_json
    )
    return code
