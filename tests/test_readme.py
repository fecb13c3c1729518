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


def test_the_changelog_s_newest_version_is_the_package_s():
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest[1] == __version__
    assert f'version = "{__version__}"' in (ROOT / "pyproject.toml").read_text()
