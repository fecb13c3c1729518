"""Start the command line in a process of its own (`script`), as the installed command, `python -m
ray_app.cli`, and jobs do.

Keeps the current folder off the search paths before the first import of another package.
"""

import atexit
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

from ray_app.errors import ExitCode
from ray_app.import_path import remove_current_folder


def script(
    arguments: Sequence[str] | None = None, *, typed: Sequence[str] | None = None
) -> NoReturn:
    """Run `ray_app.cli.main.main` with the same arguments, and end the process with its exit code.

    The process ends after the handlers of `atexit`, those of Ray and multiprocessing among them,
    but before Python takes its interpreter apart. A thread of Arrow that is still dropping the last
    buffer of a Parquet file asks for the interpreter's lock in a C++ destructor. Python ends
    threads that come then by unwinding them, which C++ answers with abort() ("terminate called
    without an active exception", https://github.com/apache/arrow/issues/34314).
    """
    remove_current_folder()
    from ray_app.cli.main import main

    code: int = ExitCode.BUG

    def leave() -> None:
        for stream in (sys.stdout, sys.stderr):
            # The stream is closed or full. The command reported that when it wrote there.
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)

    atexit.register(leave)  # The first handler to be registered is the last to be called.
    try:
        code = main(arguments, typed=typed)
    except SystemExit as ended:  # Click exits after it has answered a shell that completes.
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    sys.exit(code)


if __name__ == "__main__":
    script()
