"""How LitServe is started. The script is a module of its own: LitServe starts processes that import it, and nobody else needs LitServe."""

from benchmarks.servers.server import Server, script

SCRIPT = "benchmarks.servers.litserve_app"
WAIT_S = 0.005  # how long an image waits for company: our own `batching.wait_ms`

LITSERVES = (
    Server("litserve", "LitServe, one worker", script(SCRIPT, "1"), 1, "/predict", "/health"),
    Server("litserve_two_workers", "LitServe, two workers", script(SCRIPT, "2"), 2, "/predict", "/health"),
)
