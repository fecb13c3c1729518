"""The README's own lines, in an empty folder (`make test-readme`); test_fresh_machine.py has them
set up a machine, too.
"""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ray_app import __version__

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
PORT = 8000


def blocks():
    """(language, text) of what a reader types."""
    return re.findall(r"```(console|python)\n(.*?)```", README, re.DOTALL)


def script(chosen):
    """Blocks as one bash script; each line is printed before it runs."""
    parts = ["set -euo pipefail"]
    for language, block in chosen:
        if language == "python":
            parts.append(f"python - <<'PYTHON'\n{block}PYTHON")
        else:
            parts += [
                f"printf '%s\\n' {_quoted('$ ' + line)}\n{line}" for line in block.splitlines()
            ]
    return "\n".join(parts)


def _quoted(text):
    return "'" + text.replace("'", "'\\''") + "'"


def free_port():
    """8000 where nobody has it, as the README says; else another one."""
    for port in (PORT, 0):
        with socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", port))
                return listener.getsockname()[1]
            except OSError:
                continue
    raise AssertionError("no port is free")


def run(lines, folder, environment):
    """What the lines print, run in a folder under an environment's variables."""
    port = free_port()
    if port != PORT:
        lines = lines.replace("touchstone serve &", f"touchstone serve --port {port} &").replace(
            f":{PORT}", f":{port}"
        )
    done = subprocess.run(
        ["bash", "-c", lines],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1500,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def check(told, folder):
    """That a reader sees what the README says."""
    for block in re.findall(r"```text\n(.*?)```", README, re.DOTALL):
        for line in block.splitlines():
            pattern = re.sub(r"\d+", r"\\d+", re.escape(line))
            assert line == "…" or re.search(f"^{pattern}$", told, re.MULTILINE), line
    assert '"verdict":' in told.partition("curl ")[2]
    assert {"demo-run", "run", "figures", "verdicts.html", "verdicts.csv"} <= {
        path.name for path in folder.iterdir()
    }
    verdicts = re.findall(
        r"/demo-run/archive/desk/\S+ (fake|real|abstain|None) ", told, re.MULTILINE
    )
    assert len(verdicts) > 10


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
