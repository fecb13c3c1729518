"""What is shipped by name (`touchstone ensembles`, `recipes`, `protocols`), settings, completion in
a shell, `touchstone doctor`.
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


def _catalogue(kind: str, noun: str, example: str) -> tuple[click.Command, click.Command]:
    """The commands `list` and `show` for the shipped YAML files of one kind."""

    def list_shipped(as_json: bool) -> int:
        from ray_app.config import named_configs
        from ray_app.reports.text import UNLIMITED, table, terminal_width

        entries = [
            {"name": name, "title": _title(path), "file": str(path)}
            for name, path in named_configs(kind).items()
        ]
        options.echo_document(
            entries,
            table(
                ["name", "what it is"],
                [[one["name"], one["title"]] for one in entries],
                terminal_width(UNLIMITED),
            ),
            as_json,
        )
        return 0

    def show_shipped(name: str, as_json: bool) -> int:
        from ray_app.config import find_config, read_mapping

        path = find_config(kind, name)
        if as_json:
            click.echo(json.dumps(read_mapping(path), indent=2, ensure_ascii=False, default=str))
        else:
            click.echo(f"# {path}\n{path.read_text(encoding='utf-8')}", nl=False)
        return 0

    group = f"{noun}s"
    list_shipped.__doc__ = (
        f"List the {group} that are shipped, by name.\n\n\b\ntouchstone {group} list\n"
    )
    show_shipped.__doc__ = (
        f"Show one of the {group}: its YAML file.\n\n\b\ntouchstone {group} show {example}\n"
    )
    return (
        click.command("list")(options.as_json(list_shipped)),
        click.command("show")(
            click.argument("name", type=options.ShippedName(kind), metavar="NAME|PATH")(
                options.as_json(show_shipped)
            )
        ),
    )


def _title(path: Path) -> str:
    from ray_app.config import read_mapping

    data = read_mapping(path)
    return str(data.get("title") or data.get("name") or path.stem)


ENSEMBLES = _catalogue("ensembles", "ensemble", "default")
RECIPES = _catalogue("train", "recipe", "quick")
PROTOCOLS = _catalogue("evaluate", "protocol", "openfake-v1")


@click.command("show")
@click.argument("file", type=options.SCORE, required=False, metavar="[NAME|FILE]")
@options.overrides
@options.as_json
def show_config(file: str | None, assignments: tuple[str, ...], as_json: bool) -> int:
    """Print every setting of a scoring run with its value, as a file for --config.

    \b
    touchstone config show overnight --set batch_slots=32
    """
    from ray_app.scoring import ScoreConfig

    settings = options.configured("score", file, ScoreConfig, {}, assignments)
    click.echo(
        json.dumps(settings.model_dump(mode="json"), indent=2)
        if as_json
        else options.shown(settings),
        nl=as_json,
    )
    return 0


@click.group("trust")
def trust_lists() -> None:
    """Fetch and show the lists of whose Content Credentials (C2PA) are trusted."""


@trust_lists.command("update")
@click.option(
    "--address",
    "addresses",
    multiple=True,
    metavar="NAME=URL|PATH",
    help="Where one list is, for a mirror or a machine without network: official, time-stamps, interim, interim-signers; repeatable.",
)
@options.as_json
def update_trust(addresses: tuple[str, ...], as_json: bool) -> int:
    """Fetch the official C2PA trust list and the older interim one into your cache.

    \b
    touchstone config trust update
    """
    from ray_app.detectors.weights import is_offline
    from ray_app.images.provenance import trust_lists
    from ray_app.images.provenance.trust_lists import ADDRESSES

    own = dict(pair.partition("=")[::2] for pair in addresses)
    if unknown := [name for name, address in own.items() if name not in ADDRESSES or not address]:
        raise click.UsageError(
            f"--address {unknown[0]}: NAME=URL with one of {', '.join(ADDRESSES)}"
        )
    failed = 0
    for name, file, failure in trust_lists.update_cache(ADDRESSES | own, offline=is_offline()):
        failed += failure is not None
        if failure is not None:
            kept = (
                "nothing is there yet"
                if file is None
                else f"the one of {file.fetched_at[:10]} stays in use"
            )
            click.echo(f"{name}: {failure}; {kept}", err=True)
    _show_trust(as_json)
    return ExitCode.CLUSTER if failed else ExitCode.DONE


@trust_lists.command("show")
@options.as_json
def show_trust(as_json: bool) -> int:
    """Show the trust lists that are in use: address, date, SHA-256.

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
        f"{name}: {one.certificates} certificates, {one.fetched_at[:10]}, sha256 {one.sha256}, from {one.address}"
        for name, one in files.items()
    ]
    lines += (
        [f"in {cache_folder('trust')}; used where no config names another list"]
        if files
        else [f"no trust list here: {UPDATE}"]
    )
    options.echo_document({name: one.model_dump() for name, one in files.items()}, lines, as_json)


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
@options.as_json
def doctor(as_json: bool) -> int:
    """Show what this machine has, and what to do where something is missing.

    \b
    touchstone doctor

    FAIL: `check` or `score` would fail with this exit code. note: it can wait. Put these lines into a bug report.
    """
    from ray_app.cluster.machine import CHECKS

    code, checks = ExitCode.DONE, list[dict[str, str]]()
    lines = [f"Touchstone {__version__}, Python {platform.python_version()}, {platform.platform()}"]
    for name, check in CHECKS.items():
        failed = ExitCode.DONE
        try:
            found, todo = check()
        except TouchstoneError as error:
            failed, found, todo = error.exit_code, error.message, error.hint or ""
        except Exception as error:  # a damaged installation raises anything
            failed, found, todo = (
                ExitCode.DETECTOR,
                describe_error(error),
                "install Touchstone anew; if it stays, report it",
            )
        code, state = code or failed, "FAIL" if failed else "note" if todo else "ok"
        checks.append({"name": name, "state": state, "found": found, "todo": todo})
        line = f"{state:4}  {name:10}  {found}{' → ' * bool(todo)}{todo}"
        lines += textwrap.wrap(line, 100, subsequent_indent=" " * 18, break_on_hyphens=False)
    options.echo_document(
        {"machine": lines[0], "exit_code": int(code), "checks": checks}, lines, as_json
    )
    return code
