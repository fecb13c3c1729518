"""What a server is to the harness: a command that serves one detector, where it is asked, and when
it is up. Knows processes and HTTP.
"""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.measuring import MARK, ContenderError, ProcessTree
from benchmarks.work import Work

ROOT = Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 180.0
GRACE_S = 40.0  # Serve with HAProxy takes 30 s to shut down
TOKEN = "benchmarks-on-loopback"  # noqa: S105 - of an endpoint that lives for a minute on loopback

# Every server, ours too, gets one thread per model: with more, models that run at once would only
# be in each other's way.
THREADS = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}


@dataclass(frozen=True)
class Server:
    """`command(work, port)` serves the work's detector until it is told to end. It is asked with
    POST at `path`, a form with a `file`.

    `score_at(work)`: where the score stands in an answer. `cores`: on how many cores its model can
    be at work at once. `missing()`: what it lacks on this machine, in words, or None.
    """

    name: str
    says: str
    command: Callable[[Work, int], list[str]]
    cores: int
    path: str = "/score"
    ready: str = "/ready"
    score_at: Callable[[Work], str] = lambda work: "score"
    environment: Mapping[str, str] = field(default_factory=dict)
    missing: Callable[[], str | None] = lambda: None


@dataclass(frozen=True)
class Running:
    """A server that is up: where, how long that took, what memory its processes hold now and what
    CPU time they have had so far.
    """

    url: str
    startup_s: float
    memory_bytes: Callable[[], int]
    cpu_s: Callable[[], float]


@contextmanager
def running(server: Server, work: Work, folder: Path) -> Iterator[Running]:
    """Start a server in fresh processes and end all of them afterwards. Raises ContenderError where
    it does not come up.
    """
    port, mark, log = _free_port(), uuid.uuid4().hex, folder / f"{server.name}.log"
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    environment |= {
        "PYTHONPATH": str(ROOT),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TMPDIR": str(folder),
    }
    environment |= {
        "HF_HUB_OFFLINE": "1",
        "TOUCHSTONE_TOKENS": TOKEN,
        **THREADS,
        **server.environment,
        MARK: mark,
    }
    begin = time.monotonic()
    with log.open("wb") as printed:
        process = subprocess.Popen(
            server.command(work, port),
            env=environment,
            stdout=printed,
            stderr=printed,
            start_new_session=True,
            cwd=folder,
        )
    tree = ProcessTree(process.pid, mark)
    try:
        _await_ready(process, port, server.ready, log)
        yield Running(
            f"http://127.0.0.1:{port}{server.path}",
            time.monotonic() - begin,
            tree.memory_bytes,
            lambda: sum(map(_cpu_s, tree.living())),
        )
    finally:
        tree.living()  # whom to end, even if the first of them ends before it has told the others
        process.send_signal(signal.SIGINT)
        tree.end(GRACE_S)
        process.wait()


def script(module: str, *extra: str) -> Callable[[Work, int], list[str]]:
    """The command of a server that is a script of ours: `python -m MODULE WORK-AS-JSON PORT …`."""
    return lambda work, port: [
        sys.executable,
        "-m",
        module,
        json.dumps(work.as_json()),
        str(port),
        *extra,
    ]


def arguments() -> tuple[Work, int, list[str]]:
    """What `script` passed, in the process that it started."""
    return Work(**json.loads(sys.argv[1])), int(sys.argv[2]), sys.argv[3:]


def _await_ready(process: subprocess.Popen[bytes], port: int, path: str, log: Path) -> None:
    tick, deadline = threading.Event(), time.monotonic() + START_TIMEOUT_S
    while not _answers(port, path):
        if process.poll() is not None or time.monotonic() > deadline:
            what = (
                "is not up in time"
                if process.poll() is None
                else f"ended with exit code {process.returncode}"
            )
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
            raise ContenderError(f"{' '.join(map(str, process.args))}: {what}\n{tail}")
        tick.wait(0.1)


def _answers(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {TOKEN}"})
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _cpu_s(pid: int) -> float:
    try:
        # the name before it may hold anything
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # it ended while we looked
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # user and system


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
