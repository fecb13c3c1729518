"""docs/python.md, run as it stands: every block of Python in order and in one namespace, every
command where it stands between them.
"""

import contextlib
import io
import re
import shlex
from pathlib import Path

import pytest

from ray_app.cli.main import main
from tests.make.stages import without_ray

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "python.md").read_text()
BLOCKS = re.findall(r"```(python|console)\n(.*?)```", TEXT, re.DOTALL)
INSTALLED = "pip install "  # by tests of the wheel


@pytest.mark.slow
@pytest.mark.ray
def test_python_guide_runs(tmp_path, monkeypatch, ray_cluster):
    monkeypatch.chdir(tmp_path)
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
    text = "".join(printed)
    for words in (
        *("source_missing", "Accepted inputs: a path or URL", "did you mean 'default'"),
        "ScoredRun(",
    ):
        assert words in text
    kinds = r"^(?:PosixPath|bytes|BytesIO|JpegImageFile|ndarray) (\S+)$"
    assert len(set(re.findall(kinds, text, re.MULTILINE))) == 1
