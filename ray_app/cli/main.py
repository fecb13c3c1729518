"""The `touchstone` command: `script` parses, runs a command, and turns exceptions into one clear line and an exit code."""

import logging
import shlex
import signal
import sys
from collections.abc import Sequence
from itertools import chain
from types import FrameType

import click

from ray_app import __version__
from ray_app.cli import data, endpoint, trust
from ray_app.cli.check import check
from ray_app.cli.detectors import config, detectors
from ray_app.cli.evaluate import compare, evaluate, leaderboard
from ray_app.cli.inspect import explain, gallery, masks
from ray_app.cli.score import decide, demo, plan, report, rescore, results, score
from ray_app.cli.train import train
from ray_app.errors import RESUMABLE, ExitCode, TouchstoneError

_SECTIONS = {
    "Pictures": (check,),
    "An archive": (demo, plan, score, results, report, gallery, masks, explain, data.filter_command, data.pack),
    "How far to trust it": (trust.calibrate, decide, trust.audit, trust.evidence),
    "Data": (data.collect, data.generate, data.split, data.labels),
    "How well detectors do": (data.index, evaluate, compare, leaderboard),
    "Detectors": (detectors, train, rescore),
    "A service, and settings": (endpoint.serve, config),
}


class _Sectioned(click.Group):
    """Lists its commands by what they are for, in the order in which one comes to need them."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sections of `--help`."""
        widest = max(map(len, self.commands))
        for title, commands in _SECTIONS.items():
            with formatter.section(title):
                room = formatter.width - widest - 4
                formatter.write_dl([(f"{one.name:{widest}}", one.get_short_help_str(room)) for one in commands])


@click.group(cls=_Sectioned, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="touchstone")
def touchstone() -> None:
    """Tell which images in an archive were made or altered by a generative model.

    \b
    touchstone check photo.jpg folder/                verdicts on some pictures, now
    touchstone demo                                   a sample archive, scored
    touchstone score s3://bucket/photos --out s3://bucket/run
    touchstone results s3://bucket/run --verdict fake
    touchstone train quick --out mine                 a detector of your own, from labelled images
    touchstone serve                                  an ensemble behind HTTP, with a page

    stdout carries the result, stderr the log and the progress line. Exit codes: 0 done · 2 usage or config · 3 finished with too
    many bad files · 4 detector or weights · 5 storage or cluster · 130 interrupted, resumable by the same command.
    """


for command in chain.from_iterable(_SECTIONS.values()):
    touchstone.add_command(command)


def main(arguments: Sequence[str] | None = None, *, typed: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. `typed`: the command as a shell was given it, for the line that says how to resume."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        code = touchstone.main(args=None if arguments is None else list(arguments), prog_name="touchstone", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return ExitCode.USAGE
    except TouchstoneError as error:
        click.echo(f"touchstone: {error.message}", err=True)
        if error.hint:
            click.echo(f"  → {error.hint}", err=True)
        _print_resume_hint(error, typed)
        return error.exit_code
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
        click.echo(f"resume: {shlex.join(strip_secrets(word) if '://' in word else word for word in words)}", err=True)


def script() -> None:
    """Entry point of the installed command."""
    sys.exit(main())


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    script()
