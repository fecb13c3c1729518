"""Ours: `touchstone serve` as any user starts it, the same on a Ray of its own (`--ray`), and that
of an earlier version.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from benchmarks.servers.server import ROOT, Server
from benchmarks.work import Work
from ray_app.detectors import load_card

BEFORE = "TOUCHSTONE_BEFORE"  # a checkout of an earlier version, to have both in one run
# the ensemble of touchstone-tiny there; it was `default` until 0.9
ITS_TINY = "TOUCHSTONE_BEFORE_TINY"


def missing() -> str | None:
    tree = os.environ.get(BEFORE)
    return (
        None
        if tree and (Path(tree) / "ray_app").is_dir()
        else f"${BEFORE} names no checkout of an earlier version"
    )


def _field(work: Work) -> str:
    return f"scores.{load_card(work.card).name}"


def _command(module: str, work: Work, port: int, *options: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        module,
        "serve",
        "--port",
        str(port),
        "--ensemble",
        str(work.ensemble),
        *options,
    ]


def _serve(*options: str) -> Callable[[Work, int], list[str]]:
    return lambda work, port: _command("ray_app.cli", work, port, *options)


def _serve_before(work: Work, port: int) -> list[str]:
    its_own = os.environ.get(ITS_TINY, "tiny") if work.ensemble == "tiny" else work.ensemble
    return _command("ray_app.cli", replace(work, ensemble=its_own), port)


def _ours(name: str, says: str, cores: int, *options: str) -> Server:
    return Server(name, says, _serve(*options), cores, "/v1/score", "/readyz", _field)


OURS = (
    _ours("server", "touchstone serve --workers 1", 1, "--workers", "1"),
    _ours("server_two_workers", "touchstone serve --workers 2", 2, "--workers", "2"),
    _ours("ray", "touchstone serve --ray", 1, "--ray"),
    _ours(
        "ray_two",
        "touchstone serve --ray, two replicas",
        2,
        "--ray",
        "--set",
        "replica.replicas=2",
    ),
)
BEFORES = (
    Server(
        "before", f"touchstone serve of ${BEFORE}", _serve_before, 1, "/v1/score", "/readyz", _field,
        {"PYTHONPATH": os.environ.get(BEFORE, str(ROOT))}, missing,
    ),
)  # fmt: skip
