"""The README's own lines, from top to bottom, in an empty folder."""

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


def script(text=README):
    """All console and Python blocks as one bash script; each line is printed before it runs."""
    parts = ["set -euo pipefail"]
    for language, block in re.findall(r"```(console|python)\n(.*?)```", text, re.DOTALL):
        if language == "python":
            parts.append(f"python - <<'PYTHON'\n{block}PYTHON")
        else:
            parts += [f"printf '%s\\n' {_quoted('$ ' + line)}\n{line}" for line in block.splitlines()]
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


def run(folder, bin_folder):
    """What the lines print, run in a folder with the commands of an environment. `pip install` finds what is there."""
    port = free_port()
    lines = (
        script() if port == PORT else script().replace("touchstone serve &", f"touchstone serve --port {port} &").replace("8000", str(port))
    )
    path = f"{bin_folder}{os.pathsep}{os.environ['PATH']}"
    unset = {"PYTHONPATH", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_ADDRESS"}
    environment = {name: value for name, value in os.environ.items() if name not in unset} | {"PATH": path, "PIP_NO_INDEX": "1"}
    command = ["bash", "-c", lines]
    done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def check(told, folder):
    """That a reader sees what the README says."""
    for block in re.findall(r"```text\n(.*?)```", README, re.DOTALL):
        for line in block.splitlines():
            pattern = re.sub(r"\d+", r"\\d+", re.escape(line))
            assert line == "…" or re.search(f"^{pattern}$", told, re.MULTILINE), line
    assert '"verdict":' in told.partition("curl ")[2]
    assert {"demo", "run", "figures", "verdicts.html", "verdicts.csv"} <= {path.name for path in folder.iterdir()}
    verdicts = re.findall(r"/demo/archive/desk/\S+ (fake|real|abstain|None) ", told, re.MULTILINE)
    assert len(verdicts) > 10


@pytest.mark.ray
@pytest.mark.timeout(900)
def test_the_lines_run_in_an_empty_folder(tmp_path):
    check(run(tmp_path, Path(sys.executable).parent), tmp_path)


def test_it_is_short_and_whole():
    assert len(README.splitlines()) <= 125
    assert not re.search(r"@[A-Z]+@", README)


def test_its_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#:]+)[^):]*\)", README)
    assert len(links) > 20
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_changelog_s_newest_version_is_the_package_s():
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest[1] == __version__
    assert f'version = "{__version__}"' in (ROOT / "pyproject.toml").read_text()
