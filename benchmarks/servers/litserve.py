"""How LitServe is started. The script is a module of its own: LitServe starts processes that import
it, and nobody else needs LitServe.
"""

from importlib.util import find_spec

from benchmarks.servers.server import Server, script

INSTALL = ".venv/bin/uv pip install --python .venv --constraint constraints.txt litserve"
SCRIPT = "benchmarks.servers.litserve_app"
WAIT_S = 0.005  # How long an image waits for others in its batch.


def missing() -> str | None:
    return None if find_spec("litserve") else f"LitServe is not installed: {INSTALL}"


LITSERVES = (
    Server(
        "litserve",
        "LitServe, one worker",
        script(SCRIPT, "1"),
        1,
        "/predict",
        "/health",
        missing=missing,
    ),
    Server(
        "litserve_two_workers",
        "LitServe, two workers",
        script(SCRIPT, "2"),
        2,
        "/predict",
        "/health",
        missing=missing,
    ),
)
