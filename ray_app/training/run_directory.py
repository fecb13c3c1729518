"""Manage the directory of a training: `train.json`, and the history files with step metrics.

`train.json` is the claim of a training on its directory. It records the recipe and the data that
the directory belongs to (`claim_recipe`, `check_claim`). A session that resumes must have the same
recipe and data. It may use other machines, another number of workers, and other settings of
checkpoints.

A history file is named by its first step and is written with a checkpoint. A session that resumes
at step s deletes the files that begin at s or later. So each step is recorded once, however often
it is repeated.
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
from ray_app.config import complete_from_run
from ray_app.errors import IdentityError
from ray_app.runs.directory import differences, differing_keys
from ray_app.storage import Store, strip_all_secrets
from ray_app.storage.output_kinds import refuse_others
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
    """Collects JSON lines of one rank, and writes them to one history file per checkpoint.

    A line is a JSON object about one step or image, such as the metrics of a step.
    """

    def __init__(self, out: Store, folder: str, rank: int) -> None:
        self._out, self._folder, self._rank = out, folder, rank
        self._lines: list[Line] = []

    def add(self, line: Line) -> None:
        """Keep a line, which is a JSON object about one step or image, until the next `write`."""
        self._lines.append(line)

    def write(self, first: int) -> list[Line]:
        """Write and return the lines that were added after the previous call.

        The first step that they are about names the file. If no line was added, no file is written.
        """
        lines, self._lines = self._lines, []
        if lines:
            text = "".join(json.dumps(line) + "\n" for line in lines)
            self._out.write(f"{self._folder}/{first:08d}-{self._rank:04d}.jsonl", text.encode())
        return lines


def delete_history_from(out: Store, step: int) -> None:
    """Delete the files of a training's history that begin at `step` or later.

    A training that resumes at `step` repeats these steps and writes their files again. The files
    contain metrics, image ids, and notes on images by training step.
    """
    for folder in (HISTORY, SAMPLES, UNREADABLE, MASKS, TENSORBOARD):
        for name in out.names(folder):
            if parse_first_step(name) >= step:
                out.delete(f"{folder}/{name}")


def parse_first_step(name: str) -> int:
    """Return the first step that a history file covers, by its name; -1 for other files.

    A history file has the metrics or images of some training steps, such as `00000500-0000.jsonl`
    from step 500 on, by rank 0.
    """
    digits = name.removeprefix(_EVENTS).partition("-")[0].partition(".")[0]
    return int(digits) if digits.isdigit() else -1


def read_history(out: Store, folder: str) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects in all history files of a folder, ordered by first step, then by rank.

    Each object is about one training step or image, such as the metrics of a step. `folder` is a
    folder in the training's directory `out`, such as `history`.
    """
    for name in out.names(folder):
        for line in out.read(f"{folder}/{name}").splitlines():
            yield json.loads(line)


def write_events(out: Store, first: int, lines: Iterable[Line], *, prefix: str = "train") -> None:
    """Write the metrics of steps to a TensorBoard event file in the training's directory.

    There is one curve per number in the lines, except `step` and `time`. `first` names the file,
    and `prefix` begins the names of the curves, such as `train` in `train/loss`.
    """
    name = f"{_EVENTS}{first:08d}.{prefix}"
    out.write(f"{TENSORBOARD}/{name}", make_event_file(lines, prefix))


