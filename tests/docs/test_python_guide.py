"""docs/python.md, run as it stands: every block of Python in order and in one namespace, every
command where it stands between them.
"""

import contextlib
import io
import os
import re
import shlex
from pathlib import Path

import pytest

from ray_app.cli.main import main
from tests.scoring.stages import without_ray

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "python.md").read_text()
BLOCKS = re.findall(r"```(python|console)\n(.*?)```", TEXT, re.DOTALL)
INSTALLED = "pip install "  # by tests of the wheel


@pytest.fixture
def empty_folder(tmp_path):
    before = os.getcwd()
    os.chdir(tmp_path)
    yield tmp_path
    os.chdir(before)


@pytest.mark.slow
@pytest.mark.ray
def test_python_guide_runs(empty_folder, ray_cluster):
    names, printed = {}, []
    for kind, block in BLOCKS:
        shown = io.StringIO()
        if kind == "python":
            with contextlib.redirect_stdout(shown):
                exec(compile(block, "docs/python.md", "exec"), names)
            assert ("print(" not in block) or shown.getvalue()
        for line in block.splitlines() if kind == "console" else ():
            if not line.startswith(INSTALLED):
                with without_ray():
                    assert main(shlex.split(line)[1:]) == 0
        printed.append(shown.getvalue())
    told = "".join(printed)
    assert "source_missing" in told
    assert "Accepted are: a path or URL" in told
    assert "did you mean 'default'" in told
    assert "ScoredRun(" in told
    assert (
        len(
            set(
                re.findall(
                    r"^(?:PosixPath|bytes|BytesIO|JpegImageFile|ndarray) (\S+)$", told, re.MULTILINE
                )
            )
        )
        == 1
    )
