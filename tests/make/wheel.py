"""The wheel as a stranger gets it (`WheelEnvironment`): built from this tree and installed in an
environment that has nothing else.

A test takes it by the session fixture `wheel_environment` (tests/conftest.py) and is marked `slow`:

    def test_lines_of_the_page(wheel_environment, tmp_path):
        done = wheel_environment.run("touchstone", "check", "photo.jpg", folder=tmp_path)
        assert "no evidence" in done.stdout
        names = wheel_environment.python("import ray_app; print(dir(ray_app))", folder=tmp_path)

`run` and `python` fail the test where the exit code is not the expected one, and show what was
printed. `environment()` is for processes that a test starts by itself, and `bin` holds the
programs. With extras: `WheelEnvironment.of_this_tree("raw", "phash")`.

Dependencies are those of constraints.txt. The environment lies in .cache/wheels under the hash of
all that is in it, so a second test, and a second session, finds it there; one that nobody used for
a week is removed. Without a package index, and without what uv keeps of one, the test is skipped.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLACE = ROOT / ".cache" / "wheels"
CONSTRAINTS = ROOT / "constraints.txt"
KEPT_S = 7 * 24 * 3600
# What uv says where no index answers, and nothing is kept of one.
OFFLINE = (
    "Failed to fetch",
    "dns error",
    "Could not connect",
    "error sending request",
    "Network connectivity is disabled",
)
# What a stranger does not have: what leads back into the checkout or its environment, settings, and
# the token of these tests' own Ray.
OURS = ("PYTHON", "VIRTUAL_ENV", "PYTEST_", "TOUCHSTONE_", "RAY_A")


@dataclass(frozen=True)
class WheelEnvironment:
    """A wheel, and the folder of the environment that it is installed in."""

    wheel: Path
    folder: Path

    @classmethod
    def of_this_tree(cls, *extras: str) -> "WheelEnvironment":
        """Build the wheel, and install it with these extras where nobody has yet."""
        with _alone():
            wheel = build_wheel(PLACE / "built")
            facts = (
                wheel.read_bytes(),
                CONSTRAINTS.read_bytes(),
                sys.version.encode(),
                ",".join(sorted(extras)).encode(),
            )
            folder = (
                PLACE
                / hashlib.sha256(
                    b"".join(hashlib.sha256(fact).digest() for fact in facts)
                ).hexdigest()[:16]
            )
            ready = folder / ".ready"
            if not ready.exists():
                shutil.rmtree(folder, ignore_errors=True)
                _uv("venv", "--quiet", "--seed", "--python", sys.executable, str(folder))
                wanted = f"{wheel}[{','.join(extras)}]" if extras else str(wheel)
                _install(folder, "--constraint", str(CONSTRAINTS), wanted)
            kept = shutil.copy(wheel, folder)
            ready.touch()
            _remove_unused()
        return cls(Path(kept), folder)

    @classmethod
    def beside_our_packages(cls) -> "WheelEnvironment":
        """Build the wheel, and install it alone: all else comes from the environment of the tests,
        so nothing large is fetched.

        A folder that a `.pth` names is searched, but its own `.pth` are not read: the checkout,
        which is installed there, is not found.
        """
        with _alone():
            wheel = build_wheel(PLACE / "built")
            folder = PLACE / f"beside-{hashlib.sha256(wheel.read_bytes()).hexdigest()[:16]}"
            ready = folder / ".ready"
            if not ready.exists():
                shutil.rmtree(folder, ignore_errors=True)
                _uv("venv", "--quiet", "--python", sys.executable, str(folder))
                _install(folder, "--no-deps", "--compile-bytecode", str(wheel))
                [packages] = folder.glob("lib/python*/site-packages")
                (packages / "beside.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
                # a reader's `ray` and `serve`
                for program in distribution("ray").entry_points.select(group="console_scripts"):
                    (folder / "bin" / program.name).write_text(
                        f"#!{folder}/bin/python\nfrom {program.module} import {program.attr}\n\n{program.attr}()\n"
                    )
                    (folder / "bin" / program.name).chmod(0o755)
            kept = shutil.copy(wheel, folder)
            ready.touch()
            _remove_unused()
        return cls(Path(kept), folder)

    @property
    def bin(self) -> Path:
        """The folder of its programs."""
        return self.folder / "bin"

    def environment(self) -> dict[str, str]:
        """The variables of a process that knows this environment, and no checkout."""
        elsewhere = [
            part
            for part in os.environ["PATH"].split(os.pathsep)
            if Path(part) != Path(sys.executable).parent
        ]
        kept = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
        return kept | {"PATH": os.pathsep.join([str(self.bin), *elsewhere])}

    def run(
        self,
        *command: str,
        folder: Path,
        code: int = 0,
        timeout: float = 240,
        more: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in a folder, with `more` variables; its exit code has to be `code`."""
        environment = self.environment() | dict(more or {})
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == code, (
            f"{command} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
        )
        return done

    def python(self, source: str, *, folder: Path) -> str:
        """What a program prints."""
        return self.run(str(self.bin / "python"), "-c", source, folder=folder).stdout


def build_wheel(out: Path) -> Path:
    """The wheel of this tree, the only one in the folder `out`. Skips the test where no build
    backend can be had.
    """
    shutil.rmtree(out, ignore_errors=True)
    _uv("build", "--quiet", "--wheel", "--out-dir", str(out), str(ROOT))
    [wheel] = out.glob("*.whl")
    return wheel


def _install(environment: Path, *arguments: str) -> None:
    """Install what the arguments name into an environment."""
    _uv("pip", "install", "--quiet", "--python", str(environment), *arguments)


def _uv(*arguments: str) -> None:
    """uv, of the environment of the tests or of the machine. Skips where it is not there, or where
    no package index answers.
    """
    program = shutil.which(
        "uv", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    )
    if program is None:
        pytest.skip("uv is not installed")
    done = subprocess.run(
        [program, *arguments], capture_output=True, text=True, timeout=900, check=False
    )
    if done.returncode and any(sign in done.stderr for sign in OFFLINE):
        pytest.skip(f"no package index answers: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, f"uv {' '.join(arguments)}\n{done.stderr}"


@contextmanager
def _alone() -> Iterator[None]:
    """While inside, no other process of tests builds or installs here."""
    PLACE.mkdir(parents=True, exist_ok=True)
    with (PLACE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _remove_unused() -> None:
    for ready in PLACE.glob("*/.ready"):
        if time.time() - ready.stat().st_mtime > KEPT_S:
            shutil.rmtree(ready.parent)
