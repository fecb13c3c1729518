"""Run the `touchstone` command line: `main` is the entry point.

`main` parses the command line, runs the command, and turns exceptions into one line and an exit
code.
"""

import difflib
import errno
import logging
import os
import select
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

from ray_app import __version__
from ray_app.cli import data, detectors, evaluate, options, score, settings, train, trust
from ray_app.cli.check import check
from ray_app.cli.endpoint import serve
from ray_app.cli.results import gallery, masks, results
from ray_app.cli.retired import explain_retired_name, refuse_retired_command
from ray_app.errors import RESUMABLE, ClusterError, ExitCode, TouchstoneError
from ray_app.import_path import refuse_searched_library

# A full disk, an exhausted quota, or a file above the size limit of the process.
_OUT_OF_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_CORE = (score.demo, check, score.score, score.plan, results, serve, train.train, evaluate.evaluate, evaluate.compare,
         settings.doctor)  # fmt: skip
_GROUPS = {
    "runs": (
        "Work with a finished run: reports, images, decisions, and audits.",
        (score.report, gallery, masks, score.decide, score.compact, score.verify, trust.audit, evaluate.leaderboard),
    ),
    "data": (
        "Prepare images for training, evaluation, and archiving.",
        (data.index, data.split, data.collect, data.generate, data.pack),
    ),
    "detectors": (
        "List, download, add, verify, fit, and calibrate detectors.",
        (detectors.list_detectors, detectors.show_detector, detectors.fetch, detectors.add, detectors.verify, train.fit, trust.calibrate),
    ),
    "ensembles": ("List and show the shipped ensembles.", settings.ENSEMBLES),
    "recipes": ("List and show the shipped recipes of touchstone train.", settings.RECIPES),
    "protocols": ("List and show the shipped protocols of touchstone evaluate.", settings.PROTOCOLS),
    "config": ("Show settings, download trust lists, and set up shell completion.",
               (settings.show_config, settings.trust_lists, settings.completion)),
}  # fmt: skip
# Short names from before 0.15. They stay as hidden aliases: docs/versioning.md guarantees them.
PERMANENT = dict.fromkeys(("index", "collect", "generate", "pack"), "data") | {
    "decide": "runs", "calibrate": "detectors",
}  # fmt: skip


class _Commands(click.Group):
    """Commands in the order in which a user needs them.

    The error for an unknown command names the most similar command.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands in the order of their definition."""
        return list(self.commands)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command with this name.

        During shell completion, its parameters of plain text are replaced by paths, so that the
        shell offers files.
        """
        command = super().get_command(ctx, cmd_name)
        if ctx.resilient_parsing and command is not None:
            for parameter in command.params:
                parameter.type = options.PATH if parameter.type is click.STRING else parameter.type
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that the first argument names.

        Args:
            ctx: The context of this group.
            args: The arguments; the first is the name of a command.

        Returns:
            The name, the command, and the remaining arguments.

        Raises:
            UsageError: If there is no such command. It names the most similar one.
        """
        name = args[0]
        if (
            self.get_command(ctx, name) is None
            and not name.startswith("-")
            and not ctx.resilient_parsing
        ):
            refuse_retired_command(" ".join([*ctx.command_path.split()[1:], name]))
            commands = {name: name for name in self.commands} | self._commands_in_groups()
            nearest = difflib.get_close_matches(name, commands, 1)
            hint = (
                f"Did you mean '{commands[nearest[0]]}'?"
                if nearest
                else f"Commands: {', '.join(self.commands)}."
            )
            raise click.UsageError(f"No such command '{name}'. {hint}", ctx)
        return super().resolve_command(ctx, args)

    def _commands_in_groups(self) -> dict[str, str]:
        return {}


@contextmanager
def _exit_if_pipe_closes() -> Iterator[None]:
    """Exit with code 0 and no message if the reader of stdout, such as `head`, closes the pipe.

    click would exit with code 1.

    Raises:
        ClusterError: If stdout is still open, that is if another connection broke.
    """
    try:
        yield
    except BrokenPipeError as error:
        watch = select.poll()
        watch.register(sys.stdout.fileno(), 0)
        if not watch.poll(0):  # poll always reports POLLERR and POLLHUP.
            raise ClusterError(
                "the other side of a network connection closed it (Ray, storage, or an endpoint)",
                hint="run the same command again",
            ) from error
        # Discard the rest of the buffer, which Python flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise click.exceptions.Exit(ExitCode.DONE) from None


