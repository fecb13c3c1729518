"""Environments for contenders whose packages do not go together with ours: made once, with uv, in a
folder outside the tree.
"""

import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path.home() / ".cache" / "touchstone-benchmarks"
MAKING_S, STARTING_S = 600.0, 120.0


@dataclass(frozen=True)
class Environment:
    """`packages` laid before those of our own environment, so that torch and all else are the same
    files for every contender.
    """

    name: str
    packages: tuple[str, ...]

    def python(self, folder: Path) -> Path:
        """Its interpreter, where environments lie in `folder`."""
        return folder / self.name / "bin" / "python"

    def made(self, folder: Path) -> str | None:
        """Make it in `folder` unless it is there and works. None; else why it cannot be made, in
        one line.
        """
        if not self._problem(folder):
            return None
        uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
        if uv is None:
            return "uv is not installed, which would make its environment"
        python = self.python(folder)
        commands = (
            [uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder / self.name)],
            [uv, "pip", "install", "--quiet", "--python", str(python), *self.packages],
        )
        for command in commands:
            if problem := _failure(command, MAKING_S):
                return f"its environment cannot be made: {problem}"
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        # comes after the environment's own packages
        below = folder / self.name / "lib" / version / "site-packages" / "ours.pth"
        below.write_text(f"{sysconfig.get_path('purelib')}\n", encoding="utf-8")
        problem = self._problem(folder)
        return f"its environment does not work: {problem}" if problem else None

    def _problem(self, folder: Path) -> str | None:
        wanted = dict(package.split("==") for package in self.packages)
        versions = f"assert all(version(name) == one for name, one in {wanted!r}.items())"
        check = f"from importlib.metadata import version; from importlib.util import find_spec; assert find_spec('torch'); {versions}"
        return _failure([str(self.python(folder)), "-c", check], STARTING_S)


def _failure(command: list[str], timeout_s: float) -> str | None:
    """Run a command; None, or the last line that it wrote where it failed."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
    return said[-1].strip() if done.returncode else None
