"""The commands of `touchstone` by name, with their help as Markdown, for mkdocs-click."""

import copy

import click

from docs_site.markdown import docstring
from ray_app.cli.main import touchstone


def __getattr__(name: str) -> click.Command:
    if name not in touchstone.commands:
        raise AttributeError(name)
    return _with_markdown(touchstone.commands[name])


def _with_markdown(command: click.Command) -> click.Command:
    """Return a copy whose help, and that of its commands, is Markdown."""
    copied = copy.copy(command)
    copied.help = docstring(command.help)
    if isinstance(copied, click.Group):
        copied.commands = {
            name: _with_markdown(child)
            for name, child in copied.commands.items()
            if not child.hidden
        }
    return copied