class _Touchstone(_Commands):
    """The core commands, the groups, and hidden aliases from before 0.15 (`PERMANENT`)."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Parse the command line; click also prints the help in this method."""
        with _exit_if_pipe_closes():
            return super().make_context(*args, **kwargs)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments of this group and of its commands, with `~` expanded in paths."""
        return super().parse_args(ctx, [_expand_home(arg) for arg in args])

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        with _exit_if_pipe_closes():
            return super().invoke(ctx)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command with this name or hidden alias."""
        if group := PERMANENT.get(cmd_name):
            return _GROUP_COMMANDS[group].get_command(ctx, cmd_name)
        return super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the core commands with their help, then the groups with their commands."""
        name_width = max(map(len, self.commands))
        help_width = formatter.width - name_width - 4
        core = [
            (f"{name:{name_width}}", command.get_short_help_str(help_width))
            for name, command in self.commands.items()
            if command in _CORE
        ]
        with formatter.section("Commands"):
            formatter.write_dl(core)
        with formatter.section("Groups (`touchstone GROUP --help` explains their commands)"):
            formatter.write_dl(
                [
                    (f"{name:{name_width}}", ", ".join(group.commands))
                    for name, group in _GROUP_COMMANDS.items()
                ]
            )

    def _commands_in_groups(self) -> dict[str, str]:
        return {
            name: f"{group_name} {name}"
            for group_name, group in _GROUP_COMMANDS.items()
            for name in group.commands
            if name not in ("list", "show")
        }


def _expand_home(argument: str) -> str:
    """Replace `~` by the home folder in a path, or in the path of `--OPTION=PATH`."""
    if "~" not in argument:
        return argument
    from ray_app.config import expand_home

    option, mark, value = argument.partition("=")
    return (
        f"{option}={expand_home(value)}"
        if mark and option.startswith("--")
        else expand_home(argument)
    )


_GROUP_COMMANDS = {
    name: _Commands(name, {str(command.name): command for command in commands}, help=summary)
    for name, (summary, commands) in _GROUPS.items()
}


@click.group(cls=_Touchstone, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="touchstone")
def touchstone() -> None:
    """Find images that a generative model created or altered.

    \b
    touchstone demo                                   score a sample archive
    touchstone check photo.jpg folder/                check a few images
    touchstone score s3://bucket/photos --out s3://bucket/run
    touchstone results s3://bucket/run --verdict fake
    touchstone serve                                  serve an ensemble over HTTP, with a web page
    touchstone train quick --out mine                 train your own detector on labelled images

    Results go to stdout, logs and the progress line to stderr. Exit codes: 0 success · 1 a bug in Touchstone · 2 usage or config · 3 finished,
    but too many bad files or a failed check · 4 detector or weights · 5 storage or cluster · 130 interrupted; run the same command again to resume.
    """


for _command in (*_CORE, *_GROUP_COMMANDS.values()):
    touchstone.add_command(_command)


def main(arguments: Sequence[str] | None = None, *, typed: Sequence[str] | None = None) -> int:
    """Run the command line, and return the exit code.

    Args:
        arguments: The command line without the program name. None for `sys.argv`.
        typed: The command as the user typed it in a shell, such as `["python", "jobs/score.py"]`
            with its arguments. An interrupted command prints it as the command that resumes. None
            for `touchstone` with `sys.argv`.
    """
    logging.basicConfig(
        level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s"
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        refuse_searched_library()
        code = touchstone.main(
            args=None if arguments is None else list(arguments),
            prog_name="touchstone",
            standalone_mode=False,
        )
    except click.ClickException as error:
        explain_retired_name(error, PERMANENT).show()
        return ExitCode.USAGE
    except TouchstoneError as error:
        click.echo(f"touchstone: {error.message}", err=True)
        if error.hint:
            click.echo(f"  → {error.hint}", err=True)
        _print_resume_hint(error, typed)
        return error.exit_code
    except OSError as error:
        if error.errno not in _OUT_OF_SPACE:
            raise
        file = f" {error.filename}" if error.filename else ""
        click.echo(
            f"touchstone: cannot write{file}: {os.strerror(error.errno)}\n  → free some space there, then run the same command again",
            err=True,
        )
        _print_resume_hint(error, typed)
        return ExitCode.CLUSTER
    except (KeyboardInterrupt, click.exceptions.Abort) as error:
        # click raises Abort from KeyboardInterrupt; the note is on the latter.
        _print_resume_hint(error.__cause__ or error, typed)
        return ExitCode.INTERRUPTED
    return int(code or ExitCode.DONE)


def _print_resume_hint(error: BaseException, typed: Sequence[str] | None) -> None:
    """Print the command that resumes, as the last line of stderr, if the error is resumable."""
    if RESUMABLE in getattr(error, "__notes__", ()):
        from ray_app.storage import strip_secrets

        if isinstance(error, KeyboardInterrupt):
            click.echo("interrupted; committed results are kept", err=True)
        command = typed or ["touchstone", *sys.argv[1:]]
        click.echo(
            f"resume: {shlex.join(strip_secrets(arg) if '://' in arg else arg for arg in command)}",
            err=True,
        )
