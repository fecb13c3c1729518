"""The `touchstone` command: `main` parses, runs a command, and turns exceptions into one clear line
and an exit code.
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

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})  # of a disk, a quota or a limit
_CORE = (score.demo, check, score.score, score.plan, results, serve, train.train, evaluate.evaluate, evaluate.compare,
         settings.doctor)  # fmt: skip
_GROUPS = {
    "runs": (
        "Work with a finished run: reports, pictures, decisions, audits.",
        (score.report, gallery, masks, score.decide, score.compact, score.verify, trust.audit, evaluate.leaderboard),
    ),
    "data": (
        "Prepare images for training, evaluation and archiving.",
        (data.index, data.split, data.collect, data.generate, data.pack),
    ),
    "detectors": (
        "List, fetch, verify, fit and calibrate detectors.",
        (detectors.list_detectors, detectors.show_detector, detectors.fetch, detectors.add, detectors.verify, train.fit, trust.calibrate),
    ),
    "ensembles": ("List and show the ensembles that are shipped.", settings.ENSEMBLES),
    "recipes": ("List and show the recipes of touchstone train.", settings.RECIPES),
    "protocols": ("List and show the protocols of touchstone evaluate.", settings.PROTOCOLS),
    "config": ("Show settings, fetch trust lists, and set up completion in your shell.",
               (settings.show_config, settings.trust_lists, settings.completion)),
}  # fmt: skip
# Short names from before 0.15. They stay as hidden aliases, because docs/versioning.md guarantees
# them.
PERMANENT = dict.fromkeys(("index", "collect", "generate", "pack"), "data") | {
    "decide": "runs", "calibrate": "detectors",
}  # fmt: skip


class _Commands(click.Group):
    """Commands in the order in which one comes to need them. A word that is none is answered with
    the nearest one.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in that order."""
        return list(self.commands)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of this name; while a shell completes, with files wherever any text may
        stand.
        """
        command = super().get_command(ctx, cmd_name)
        if ctx.resilient_parsing and command is not None:
            for parameter in command.params:
                parameter.type = options.PLACE if parameter.type is click.STRING else parameter.type
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command of the first word. Raises UsageError that names the nearest one."""
        name = args[0]
        if (
            self.get_command(ctx, name) is None
            and not name.startswith("-")
            and not ctx.resilient_parsing
        ):
            refuse_retired_command(" ".join([*ctx.command_path.split()[1:], name]))
            known = {name: name for name in self.commands} | self._elsewhere()
            nearest = difflib.get_close_matches(name, known, 1)
            hint = (
                f"Did you mean '{known[nearest[0]]}'?"
                if nearest
                else f"Its commands: {', '.join(self.commands)}."
            )
            raise click.UsageError(f"No such command '{name}'. {hint}", ctx)
        return super().resolve_command(ctx, args)

    def _elsewhere(self) -> dict[str, str]:
        return {}


@contextmanager
def _a_pipe_may_close() -> Iterator[None]:
    """Inside, the command is done, quietly, once whoever reads stdout, `head` for example, has seen
    enough; click makes that exit code 1.

    Raises ClusterError where stdout is still read, and another connection broke.
    """
    try:
        yield
    except BrokenPipeError as error:
        watch = select.poll()
        watch.register(sys.stdout.fileno(), 0)
        if not watch.poll(0):  # POLLERR or POLLHUP, which are always watched for
            raise ClusterError(
                "the other side closed a connection", hint="run the same command again"
            ) from error
        # for what is still in the buffer
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise click.exceptions.Exit(ExitCode.DONE) from None


class _Touchstone(_Commands):
    """The core commands, the groups, and the former names of what is in a group now, which `--help`
    does not list.
    """

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """The command line as it was parsed; `--help` is printed here."""
        with _a_pipe_may_close():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        with _a_pipe_may_close():
            return super().invoke(ctx)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of this name, which may be a former one."""
        if group := PERMANENT.get(cmd_name):
            return _GROUP_COMMANDS[group].get_command(ctx, cmd_name)
        return super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the core, and the names in each group."""
        widest = max(map(len, self.commands))
        room = formatter.width - widest - 4
        core = [
            (f"{name:{widest}}", one.get_short_help_str(room))
            for name, one in self.commands.items()
            if one in _CORE
        ]
        with formatter.section("Commands"):
            formatter.write_dl(core)
        with formatter.section("Groups (`touchstone GROUP --help` explains them)"):
            formatter.write_dl(
                [
                    (f"{name:{widest}}", ", ".join(one.commands))
                    for name, one in _GROUP_COMMANDS.items()
                ]
            )

    def _elsewhere(self) -> dict[str, str]:
        return {
            name: f"{group} {name}"
            for group, one in _GROUP_COMMANDS.items()
            for name in one.commands
            if name not in ("list", "show")
        }


_GROUP_COMMANDS = {
    name: _Commands(name, {str(one.name): one for one in commands}, help=summary)
    for name, (summary, commands) in _GROUPS.items()
}


@click.group(cls=_Touchstone, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="touchstone")
def touchstone() -> None:
    """Tell which images in an archive were made or altered by a generative model.

    \b
    touchstone demo                                   a sample archive, scored
    touchstone check photo.jpg folder/                verdicts on some pictures, now
    touchstone score s3://bucket/photos --out s3://bucket/run
    touchstone results s3://bucket/run --verdict fake
    touchstone serve                                  an ensemble behind HTTP, with a page
    touchstone train quick --out mine                 a detector of your own, from labelled images

    The result goes to stdout, the log and the progress line to stderr. Exit codes: 0 done · 1 a bug · 2 usage or config · 3 finished
    with too many bad files · 4 detector or weights · 5 storage or cluster · 130 interrupted, and the same command goes on.
    """


for _command in (*_CORE, *_GROUP_COMMANDS.values()):
    touchstone.add_command(_command)


def main(arguments: Sequence[str] | None = None, *, typed: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. `typed`: the command as a shell was given it,
    for the line that says how to resume.
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
        if error.errno not in _FULL:
            raise
        where = f" {error.filename}" if error.filename else ""
        click.echo(
            f"touchstone: cannot write{where}: {os.strerror(error.errno)}\n  → make room there, then run the same command again",
            err=True,
        )
        _print_resume_hint(error, typed)
        return ExitCode.CLUSTER
    except (KeyboardInterrupt, click.exceptions.Abort) as error:
        _print_resume_hint(error.__cause__ or error, typed)  # click makes one of the other
        return ExitCode.INTERRUPTED
    return int(code or ExitCode.DONE)


def _print_resume_hint(error: BaseException, typed: Sequence[str] | None) -> None:
    """The last line of stderr, where the same command goes on from what is committed: that command."""
    if RESUMABLE in getattr(error, "__notes__", ()):
        from ray_app.storage import strip_secrets

        if isinstance(error, KeyboardInterrupt):
            click.echo("interrupted; what is committed is kept", err=True)
        words = typed or ["touchstone", *sys.argv[1:]]
        click.echo(
            f"resume: {shlex.join(strip_secrets(word) if '://' in word else word for word in words)}",
            err=True,
        )
