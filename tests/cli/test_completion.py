"""The Tab key in real shells."""

import os
import pty
import re
import select
import shutil
import signal
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

SHELLS = {
    "bash": (["bash", "--norc", "-i"], 'eval "$(touchstone config completion bash)"'),
    "zsh": (
        ["zsh", "-f", "-i"],
        'autoload -Uz compinit && compinit -u; eval "$(touchstone config completion zsh)"',
    ),
    "fish": (["fish", "--no-config", "-i"], "touchstone config completion fish | source"),
}


@contextmanager
def terminal(command, folder):
    """A program on a terminal of its own; yields a function that types, and reads until a pattern
    has come.
    """
    child, ours = pty.fork()
    if child == 0:
        os.chdir(folder)
        os.environ |= {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "TERM": "xterm",
        }
        os.execvp(command[0], command)

    def typed(keys, pattern, wait_s=60):
        os.write(ours, keys.encode())
        shown, until = "", time.monotonic() + wait_s
        while not re.search(pattern, re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", shown)):
            assert time.monotonic() < until, shown
            if select.select([ours], [], [], 1)[0]:
                shown += os.read(ours, 65536).decode(errors="replace")
        return shown

    try:
        yield typed
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(ours)


@pytest.mark.slow
@pytest.mark.parametrize("shell", SHELLS)
def test_tab_completes_commands_names_and_files(shell, tmp_path):
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    (tmp_path / "photographs").mkdir()
    (tmp_path / "photographs" / "one.jpg").touch()
    (tmp_path / "photographs" / "two.jpg").touch()
    command, setup = SHELLS[shell]
    with terminal(command, tmp_path) as typed:
        typed(f"{setup}; echo rea''dy\n", "ready")
        typed("touchstone doc\t", "doctor ")
        typed("\x15touchstone score --ensemble perm\t", "permissive ")
        typed("\x15touchstone check pho\t", "photographs/")
