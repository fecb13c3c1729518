"""Ours: `touchstone serve` as any user starts it, with Serve's default proxy and with its HAProxy."""

import sys
from collections.abc import Mapping
from pathlib import Path

from benchmarks.servers.server import Server
from benchmarks.work import Work
from ray_app.detectors import load_card

HAPROXY = {"RAY_SERVE_ENABLE_HA_PROXY": "1"}


def _field(work: Work) -> str:
    return f"scores.{load_card(work.card).name}"


def _ours(name: str, says: str, replicas: int, environment: Mapping[str, str]) -> Server:
    def command(work: Work, port: int) -> list[str]:
        # As many decoders as model processes: the peers decode in theirs.
        several = ["--set", f"detectors.replicas={replicas}", "--set", f"decoders={replicas}"] if replicas > 1 else []
        return [str(Path(sys.executable).with_name("touchstone")), "serve", "--port", str(port), "--ensemble", str(work.ensemble), *several]

    return Server(name, says, command, replicas, "/v1/score", "/readyz", _field, environment)


OURS = (
    _ours("default_proxy", "touchstone serve", 1, {}),
    _ours("default_proxy_two", "touchstone serve, two detector replicas", 2, {}),
    _ours("haproxy", "touchstone serve behind Serve's HAProxy", 1, HAPROXY),
    _ours("haproxy_two", "the same with two detector replicas", 2, HAPROXY),
)