def make_event_file(lines: Iterable[Line], prefix: str) -> bytes:
    """Make the bytes of a TensorBoard event file with a curve for each metric.

    Each finite number becomes a scalar, except `step` and `time`. `prefix` begins the names of the
    curves, such as `train` in `train/loss`.
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


def extract_recipe(config: TrainConfig) -> dict[str, Any]:
    """Return the part of a config that decides what is learned, as plain JSON without secrets.

    A training can resume only if this part of the config has not changed. The keys `title`,
    `source`, `departures`, and `export` are left out, because they may change later.
    """
    fields = set(Recipe.model_fields) - {"export", "title", "source", "departures"}
    content: dict[str, Any] = strip_all_secrets(
        config.model_dump(mode="json", include={*fields, "limits"})
    )
    return {
        name: value for name, value in content.items() if name not in PROFILING or value is not None
    }


def restore_config(config: TrainConfig, out: Store) -> TrainConfig:
    """Fill in the settings of a config that the user did not set, from the training in `out`.

    The defaults of this version may differ from those with which the training started. Settings
    that differ from today's defaults are printed. If `out` has no training, the config is returned
    unchanged.
    """
    claim = read_claim(out)
    if claim is None:
        return config
    restored = complete_from_run(config, claim["identity"]["recipe"], where=f"{out.url}/{FILE}")
    if differing := differing_keys(extract_recipe(config), extract_recipe(restored)):
        message = "; ".join(f"{key} {was} (today {now})" for key, now, was in differing)
        print(
            f"train  keeping the settings of the existing training: {message}; a new --out uses those of today",
            file=sys.stderr,
            flush=True,
        )
    return restored


def check_claim(out: Store, config: TrainConfig) -> dict[str, Any] | None:
    """Check that a directory is free or belongs to this recipe, and return its `train.json`.

    The result is None if no training has used the directory. Raises ConfigError if the directory
    belongs to another command, and IdentityError if it belongs to another recipe.
    """
    claim = read_claim(out)
    if claim is None:
        refuse_others(out, FILE)
    else:
        _require_equal(
            out, {"recipe": extract_recipe(config)}, {"recipe": claim["identity"]["recipe"]}
        )
    return claim


def claim_recipe(out: Store, config: TrainConfig) -> dict[str, Any]:
    """Record in `train.json` that a directory belongs to this recipe, and return its content.

    If the file exists, check that it records the same recipe. Raises ConfigError if the directory
    belongs to another command, and IdentityError if it belongs to another recipe.
    """
    claim = check_claim(out, config)
    if claim is None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        claim = {
            "schema": SCHEMA,
            "created_at": now,
            "identity": {"recipe": extract_recipe(config)},
            "environment": describe_environment(),
        }
        write_claim(out, claim)
    return claim


def claim_data(out: Store, claim: dict[str, Any], findings: Mapping[str, Any]) -> None:
    """Record in `train.json` which data the directory's training uses, and update `claim`.

    The data are recorded as a digest of each split. Raises IdentityError if the file has other
    digests, because a source has changed.
    """
    digests = {name: split["digest"] for name, split in findings["splits"].items()}
    if "data" not in claim["identity"]:
        claim["identity"]["data"] = digests
        write_claim(out, claim)
    _require_equal(out, {"data": digests}, {"data": claim["identity"]["data"]})


def read_claim(out: Store) -> dict[str, Any] | None:
    """Return the content of `train.json`, or None if there is no training."""
    try:
        content: dict[str, Any] = json.loads(out.read(FILE))
    except FileNotFoundError:
        return None
    return content


def write_claim(out: Store, claim: Mapping[str, Any]) -> None:
    """Write `train.json`, which records the recipe and the data that a directory belongs to."""
    out.write(FILE, json.dumps(claim, indent=2, ensure_ascii=False).encode())


def _require_equal(out: Store, actual: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    if differing := differences(actual, expected):
        raise IdentityError(
            f"{out.url} was made by another recipe or from other images:\n  "
            + "\n  ".join(differing),
            hint="give another --out, or use the same recipe and data",
        )


def describe_environment() -> dict[str, Any]:
    """Return the versions of Touchstone, Python, and packages, and the platform, as plain JSON."""
    facts: dict[str, Any] = {
        "touchstone": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
    }
    if (commit := _read_commit()) is not None:
        facts["commit"] = commit
    for package in _PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            continue
    return facts


def get_device_name(device: str) -> str:
    """Return the product name of the CPU or of the current GPU, such as "NVIDIA H200".

    `device` is `cpu` or a CUDA device. If the CPU's name is unknown, return its architecture.
    """
    if device != "cpu":
        import torch

        return str(torch.cuda.get_device_name())
    try:
        match = re.search(
            r"^model name\s*:\s*(.+)$",
            Path("/proc/cpuinfo").read_text(encoding="utf-8"),
            re.MULTILINE,
        )
    except OSError:
        match = None
    return match[1] if match else platform.machine()


def _read_commit() -> str | None:
    """Return the commit of a checkout, with `+` if files differ from it; None for a package."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    command = [
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
            command, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
