"""Ray's workers as forks of one process that has imported what all of them need (`begin`), so that three seconds are spent once.

    driver ── starts ──> mould: imports, and forks on request ──> worker, worker …
    raylet ── starts ──> this file in the place of Ray's worker program: asks the mould for a fork, and lasts as long as that does

Where no mould listens, or it does not answer, Ray's own program is run, which is what a worker is on any cluster.
"""

import os
import sys

if __name__ == "__main__" and not sys.flags.safe_path:
    del sys.path[0]  # This folder: its modules have the names of others.

import atexit
import gc
import select
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module, util
from pathlib import Path

_SOCKET = "TOUCHSTONE_MOULD"
# The secrets of an endpoint and its clients. Workers never need them, and any task could read them there.
SECRETS = ("TOUCHSTONE_TOKENS", "TOUCHSTONE_TOKEN")
# Ray scores in a thread of its own; with a heap of its own it would ignore what ray_app.detectors.precision asks for.
WORKER_ENVIRONMENT = {"MALLOC_ARENA_MAX": "1"}
_moulds: list[tuple[subprocess.Popen[bytes], str]] = []


def begin(modules: Sequence[str]) -> None:
    """Start the mould for the Ray that this process will start, unless there is one; it ends by `end`, and with this process.

    `modules`: what is imported, the last one with Ray, the others without. Nothing is done without any, where this process has joined a Ray
    or another is named, and beyond Linux, where libraries do not bear a fork.
    """
    has_joined = "ray" in sys.modules and sys.modules["ray"].is_initialized()
    is_elsewhere = has_joined or os.environ.get("RAY_ADDRESS", "local") not in ("", "local")
    if _moulds or not modules or sys.platform != "linux" or is_elsewhere:
        return
    from ray_app.cluster.ray_folder import ray_base
    from ray_app.import_path import SEARCH_PATH, safe_variables

    folder = tempfile.mkdtemp(prefix="ts-mould-", dir=ray_base())  # Only this user may enter it.
    os.environ[_SOCKET] = os.path.join(folder, "socket")
    # Forks show in /proc what their mould was started with.
    left_out = (*SECRETS, "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", SEARCH_PATH)
    inherited = {name: value for name, value in os.environ.items() if name not in left_out}
    variables = {"OMP_NUM_THREADS": "1", **inherited, **WORKER_ENVIRONMENT, **safe_variables()}
    with socket.socket(socket.AF_UNIX) as listening:  # from now on requests wait for the mould
        listening.bind(os.environ[_SOCKET])
        listening.listen()
        command = [sys.executable, __file__, "--mould", str(os.getpid()), *modules]
        nowhere = subprocess.DEVNULL
        mould = subprocess.Popen(
            command, stdin=listening.fileno(), stdout=nowhere, stderr=nowhere, env=variables, cwd=folder, process_group=0
        )
    _moulds.append((mould, folder))
    atexit.register(end)


def end() -> None:
    """End the mould, if there is one."""
    while _moulds:
        mould, folder = _moulds.pop()
        mould.kill()
        mould.wait()
        os.environ.pop(_SOCKET, None)
        shutil.rmtree(folder, ignore_errors=True)


def _worker_program() -> Path:
    """Ray's own; found without loading it."""
    return Path(str(util.find_spec("ray").origin)).parent / "_private" / "workers" / "default_worker.py"  # type: ignore[union-attr]


def _mould(driver: int, modules: Sequence[str]) -> None:
    """Import, fork on request, and end with the driver. Returns in a worker, which is to go on."""
    *early, late = modules
    place, known = Path(os.environ[_SOCKET]), None
    for name in early:
        import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    listening = socket.socket(fileno=0)
    while os.getppid() == driver:
        if not select.select([listening], (), (), 1.0)[0]:
            continue
        asked, _ = listening.accept()
        who, _, _ = struct.unpack("3i", asked.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        with suppress(OSError):  # it has ended meanwhile
            variables = sorted(Path(f"/proc/{who}/environ").read_bytes().split(b"\0"))
            if known is None:  # Ray's library reads its raylet's process id and more where it is loaded, and then never again
                known = variables
                os.environ.clear()
                os.environ.update((name, value) for name, _, value in (os.fsdecode(one).partition("=") for one in variables if one))
                import_module(late)
                gc.freeze()  # so that a worker's collector does not copy what it shares
            if variables == known:
                if os.fork() == 0:
                    return _become(who, asked.detach())
                asked.send(b"1")
        asked.close()
    shutil.rmtree(place.parent, ignore_errors=True)
    sys.exit()


def _become(who: int, lasts: int) -> None:
    """What a raylet started as `who`, which waits until `lasts` is closed."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.setpgid(0, os.getpgid(who))  # the raylet ends this group with its worker
    os.chdir(f"/proc/{who}/cwd")
    sys.modules["numpy"].random.seed()
    Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")  # as the raylet has it for what it starts: workers first
    words = Path(f"/proc/{who}/cmdline").read_text(encoding="utf-8").split("\0")[:-1]
    sys.argv = [str(_worker_program()), *words[words.index(__file__) + 1 :]]
    sys.path.insert(0, str(_worker_program().parent))


def _is_forked() -> bool:
    """Ask the mould for a worker, and wait for the end of that. False: there is no mould that knows this raylet."""
    with suppress(OSError, KeyError), socket.socket(socket.AF_UNIX) as asked:
        asked.connect(os.environ[_SOCKET])
        return bool(asked.recv(1)) and not asked.recv(1)
    return False


if __name__ == "__main__":
    if sys.argv[1] == "--mould":
        _mould(int(sys.argv[2]), sys.argv[3:])
    elif _is_forked():
        sys.exit()
    else:
        os.execv(sys.executable, [sys.executable, str(_worker_program()), *sys.argv[1:]])  # noqa: S606 - a shell is not wanted
    import runpy

    runpy.run_path(sys.argv[0], run_name="__main__")
