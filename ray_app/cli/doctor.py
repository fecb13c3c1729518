"""`touchstone doctor`: whether this machine has what `check` and `score` need: a line for each thing, which is ok or says what to do."""

import os
import platform
import shutil
import tempfile
import textwrap
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import click

from ray_app import __version__
from ray_app.cli import options
from ray_app.errors import ExitCode, TouchstoneError, describe_error

_PACKAGE = "touchstone-forensics"
_SHOWN = ("torch", "torchvision", "ray", "transformers", "timm")
_LEAST_MEMORY, _LEAST_DISK = 2 * 2**30, 2**30
_RAY_FULL = 0.95  # of a disk: from there on Ray writes no objects to it (its local_fs_capacity_threshold)
_OLD_DAYS = 90  # of a trust list
_HEAD_S = 2.0  # a head that is there answers in milliseconds
_WIDTH = 100


class Diagnosis(NamedTuple):
    """What was found, and what to do about it ("" where it is ok). `code` is what the command ends with; DONE: it can wait."""

    found: str
    todo: str = ""
    code: ExitCode = ExitCode.DONE

    @property
    def state(self) -> str:
        """`ok`; `note` where what is missing is needed by neither `check` nor `score`; else `FAIL`."""
        return "FAIL" if self.code else "note" if self.todo else "ok"


def _packages() -> Diagnosis:
    from importlib import metadata

    from packaging.requirements import Requirement

    from ray_app.config import config_root

    wrong, versions = dict[str, str](), {one: metadata.version(one) for one in _SHOWN}
    for owner in ("torchvision", _PACKAGE):
        for wanted in map(Requirement, metadata.requires(owner) or ()):
            if wanted.marker is None or wanted.marker.evaluate({"extra": ""}):
                versions[wanted.name] = metadata.version(wanted.name)
                if not wanted.specifier.contains(versions[wanted.name], prereleases=True):
                    wrong[wanted.name] = f"{wanted.name} {versions[wanted.name]}, and {owner} is made for {wanted.specifier}"
    if wrong:
        code = ExitCode.CLUSTER if set(wrong) == {"ray"} else ExitCode.DETECTOR
        return Diagnosis("; ".join(wrong.values()), f"install Touchstone anew, or: pip install --upgrade {' '.join(wrong)}", code)
    pins = config_root().parent / "constraints.txt"  # in a checkout
    tested = dict(line.split("==") for line in pins.read_text().splitlines() if "==" in line) if pins.is_file() else {}
    others = sorted(name for name, version in versions.items() if tested.get(name, version) != version)
    untested = f"; not those of constraints.txt: {', '.join(others)}" * bool(others)
    return Diagnosis(", ".join(f"{one} {versions[one]}" for one in _SHOWN) + untested)


def _gpu() -> Diagnosis:
    from ray_app.cluster import gpu_check

    built, gpus = gpu_check.torch_and_gpus()
    problem = None if gpus else gpu_check.gpu_problem()
    if problem is None:
        return Diagnosis(f"{gpus or 'none'}; {built}")
    found, todo = problem.split(": ", 1)  # where its driver is loaded, Ray counts the GPU, and would send it work
    return Diagnosis(found, todo, ExitCode.DETECTOR if gpu_check.DRIVER.exists() else ExitCode.DONE)


def _precision() -> Diagnosis:
    from ray_app.detectors.cpu import CPU_PRECISION_VARIABLE, cpu_precision

    chosen, said = cpu_precision(), os.environ.get(CPU_PRECISION_VARIABLE)
    why = (
        f"{CPU_PRECISION_VARIABLE} says so"
        if said
        else f"it {'multiplies' if chosen == 'bf16' else 'has no instructions for'} bf16 matrices"
    )
    return Diagnosis(f"{chosen} on this processor: {why}")


def _cores() -> Diagnosis:
    from ray_app.cluster.ray_cluster import cores_for_ray

    ours, machine, allowed = cores_for_ray(), os.cpu_count() or 1, len(os.sched_getaffinity(0))
    found = f"Ray takes {ours} of the machine's {machine}"
    if allowed < ours:
        return Diagnosis(f"{found}, and this process may use {allowed}", f"touchstone score … --set cluster.cpus={allowed}")
    return Diagnosis(found + ", the container's limit" * (ours < machine))


def _memory() -> Diagnosis:
    from ray_app.storage.node_budget import free_memory, node_memory

    free = free_memory()
    found = f"{_gb(free)} free of {_gb(node_memory())}"
    return Diagnosis(found) if free >= _LEAST_MEMORY else Diagnosis(found, "end what takes it, or give it more", ExitCode.CLUSTER)


def _shared_memory() -> Diagnosis:
    from ray_app.cluster.ray_cluster import LOCAL_OBJECT_STORE_BYTES

    shared = Path("/dev/shm")  # noqa: S108 - where Ray keeps its objects
    free = shutil.disk_usage(shared).free if shared.exists() else 0
    slow = free < LOCAL_OBJECT_STORE_BYTES
    return Diagnosis(f"{_gb(free)} free", "Ray takes a disk instead, which is slow; give a container --shm-size=1g" if slow else "")


def _disk() -> Diagnosis:
    from ray_app.cluster.ray_cluster import ray_base

    change = "make room there, or set TMPDIR to another disk"
    try:
        place = ray_base()
        with tempfile.TemporaryFile(dir=place):
            disk = shutil.disk_usage(place)
    except OSError as error:
        return Diagnosis(f"files of a run cannot be written: {error}", change, ExitCode.CLUSTER)
    found, full = f"{_gb(disk.free)} free in {place}", f"Ray writes nothing to a disk that is {_RAY_FULL:.0%} full: {change}"
    if disk.free < _LEAST_DISK:
        return Diagnosis(found, change, ExitCode.CLUSTER)
    return Diagnosis(found, full if disk.free / disk.total < 1 - _RAY_FULL else "")


