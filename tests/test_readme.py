"""The README's own lines, in an empty folder (`make test-readme`); test_fresh_machine.py has them
set up a machine, too.
"""

import os
import re
import sys
from pathlib import Path

import pytest

from ray_app import __version__
from tests.docs.readme import README, ROOT, blocks, check, run, script


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_lines_run_in_an_empty_folder(tmp_path):
    """All but the set-up of a checkout and an environment: this one's is taken."""
    (_, made), (_, installed), *others = blocks()
    assert made == "make demo\nmake test\n"
    assert all(
        line.startswith("pip install uv && uv pip install ") for line in installed.splitlines()
    )
    target = (ROOT / "Makefile").read_text().partition("demo: $(STAMP)\n")[2].partition("\n\n")[0]
    demo = [line.strip().removeprefix("@").removeprefix("$(BIN)/") for line in target.splitlines()]
    ours = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "RAY_A"))
    }
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    check(
        run(script([("console", "\n".join(demo)), *others]), tmp_path, ours | {"PATH": path}),
        tmp_path,
    )


def test_it_has_no_placeholder():
    assert not re.search(r"@[A-Z]+@", README)


def test_its_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#:]+)[^):]*\)", README)
    assert len(links) > 20
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_version_is_the_same_in_every_file():
    """Only `ray_app/__init__.py` defines it; files that cannot read it name it."""
    changelog = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    citation = re.search(r"^version: (\S+)", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert (changelog[1], citation[1]) == (__version__, __version__)
    tags = [
        tag
        for pattern in ("Dockerfile", "configs/kubernetes/*.yaml", "docs/*.md")
        for path in ROOT.glob(pattern)
        for tag in re.findall(r"touchstone:(\d[\w.]*)-(?:cpu|cuda)", path.read_text())
    ]
    assert len(tags) > 8
    assert set(tags) == {__version__}
