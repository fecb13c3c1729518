"""The wild server, what it has seen, and lists of its urls."""

import json
import subprocess
import sys
import urllib.request
from contextlib import closing
from pathlib import Path

import pytest

from ray_app.datajobs.download import CollectConfig
from ray_app.images import ImageLimits
from ray_app.inference.decoder_pool import IsolatedDecoders
from tests.scoring.conftest import wait_until

ROOT = Path(__file__).resolve().parents[3]


class Web:
    """The server, seen from a test."""

    def __init__(self, port):
        self.port = port

    def url(self, host, path):
        return f"http://{host}.test:{self.port}/{path}"

    def told(self):
        return self._get("/_told")

    def forget(self):
        self._get("/_forget")

    def _get(self, path):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=60) as answer:
            return json.load(answer)


@pytest.fixture(scope="session")
def wild(tmp_path_factory):
    """One server for all tests of this process."""
    port_file = tmp_path_factory.mktemp("wild") / "port"
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.datajobs.download.wild_server", str(port_file)], cwd=ROOT
    )
    try:
        wait_until(port_file.exists, 120)
        yield Web(int(port_file.read_text()))
    finally:
        process.kill()
        process.wait()


class LentDecoders:
    """Decoders of the whole session of tests in place of a session's own, since a process takes
    half a second to start.
    """

    def __init__(self, decoders):
        self.decode = decoders.decode

    def close(self):
        """They serve the next test, too."""


@pytest.fixture(scope="session")
def decoders():
    with closing(
        IsolatedDecoders(ImageLimits(), processes=1, wall_limit_s=20, memory_limit_bytes=None)
    ) as shared:
        yield shared


@pytest.fixture
def web(wild, decoders, monkeypatch):
    """The server, with nothing asked of it yet; what comes from it is decoded by decoders that are
    up already.
    """
    wild.forget()
    monkeypatch.setattr(
        "ray_app.datajobs.download.fetch.IsolatedDecoders", lambda *_, **__: LentDecoders(decoders)
    )
    return wild


HOSTS = [f"h{number}" for number in range(7)]
OTHERS = ["tired", "dead", "one", "two"]
RESOLVE = {f"{host}.test": "127.0.0.1" for host in [*HOSTS, *OTHERS]}
QUICK = {"attempts": 3, "base_s": 0.01, "cap_s": 0.05, "deadline_s": 300}


def config(meta, out, **changes):
    """Quick settings; the server's hosts are on loopback."""
    given = {
        "meta": str(meta), "out": str(out), "resolve": RESOLVE, "allow_private": True, "retry": QUICK, "commit_s": 0.2,
        "limits": {"max_bytes": 2**20, "connect_timeout_s": 60, "read_timeout_s": 60}, "politeness": {"contact": "me@example.org"},
    }  # fmt: skip
    return CollectConfig.model_validate(given | changes)


def write_list(folder, rows):
    """A JSON lines list of (id, url, words…)."""
    path = folder / "list.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
