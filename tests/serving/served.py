"""A running `touchstone serve` in a process of its own, and what it logs."""

import os
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from ray_app.serving.engine import golden_image
from tests.make.ray_head import free_ports
from tests.serving.http.live import ask, request

ROOT = Path(__file__).resolve().parents[2]


class Served:
    """The endpoint's process, where it answers, and all that its processes log."""

    def __init__(self, port, folder, process):
        self.port, self.folder, self.process = port, folder, process
        self.url = f"http://127.0.0.1:{port}"

    def score(self, data=None):
        data = data or golden_image()
        return ask(
            self.port,
            request("POST", "/v1/score", f"Content-Length: {len(data)}", body=data),
            timeout_s=60,
        ).status

    def logs(self):
        """Text by file: what the command wrote and, on Ray, Serve's own files and the workers'."""
        kinds = ("worker-", "replica_", "proxy_", "controller_")
        files = [
            path
            for session in self.folder.glob("ts-*/ray/session_latest/logs")
            for path in session.rglob("*")
            if path.is_file() and path.name.startswith(kinds)
        ]
        return {
            path.name: path.read_text(errors="replace") for path in (*files, self.folder / "stderr")
        }

    def family(self):
        """Its processes, itself first."""
        own = psutil.Process(self.process.pid)
        return [own, *own.children(recursive=True)]

    def decoders(self):
        return [
            one for one in self.family() if any("decoder_child" in word for word in words_of(one))
        ]

    def workers(self):
        """The processes that have a decoder."""
        parents = set()
        for decoder in self.decoders():
            with suppress(psutil.NoSuchProcess):
                parents.add(decoder.ppid())
        return [one for one in self.family() if one.pid in parents]


def words_of(process):
    """The words of its command; nothing once it has ended."""
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


@contextmanager
def served(*options, ensemble="tiny", exit_code=0, **variables):
    """`touchstone serve --ensemble ENSEMBLE` with more options, and more in its environment, from
    its address on stdout to its end with this exit code.
    """
    port = free_ports(1)[0]
    with tempfile.TemporaryDirectory(prefix="tp", dir="/tmp") as name:
        folder = Path(name)
        environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_TMPDIR": name} | variables
        with open(folder / "stderr", "w") as log:
            command = [
                sys.executable,
                "-m",
                "ray_app.cli",
                "serve",
                "--port",
                str(port),
                "--ensemble",
                ensemble,
                *options,
            ]
            process = subprocess.Popen(
                command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True
            )
        try:
            assert process.stdout.readline().strip() == f"http://127.0.0.1:{port}/", (
                folder / "stderr"
            ).read_text()
            yield Served(port, folder, process)
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(90) == exit_code
            process.stdout.close()
