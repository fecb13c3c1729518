"""The README's lines on a fresh machine, which they set up."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ray_app import __version__
from tests.docs.readme import ROOT, blocks, check, run, script
from tests.make.wheel import OFFLINE

WITHOUT_CUDA = "--torch-backend cpu"
MOST_MEGABYTES_WITHOUT_CUDA = 2_300  # README's figure, uv itself, and the bytecode of a command
# Where a checkout and what it installs are known, and what is this process's own.
OURS = ("PYTHON", "PYTEST_", "VIRTUAL_ENV", "TOUCHSTONE_", "RAY_", "MAKE")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_fresh_machine_is_set_up_by_the_lines_alone(tmp_path):
    """A checkout of what is committed, an empty home, no `.venv`, none of our variables. Of the
    default tests a few run.
    """
    checkout, home = tmp_path / "touchstone", tmp_path / "home"
    home.mkdir()
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(checkout)], check=True)
    bin_of_tests = str(Path(sys.executable).parent)
    path = os.pathsep.join(
        part for part in os.environ["PATH"].split(os.pathsep) if part != bin_of_tests
    )
    theirs = {name: value for name, value in os.environ.items() if not name.startswith(OURS)} | {
        "HOME": str(home),
        "PATH": path,
    }
    (_, made), (_, installed), *others = blocks()
    told = run(script([("console", made)]), checkout, theirs | {"PYTEST_ADDOPTS": "-k errors"})
    assert re.search(r"\b[1-9]\d* passed\b", told)
    for number, line in enumerate(installed.splitlines()):
        entered = f"python3 -m venv ../env{number} && source ../env{number}/bin/activate\n{line}\n"
        if WITHOUT_CUDA in line and not answers(entered, checkout, theirs):
            continue  # the package index of the packages without CUDA is not reached from here
        listed = run(
            f"set -e\n{entered}touchstone --version; pip list 2> /dev/null", checkout, theirs
        )
        assert f"touchstone, version {__version__}\n" in listed
        assert ("nvidia-" in listed) == (WITHOUT_CUDA not in line)
        assert (megabytes(tmp_path / f"env{number}") < MOST_MEGABYTES_WITHOUT_CUDA) == (
            WITHOUT_CUDA in line
        )
    told += run(f"source ../env1/bin/activate\n{script(others)}", checkout, theirs)
    check(told, checkout)
    shutil.rmtree(checkout / ".venv")


def megabytes(folder):
    return (
        int(
            subprocess.run(
                ["du", "-sk", folder], check=True, capture_output=True, text=True
            ).stdout.split()[0]
        )
        / 1e3
    )


def answers(lines, folder, environment):
    """Whether the package index of these lines is there."""
    done = subprocess.run(
        ["bash", "-ec", lines],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    return not any(sign in done.stderr for sign in OFFLINE)
