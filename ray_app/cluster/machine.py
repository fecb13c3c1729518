"""Check whether Touchstone can work on this machine, for `touchstone doctor`.

`CHECKS` has the checks by name, such as "gpu" and "memory". Each check is a function that returns
two texts. The first describes the result. The second is an instruction for the user, or "" if
nothing has to be done. A check raises an exception if neither `touchstone check` nor `touchstone
score` could work. Only the checks that need torch or Ray import them.
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
from ray_app.detectors.weights import find_local_file, list_parts
from ray_app.ensembles import load_ensemble_card
from ray_app.errors import ClusterError, DetectorError
from ray_app.images.provenance import trust_lists
from ray_app.storage.node_budget import node_memory, usable_cores

MIN_MEMORY_BYTES, MIN_DISK_BYTES = 2 * 2**30, 2**30
_MAX_TRUST_LIST_DAYS = 90


def _packages() -> tuple[str, str]:
    wrong = dict[str, str]()
    for owner in ("torchvision", "touchstone-forensics"):
        for requirement in map(Requirement, requires(owner) or ()):
            is_needed = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            if is_needed and not requirement.specifier.contains(
                installed := version(requirement.name), prereleases=True
            ):
                wrong[requirement.name] = (
                    f"{requirement.name} {installed}, but {owner} requires {requirement.specifier}"
                )
    if wrong:
        raise DetectorError(
            "; ".join(wrong.values()),
            hint=f"install Touchstone again, or: pip install --upgrade {' '.join(wrong)}",
        )
    return ", ".join(
        f"{name} {version(name)}"
        for name in ("torch", "torchvision", "ray", "transformers", "timm")
    ), ""


def _gpu() -> tuple[str, str]:
    build, gpus = gpu_check.torch_and_gpus()
    problem = None if gpus else gpu_check.gpu_problem()
    if problem is None:
        return f"{gpus or 'none'}; {build}", ""
    finding, fix = problem.split(": ", 1)
    if gpu_check.DRIVER.exists():  # Ray counts such a GPU, and would send work to it.
        raise DetectorError(finding, hint=fix)
    return finding, fix


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
    if (ray_memory := memory_seen_by_ray()) is None:
        return _gb(node_memory()), ""
    free, shared = ray_memory
    finding = f"{_gb(free)} free of {_gb(node_memory())}, {_gb(shared)} in /dev/shm"
    if free < MIN_MEMORY_BYTES:
        raise ClusterError(
            finding,
            hint=f"stop processes that use memory, or add memory: at least {_gb(MIN_MEMORY_BYTES)} must be free",
        )
    slow = shared < ray_cluster.LOCAL_OBJECT_STORE_BYTES
    return (
        finding,
        "Ray uses a disk instead of /dev/shm, which is slow; give a container --shm-size=1g"
        if slow
        else "",
    )


def _disk() -> tuple[str, str]:
    change = "free disk space there, or set TMPDIR to another disk"
    try:
        base = ray_base()
        free = _free_bytes(base)
    except OSError as error:
        raise ClusterError(f"files of a run cannot be written: {error}", hint=change) from None
    if free < MIN_DISK_BYTES:
        raise ClusterError(
            f"{_gb(free)} free in {base}; at least {_gb(MIN_DISK_BYTES)} must be free", hint=change
        )
    return f"{_gb(free)} free in {base}", ""


def _cache() -> tuple[str, str]:
    folder = cache_folder("weights").parent
    try:
        return (
            f"{_gb(_free_bytes(next(path for path in (folder, *folder.absolute().parents) if path.exists())))} free in {folder}",
            "",
        )
    except OSError as error:
        return (
            f"{folder}: {error.strerror}",
            f"set {CACHE_VARIABLE} to a folder of yours, for fetched weights and trust lists",
        )


def _free_bytes(folder: Path) -> int:
    """Return the free bytes of a folder's disk. Raises OSError if no file can be written there."""
    with tempfile.TemporaryFile(dir=folder):
        return shutil.disk_usage(folder).free


def _weights() -> tuple[str, str]:
    cards = {name: load_ensemble_card(name) for name in named_configs("ensembles")}
    needed = {
        name: [part for member in card.members for part in list_parts(load_card(member.detector))]
        for name, card in cards.items()
    }
    available = [
        name
        for name, parts in needed.items()
        if cards[name].profile is None and all(map(find_local_file, parts))
    ]
    if "default" not in available:
        raise DetectorError(
            "weights of the ensemble `default` are missing",
            hint="install Touchstone again: they come with the package",
        )
    return f"available for {', '.join(available)} ({len(available)} of {len(cards)} ensembles)", ""


def _trust() -> tuple[str, str]:
    fetched = [
        datetime.fromisoformat(file.fetched_at) for file in trust_lists.cached_files().values()
    ]
    if not fetched:
        return "none, so no signer (C2PA) is trusted", trust_lists.UPDATE
    age = (datetime.now(UTC) - min(fetched)).days
    return f"{age} days old", trust_lists.UPDATE if age > _MAX_TRUST_LIST_DAYS else ""


def _cluster() -> tuple[str, str]:
    address = ray_cluster.named_cluster()
    if address is None:
        return "none named (RAY_ADDRESS): each command starts its own Ray", ""
    ray_cluster.require_head(address)
    has_token = os.environ.get("RAY_AUTH_MODE") == "token"
    access = "" if has_token else ", but commands send it no token"
    hint = "" if has_token else "set RAY_AUTH_MODE=token (docs/security.md)"
    return f"{address} accepts connections{access}", hint


def _chromium() -> tuple[str, str]:
    path = shutil.which("chromium")
    return path or "none: tests of pages are skipped", "" if path else "apt-get install chromium"


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"


CHECKS: Mapping[str, Callable[[], tuple[str, str]]] = {
    "packages": _packages, "gpu": _gpu, "cpu": _cpu, "memory": _memory, "disk": _disk, "cache": _cache,
    "weights": _weights, "trust list": _trust, "cluster": _cluster,
    **({"chromium": _chromium} if (config_root().parent / "tests").is_dir() else {}),
}  # fmt: skip
