"""What this machine has of what `check` and `score` need (`CHECKS`), for `touchstone doctor`. Torch
and Ray are imported by single checks.

A check gives what it found and what to do about it, "" where it is ok; it raises what neither
command could do without.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import requires, version
from pathlib import Path

from packaging.requirements import Requirement

from ray_app.cluster import gpu_check, ray_cluster
from ray_app.cluster.private_api import memory_seen_by_ray
from ray_app.cluster.ray_folder import ray_base
from ray_app.config import CACHE_VARIABLE, cache_folder, config_root, named_configs
from ray_app.detectors import load_card
from ray_app.detectors.cpu import cpu_precision
from ray_app.detectors.weights import located, parts_of
from ray_app.ensembles import load_ensemble_card
from ray_app.errors import ClusterError, DetectorError
from ray_app.images.provenance import trust_lists
from ray_app.storage.node_budget import node_memory, usable_cores

LEAST_MEMORY, LEAST_DISK = 2 * 2**30, 2**30
_OLD_DAYS = 90  # of a trust list


def _packages() -> tuple[str, str]:
    wrong = dict[str, str]()
    for owner in ("torchvision", "touchstone-forensics"):
        for wanted in map(Requirement, requires(owner) or ()):
            is_needed = wanted.marker is None or wanted.marker.evaluate({"extra": ""})
            if is_needed and not wanted.specifier.contains(
                here := version(wanted.name), prereleases=True
            ):
                wrong[wanted.name] = (
                    f"{wanted.name} {here}, and {owner} is made for {wanted.specifier}"
                )
    if wrong:
        raise DetectorError(
            "; ".join(wrong.values()),
            hint=f"install Touchstone anew, or: pip install --upgrade {' '.join(wrong)}",
        )
    return ", ".join(
        f"{name} {version(name)}"
        for name in ("torch", "torchvision", "ray", "transformers", "timm")
    ), ""


def _gpu() -> tuple[str, str]:
    built, gpus = gpu_check.torch_and_gpus()
    problem = None if gpus else gpu_check.gpu_problem()
    if problem is None:
        return f"{gpus or 'none'}; {built}", ""
    found, todo = problem.split(": ", 1)
    if gpu_check.DRIVER.exists():  # Ray counts such a GPU, and would send it work
        raise DetectorError(found, hint=todo)
    return found, todo


def _cpu() -> tuple[str, str]:
    cores, machine, allowed = usable_cores(), os.cpu_count() or 1, len(os.sched_getaffinity(0))
    limit = (
        ", the limit of the container"
        if cores < allowed
        else ", the limit of this process"
        if cores < machine
        else ""
    )
    return f"commands use {cores} of {machine} cores{limit}; networks in {cpu_precision()}", ""


def _memory() -> tuple[str, str]:
    if (seen := memory_seen_by_ray()) is None:
        return _gb(node_memory()), ""
    free, shared = seen
    found = f"{_gb(free)} free of {_gb(node_memory())}, {_gb(shared)} in /dev/shm"
    if free < LEAST_MEMORY:
        raise ClusterError(found, hint="end what takes it, or give it more")
    slow = shared < ray_cluster.LOCAL_OBJECT_STORE_BYTES
    return (
        found,
        "Ray takes a disk instead of /dev/shm, which is slow; give a container --shm-size=1g"
        if slow
        else "",
    )


def _disk() -> tuple[str, str]:
    change = "make room there, or set TMPDIR to another disk"
    try:
        place = ray_base()
        free = _writable(place)
    except OSError as error:
        raise ClusterError(f"files of a run cannot be written: {error}", hint=change) from None
    if free < LEAST_DISK:
        raise ClusterError(f"{_gb(free)} free in {place}", hint=change)
    return f"{_gb(free)} free in {place}", ""


def _cache() -> tuple[str, str]:
    folder = cache_folder("weights").parent
    try:
        return (
            f"{_gb(_writable(next(one for one in (folder, *folder.absolute().parents) if one.exists())))} free in {folder}",
            "",
        )
    except OSError as error:
        return (
            f"{folder}: {error.strerror}",
            f"set {CACHE_VARIABLE} to a folder of yours, for fetched weights and trust lists",
        )


def _writable(folder: Path) -> int:
    """Bytes that are free there. Raises OSError where no file can be written."""
    with tempfile.TemporaryFile(dir=folder):
        return shutil.disk_usage(folder).free


def _weights() -> tuple[str, str]:
    cards = {name: load_ensemble_card(name) for name in named_configs("ensembles")}
    needed = {
        name: [part for one in card.members for part in parts_of(load_card(one.detector))]
        for name, card in cards.items()
    }
    here = [
        name
        for name, parts in needed.items()
        if cards[name].profile is None and all(map(located, parts))
    ]
    if "default" not in here:
        raise DetectorError(
            "those of the ensemble `default` are missing",
            hint="they come with the package: install it anew",
        )
    return f"at hand for {', '.join(here)} ({len(here)} of {len(cards)} ensembles)", ""


def _trust() -> tuple[str, str]:
    fetched = [
        datetime.fromisoformat(one.fetched_at) for one in trust_lists.cached_files().values()
    ]
    if not fetched:
        return "none, so no signer (C2PA) is trusted", trust_lists.UPDATE
    age = (datetime.now(UTC) - min(fetched)).days
    return f"{age} days old", trust_lists.UPDATE if age > _OLD_DAYS else ""


def _cluster() -> tuple[str, str]:
    address = ray_cluster.named_cluster()
    if address is None:
        return "none named (RAY_ADDRESS): each command starts a Ray of its own", ""
    ray_cluster.require_head(address)
    has_token = os.environ.get("RAY_AUTH_MODE") == "token"
    access = "" if has_token else ", and commands send it no token"
    hint = "" if has_token else "set RAY_AUTH_MODE=token (docs/security.md)"
    return f"{address} accepts connections{access}", hint


def _chromium() -> tuple[str, str]:
    found = shutil.which("chromium")
    return found or "none: tests of pages are skipped", "" if found else "apt-get install chromium"


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"


CHECKS: Mapping[str, Callable[[], tuple[str, str]]] = {
    "packages": _packages, "gpu": _gpu, "cpu": _cpu, "memory": _memory, "disk": _disk, "cache": _cache,
    "weights": _weights, "trust list": _trust, "cluster": _cluster,
    **({"chromium": _chromium} if (config_root().parent / "tests").is_dir() else {}),
}  # fmt: skip
