"""A command line that runs in the process of the test."""

import json
import shlex
from typing import NamedTuple

import pytest

from ray_app.cli.main import main


class Ended(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def document(self):
        return json.loads(self.out)

    @property
    def rows(self):
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture
def touchstone(capsys):
    """Run a command line, plus further words unsplit; return its exit code and its output."""

    def run(line, *words):
        capsys.readouterr()
        code = main([*shlex.split(line), *map(str, words)])
        return Ended(code, *capsys.readouterr())

    return run
