"""Ours: `touchstone serve` as any user starts it, the same on a Ray of its own (`--ray`), and that of an earlier version."""

import os
import sys
from collections.abc import Mapping

from benchmarks.servers.server import ROOT, Server
from benchmarks.work import Work
from ray_app.detectors import load_card

BEFORE = "TOUCHSTONE_BEFORE"  # a checkout of an earlier version, where there is one to compare with


def _field(work: Work) -> str:
    return f"scores.{load_card(work.card).name}"


def _ours(name: str, says: str, cores: int, *options: str, environment: Mapping[str, str] | None = None) -> Server:
    def command(work: Work, port: int) -> list[str]:
        serve = [sys.executable, "-m", "ray_app.cli.main", "serve", "--port", str(port), "--ensemble", str(work.ensemble)]
        return [*serve, *options]

    return Server(name, says, command, cores, "/v1/score", "/readyz", _field, environment or {"PYTHONPATH": str(ROOT)})


OURS = (
    _ours("server", "touchstone serve", 1),
    _ours("server_two_workers", "touchstone serve --workers 2", 2, "--workers", "2"),
    _ours("ray", "touchstone serve --ray", 1, "--ray"),
    # As many decoders as model processes: the peers decode in theirs.
    _ours("ray_two", "the same with two replicas", 2, "--ray", "--set", "detectors.replicas=2", "--set", "decoders=2"),
    _ours("before", f"touchstone serve of ${BEFORE}", 1, environment={"PYTHONPATH": os.environ.get(BEFORE, "")}),
)
