"""With what a training was made: versions, devices, and the commit of the code. Plain facts by name, for train.json and the card."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ray_app import __version__

_PACKAGES = ("ray", "torch", "torchvision", "timm", "transformers", "peft", "numpy", "pillow")


def environment() -> dict[str, Any]:
    """Versions and platform of this process, as plain JSON."""
    facts: dict[str, Any] = {"touchstone": __version__, "python": platform.python_version(), "platform": platform.platform(terse=True)}
    if (commit := _commit()) is not None:
        facts["commit"] = commit
    for package in _PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            continue
    return facts


def device_name(device: str) -> str:
    """What a device of this machine is called."""
    if device != "cpu":
        import torch

        return str(torch.cuda.get_device_name())
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()


def _commit() -> str | None:
    """The commit of a checkout, `+` behind it where files differ from it; None for an installed package."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "--short=12", "HEAD")
        return commit + ("+" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()
