"""The README's lines as a script, and a check of what they print."""

import re
import socket
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
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
