"""What is shipped by name, listed and shown (`touchstone ensembles`, `recipes`, `protocols`), settings, and completion in a shell."""

import json
from pathlib import Path
from typing import Any

import click

from ray_app.cli import options
from ray_app.errors import ConfigError

_SHELLS = ("bash", "zsh", "fish")


def _catalogue(kind: str, noun: str, example: str) -> tuple[click.Command, click.Command]:
    """The commands `list` and `show` for the shipped YAML files of one kind."""

    def list_shipped(as_json: bool) -> int:
        from ray_app.config import named_configs
        from ray_app.reports.text import table

        entries = [{"name": name, "title": _title(path), "file": str(path)} for name, path in named_configs(kind).items()]
        options.echo_document(entries, table(["name", "what it is"], [[one["name"], one["title"]] for one in entries]), as_json)
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
    list_shipped.__doc__ = f"List the {group} that are shipped, by name.\n\n\b\ntouchstone {group} list\n"
    show_shipped.__doc__ = f"Show one of the {group}: its YAML file.\n\n\b\ntouchstone {group} show {example}\n"
    return (
        click.command("list")(options.as_json(list_shipped)),
        click.command("show")(click.argument("name", metavar="NAME|PATH")(options.as_json(show_shipped))),
    )


def _title(path: Path) -> str:
    from ray_app.config import read_mapping

    data = read_mapping(path)
    return str(data.get("title") or data.get("name") or path.stem)


ENSEMBLES = _catalogue("ensembles", "ensemble", "default")
RECIPES = _catalogue("train", "recipe", "quick")
PROTOCOLS = _catalogue("evaluate", "protocol", "openfake-v1")


@click.command("show")
@click.argument("file", required=False, metavar="[NAME|FILE]")
@options.overrides
@options.as_json
def show_config(file: str | None, assignments: tuple[str, ...], as_json: bool) -> int:
    """Print every setting of a scoring run with its value.

    The output is a config file that --config takes.

    \b
    touchstone config show overnight --set batch_slots=32
    """
    from ray_app.scoring import ScoreConfig

    settings = options.configured("score", file, ScoreConfig, {}, assignments)
    click.echo(json.dumps(settings.model_dump(mode="json"), indent=2) if as_json else options.shown(settings), nl=as_json)
    return 0


@click.command()
@click.argument("shell", type=click.Choice(_SHELLS))
def completion(shell: str) -> int:
    """Print the completion script for your shell.

    It completes commands, options, and the names of detectors, ensembles, recipes and protocols.

    \b
    eval "$(touchstone config completion bash)"      in ~/.bashrc; for zsh in ~/.zshrc
    touchstone config completion fish > ~/.config/fish/completions/touchstone.fish
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    if kind is None:
        raise ConfigError(f"completion for {shell} is not known to this version of click", hint="bash, zsh and fish are")
    root: Any = click.get_current_context().find_root().command
    click.echo(kind(root, {}, "touchstone", "_TOUCHSTONE_COMPLETE").source())
    return 0
