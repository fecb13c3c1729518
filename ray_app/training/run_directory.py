"""A training's directory: whose it is (`train.json`: `claim_recipe`, `check_claim`, `environment`),
and the figures of its steps in files.

Where and on how many machines it runs, and what is kept in case of faults, is not part of what
another command must match.

A history file is named by the step that it begins at and written with a checkpoint. Who resumes
from step s removes the files that begin at s or later: nothing stands twice, however often a part
is repeated.
"""

import json
import math
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ray_app import __version__
from ray_app.config import as_begun
from ray_app.errors import IdentityError
from ray_app.runs.directory import differences, differing_keys, refuse_others
from ray_app.storage import Store, strip_all_secrets
from ray_app.training.config import PROFILING, Recipe, TrainConfig

HISTORY, SAMPLES, UNREADABLE, MASKS, TENSORBOARD = (
    "history",
    "samples",
    "unreadable",
    "odd_masks",
    "tensorboard",
)
_EVENTS = "events.out.tfevents."
Line = Mapping[str, Any]


class HistoryWriter:
    """The lines of one rank in one folder, from one checkpoint to the next."""

    def __init__(self, out: Store, folder: str, rank: int) -> None:
        self._out, self._folder, self._rank = out, folder, rank
        self._lines: list[Line] = []

    def add(self, line: Line) -> None:
        """Keep a line until the next `write`."""
        self._lines.append(line)

    def write(self, first: int) -> list[Line]:
        """Write what was added since the last time as the file of step `first`, if anything;
        returns it.
        """
        lines, self._lines = self._lines, []
        if lines:
            text = "".join(json.dumps(line) + "\n" for line in lines)
            self._out.write(f"{self._folder}/{first:08d}-{self._rank:04d}.jsonl", text.encode())
        return lines


def delete_history_from(out: Store, step: int) -> None:
    """Remove all notes that begin at `step` or later: they are about to be written again."""
    for folder in (HISTORY, SAMPLES, UNREADABLE, MASKS, TENSORBOARD):
        for name in out.names(folder):
            if first_step_of(name) >= step:
                out.delete(f"{folder}/{name}")


def first_step_of(name: str) -> int:
    """The step at which a file begins; -1 for a file that is none of ours."""
    digits = name.removeprefix(_EVENTS).partition("-")[0].partition(".")[0]
    return int(digits) if digits.isdigit() else -1


def read_history(out: Store, folder: str) -> Iterator[dict[str, Any]]:
    """All lines of a folder, in the order of steps, then of ranks."""
    for name in out.names(folder):
        for line in out.read(f"{folder}/{name}").splitlines():
            yield json.loads(line)


def write_events(out: Store, first: int, lines: Iterable[Line], *, prefix: str = "train") -> None:
    """The same lines for TensorBoard: every number but step and time is a curve."""
    name = f"{_EVENTS}{first:08d}.{prefix}"
    out.write(f"{TENSORBOARD}/{name}", event_bytes(lines, prefix))


def event_bytes(lines: Iterable[Line], prefix: str) -> bytes:
    """An event file of TensorBoard: one scalar `prefix/key` per finite number of a line, at the
    line's `step`.
    """
    from tensorboardX import SummaryWriter

    with tempfile.TemporaryDirectory() as folder:
        with SummaryWriter(logdir=folder) as writer:
            for line in lines:
                for key, value in line.items():
                    if (
                        key not in ("step", "time")
                        and isinstance(value, int | float)
                        and math.isfinite(value)
                    ):
                        writer.add_scalar(
                            f"{prefix}/{key}", value, line["step"], walltime=line.get("time")
                        )
        return next(Path(folder).iterdir()).read_bytes()


FILE = "train.json"
SCHEMA = 1
_PACKAGES = ("ray", "torch", "torchvision", "timm", "transformers", "peft", "numpy", "pillow")