def _cache() -> Diagnosis:
    from ray_app.config import CACHE_VARIABLE, cache_folder

    folder = cache_folder("weights").parent
    there = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            return Diagnosis(f"{folder}, {_gb(shutil.disk_usage(there).free)} free")
    except OSError as error:
        todo = f"set {CACHE_VARIABLE} to a folder of yours, for fetched weights and trust lists"
        return Diagnosis(f"{folder} cannot be written: {error.strerror}", todo)


def _weights() -> Diagnosis:
    from ray_app.config import named_configs
    from ray_app.detectors import load_card
    from ray_app.detectors.weights import located, parts_of
    from ray_app.ensembles import load_ensemble_card

    cards = {name: load_ensemble_card(name) for name in named_configs("ensembles")}
    here = [
        name
        for name, card in cards.items()
        if card.profile is None and all(located(part) for member in card.members for part in parts_of(load_card(member.detector)))
    ]
    if "default" not in here:
        return Diagnosis("those of the ensemble `default` are missing", "they come with the package: install it anew", ExitCode.DETECTOR)
    return Diagnosis(f"at hand for {', '.join(here)} ({len(here)} of {len(cards)} ensembles)")


def _trust() -> Diagnosis:
    from ray_app.images.provenance.trust_lists import UPDATE, cached_files

    files = cached_files()
    if not files:
        return Diagnosis("none: signatures (C2PA) are read, and no signer is trusted", UPDATE)
    age = (datetime.now(UTC) - min(datetime.fromisoformat(one.fetched_at) for one in files.values())).days
    return Diagnosis(f"{len(files)} files, the oldest fetched {age} days ago", UPDATE if age > _OLD_DAYS else "")


def _cluster() -> Diagnosis:
    from ray_app.cluster.ray_cluster import named_cluster, require_head

    address = named_cluster()
    if address is None:
        return Diagnosis("none named (RAY_ADDRESS): each command starts a Ray of its own")
    require_head(address, _HEAD_S)
    token = os.environ.get("RAY_AUTH_MODE") == "token"
    return Diagnosis(
        f"{address} answers, {'and takes our token' if token else 'anybody'}", "" if token else "docs/security.md: RAY_AUTH_MODE=token"
    )


def _chromium() -> Diagnosis:
    found = shutil.which("chromium")
    return Diagnosis(found or "none: tests of pages are skipped", "" if found else "apt-get install chromium")


_CHECKS: dict[str, tuple[Callable[[], Diagnosis], ExitCode]] = {  # and what the command ends with where one cannot even look
    "packages": (_packages, ExitCode.DETECTOR),
    "gpu": (_gpu, ExitCode.DETECTOR),
    "precision": (_precision, ExitCode.DETECTOR),
    "cores": (_cores, ExitCode.CLUSTER),
    "memory": (_memory, ExitCode.CLUSTER),
    "/dev/shm": (_shared_memory, ExitCode.CLUSTER),  # noqa: S108 - where Ray keeps its objects
    "disk": (_disk, ExitCode.CLUSTER),
    "cache": (_cache, ExitCode.CLUSTER),
    "weights": (_weights, ExitCode.DETECTOR),
    "trust list": (_trust, ExitCode.CLUSTER),
    "cluster": (_cluster, ExitCode.CLUSTER),
    "chromium": (_chromium, ExitCode.BUG),
}


@click.command()
@options.as_json
def doctor(as_json: bool) -> int:
    """Say what this machine has, and what to do where something is missing.

    Versions, GPU, precision, cores, memory, disk, weights, trust lists, a named cluster. Nothing is started or fetched. FAIL: `check` or
    `score` would fail, and the exit code is theirs (4 detector or weights, 5 storage or cluster). note: it can wait. A report of a bug
    is answered faster with these lines in it.

    \b
    touchstone doctor
    touchstone doctor --json
    """
    from ray_app.config import config_root

    is_checkout = (config_root().parent / "tests").is_dir()
    found = {name: _found(*one) for name, one in _CHECKS.items() if is_checkout or name != "chromium"}
    code = next((one.code for one in found.values() if one.code), ExitCode.DONE)
    machine = {"version": __version__, "python": platform.python_version(), "system": platform.platform()}
    checks = [{"name": name, "state": one.state, "found": one.found, "todo": one.todo} for name, one in found.items()]
    lines = [f"Touchstone {__version__}, Python {machine['python']}, {machine['system']}"]
    for name, one in found.items():
        told = f"{one.state:4}  {name:10}  {one.found}{' → ' * bool(one.todo)}{one.todo}"
        lines += textwrap.wrap(told, _WIDTH, subsequent_indent=" " * 18, break_on_hyphens=False)
    options.echo_document({**machine, "exit_code": int(code), "checks": checks}, lines, as_json)
    return code


def _found(check: Callable[[], Diagnosis], code: ExitCode) -> Diagnosis:
    try:
        return check()
    except TouchstoneError as error:
        return Diagnosis(error.message, error.hint or "", error.exit_code)
    except Exception as error:  # a damaged installation raises anything
        return Diagnosis(describe_error(error), "install Touchstone anew; if it stays, report it", code)


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"
