"""Run the command line as a process: `script` is the entry point.

The installed command `touchstone`, `python -m ray_app.cli`, and the jobs call `script`. `script`
removes the current folder from the search paths before it imports any other package.
"""

import atexit
import io
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

from ray_app.errors import ExitCode
from ray_app.import_path import UTF8_MODE, remove_current_folder


def script(
    arguments: Sequence[str] | None = None, *, typed: Sequence[str] | None = None
) -> NoReturn:
    """Run `ray_app.cli.main.main` and exit the process with its exit code.

    The process exits after the `atexit` handlers of Ray and multiprocessing have run, but before
    Python finalises its interpreter. This avoids a crash: an Arrow thread that still releases the
    last buffer of a Parquet file requests the interpreter's lock in a C++ destructor. During
    finalisation, Python unwinds such a thread, and C++ then calls abort() ("terminate called
    without an active exception", https://github.com/apache/arrow/issues/34314).

    Args:
        arguments: The command line without the program name. None for `sys.argv`.
        typed: The command as the user typed it in a shell, such as `["python", "jobs/score.py"]`
            with its arguments. An interrupted command prints it as the command that resumes. None
            for `touchstone` with `sys.argv`.
    """
    _require_utf8()
    remove_current_folder()
    from ray_app.cli.main import main

    code: int = ExitCode.BUG

    def leave() -> None:
        for stream in (sys.stdout, sys.stderr):
            # The stream may be closed or full. The command already reported that.
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)

    atexit.register(leave)  # The handler that is registered first is called last.
    try:
        code = main(arguments, typed=typed)
    except SystemExit as exit_:  # Click exits after it answers a completion request of a shell.
        code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    sys.exit(code)


def _require_utf8() -> None:
    """Start this command again in Python's UTF-8 mode if the locale has another encoding.

    Names of files in URIs and ids must not depend on the locale. All child processes inherit the
    mode. stdout escapes characters that PYTHONIOENCODING lacks, as stderr does.
    """
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get(UTF8_MODE) != "1":
        os.environ[UTF8_MODE] = "1"
        os.execv(sys.executable, sys.orig_argv)  # noqa: S606 - The command itself.
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


if __name__ == "__main__":
    script()