def recipe_of(config: TrainConfig) -> dict[str, Any]:
    """The part of a config that decides what is learned, as plain JSON without secrets. What
    becomes of it afterwards may change.
    """
    fields = set(Recipe.model_fields) - {"export", "title", "source", "departures"}
    content: dict[str, Any] = strip_all_secrets(
        config.model_dump(mode="json", include={*fields, "limits"})
    )
    return {
        name: value for name, value in content.items() if name not in PROFILING or value is not None
    }


def config_as_begun(config: TrainConfig, out: Store) -> TrainConfig:
    """The config with what its user left open as the training in this directory was begun, and says
    so; itself where there is none.
    """
    claim = read_claim(out)
    if claim is None:
        return config
    begun = as_begun(config, claim["identity"]["recipe"], where=f"{out.url}/{FILE}")
    if kept := differing_keys(recipe_of(config), recipe_of(begun)):
        message = "; ".join(f"{key} {was} (today {now})" for key, now, was in kept)
        print(
            f"train  as it was begun: {message}; a new --out begins with those of today",
            file=sys.stderr,
            flush=True,
        )
    return begun


def check_claim(out: Store, config: TrainConfig) -> dict[str, Any] | None:
    """Whether the directory may be this recipe's; the content of `train.json`, None where there is
    none. Raises IdentityError.
    """
    claim = read_claim(out)
    if claim is None:
        refuse_others(out, FILE)
    else:
        _require_equal(out, {"recipe": recipe_of(config)}, {"recipe": claim["identity"]["recipe"]})
    return claim


def claim_recipe(out: Store, config: TrainConfig) -> dict[str, Any]:
    """Make the directory this recipe's, or check that it is; returns the content of `train.json`.
    Raises IdentityError.
    """
    claim = check_claim(out, config)
    if claim is None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        claim = {
            "schema": SCHEMA,
            "created_at": now,
            "identity": {"recipe": recipe_of(config)},
            "environment": environment(),
        }
        write_claim(out, claim)
    return claim


def claim_data(out: Store, claim: dict[str, Any], findings: Mapping[str, Any]) -> None:
    """The same for the images: their digests, split by split. Raises IdentityError where a source
    has changed since.
    """
    digests = {name: split["digest"] for name, split in findings["splits"].items()}
    if "data" not in claim["identity"]:
        claim["identity"]["data"] = digests
        write_claim(out, claim)
    _require_equal(out, {"data": digests}, {"data": claim["identity"]["data"]})


def read_claim(out: Store) -> dict[str, Any] | None:
    """The content of `train.json`; None where no training was begun."""
    try:
        content: dict[str, Any] = json.loads(out.read(FILE))
    except FileNotFoundError:
        return None
    return content


def write_claim(out: Store, claim: Mapping[str, Any]) -> None:
    """Write `train.json`."""
    out.write(FILE, json.dumps(claim, indent=2, ensure_ascii=False).encode())


def _require_equal(out: Store, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    if differing := differences(ours, theirs):
        raise IdentityError(
            f"{out.url} was made by another recipe or from other images:\n  "
            + "\n  ".join(differing),
            hint="give another --out, or the same recipe and data",
        )


def environment() -> dict[str, Any]:
    """Versions and platform of this process, as plain JSON."""
    facts: dict[str, Any] = {
        "touchstone": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
    }
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
        found = re.search(
            r"^model name\s*:\s*(.+)$",
            Path("/proc/cpuinfo").read_text(encoding="utf-8"),
            re.MULTILINE,
        )
    except OSError:
        found = None
    return found[1] if found else platform.machine()


def _commit() -> str | None:
    """The commit of a checkout, `+` behind it where files differ from it; None for an installed
    package.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    words = [
        "git",
        "-C",
        str(root),
        "describe",
        "--always",
        "--abbrev=12",
        "--exclude=*",
        "--dirty=+",
    ]
    try:
        return subprocess.run(
            words, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
