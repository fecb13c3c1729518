"""Keeps a local Ray to the process that starts it (`private_ray`): a token, loopback addresses, and a folder of this user alone."""

import fcntl
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

# Where PyTorch's processes talk to each other, by itself on any address that the machine's name has.
_LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
_TORCH = {"GLOO_SOCKET_IFNAME": _LOOPBACK, "NCCL_SOCKET_IFNAME": _LOOPBACK}

# The secrets of an endpoint and its clients. Workers never need them, and whoever may start a task could read them there.
SECRETS = ("TOUCHSTONE_TOKENS", "TOUCHSTONE_TOKEN", "TOUCHSTONE_WEBHOOK_SECRET")

_FOLDER, _LOCK = "ts-", "touchstone.lock"
_LONGEST_BASE = 24  # a Unix socket's path has 107 bytes at most, and Serve's HAProxy needs 83 of them below


@contextmanager
def private_ray(hidden: Iterable[str], variables: Callable[[Path], Mapping[str, str]]) -> Iterator[Path]:
    """A Ray that is started inside the block obeys this process alone; yields the folder for its files.

    Without it Ray 2.60 listens on every address of the machine, and makes the folder of its sockets, logs and packages writable by every
    user (docs/security.md has what was measured).

    The secret stands in the environment, which the processes of Ray inherit, and nowhere else; the environment's own RAY_AUTH_* are for
    clusters. `variables(folder)` are inherited too; SECRETS and `hidden` are not. All is as before after the block.
    """
    from ray._private import ray_constants

    mine = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), **_TORCH}
    left_out = ("RAY_AUTH_TOKEN_PATH", *SECRETS, *hidden)
    many = ray_constants.ENABLE_RAY_CLUSTER
    try:
        with private_folder() as folder, _environment({**variables(folder), **mine}, left_out):
            # Ray's switch for machines whose firewall would ask, macOS and Windows: all that it starts binds to loopback.
            ray_constants.ENABLE_RAY_CLUSTER = False
            _read_anew()
            yield folder / "ray"
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = many
        _read_anew()


@contextmanager
def private_folder() -> Iterator[Path]:
    """A new folder that only this user may enter. It outlives its process, with the logs in it, until another one is made.

    Ray opens its own folder to everybody, so it has to lie in one that it does not know.
    """
    base = _base()
    _remove_abandoned(base)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_FOLDER, dir=base))
        lock = os.open(folder / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (folder / _LOCK).exists():  # else another start found it before it was locked, and took it for abandoned
            break
        os.close(lock)
    try:
        yield folder
    finally:
        os.close(lock)


def _read_anew() -> None:
    """Make Ray read the environment again: it may have cached its mode and token in this process."""
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def _base() -> Path:
    wanted = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    base = Path(wanted if len(os.fsencode(wanted)) <= _LONGEST_BASE else "/tmp")  # noqa: S108 - the folder in it is ours alone
    base.mkdir(parents=True, exist_ok=True)
    return base


def _remove_abandoned(base: Path) -> None:
    """Remove the folders whose processes have ended. A lock ends with its process, also with one that is killed."""
    for held in base.glob(f"{_FOLDER}*/{_LOCK}"):
        with suppress(OSError):
            if held.parent.lstat().st_uid != os.getuid():
                continue
            lock = os.open(held, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(held.parent, ignore_errors=True)
            finally:
                os.close(lock)


@contextmanager
def _environment(given: Mapping[str, str], without: Iterable[str]) -> Iterator[None]:
    """The environment of this process with some variables set and others taken out."""
    before = {name: os.environ.pop(name, None) for name in (*given, *without)}
    os.environ.update(given)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
