"""Recipes over the labelled set that take seconds, and trainings in processes of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import yaml

from ray_app.config import validate
from ray_app.storage import Store
from ray_app.training import checkpoints
from ray_app.training.config import TrainConfig
from ray_app.training.job import plan_workers
from ray_app.training.networks import training_card
from ray_app.training.run import make_job, prepare_data
from ray_app.training.run_directory import claim_recipe

ROOT = Path(__file__).resolve().parents[2]


def recipe(labels, **changes):
    """A recipe over the labelled set, as YAML has it; `changes` by section, null removes one."""
    base = {
        "name": "tiny",
        "detector": "touchstone-tiny",
        "card": {
            "architecture": {"arguments": {"widths": [4, 6, 8]}},
            "preprocessing": {"center_crop": 64},
        },
        "initial": {"start": "random"},
        "data": {
            "train": [{"at": f"list::{labels}"}],
            "validation": {"groups": 0.2},
            "test": {"groups": 0.2},
            "licence": "CC0-1.0",
        },
        "augmentation": {"policy": "flips", "arguments": {"crop": 64}},
        "optimiser": {"rate": 3.0e-3},
        "loop": {"epochs": 3, "batch": 8, "precision": "fp32"},
        "cluster": {"cpus": 2},
    }
    both = {
        **base,
        **{
            key: {**base.get(key, {}), **value} if isinstance(value, dict) else value
            for key, value in changes.items()
        },
    }
    return {key: value for key, value in both.items() if value is not None}


def config(labels, **changes):
    return validate(recipe(labels, **changes), TrainConfig, where="test")


def job_here(given):
    """The job of a training without Ray, what was found in its data, and the claim on its out."""
    out = Store.open(given.out)
    claim, prepared = claim_recipe(out, given), prepare_data(given, out)
    layout = plan_workers(given.workers, cpus=2, gpus=0)
    job = make_job(given, training_card(given), out, layout, prepared)
    return job, prepared.splits.findings, claim


def command(written, out, *words, by=()):
    """`touchstone train`, started by other words than Python's if `by` has some."""
    started = by or [sys.executable, "-m", "ray_app.cli"]
    return [*map(str, started), "train", str(written), "--out", str(out), *words]


def start(labels, folder, out, *, by=(), **changes):
    """`touchstone train` in a process of its own; the recipe is written beside."""
    written = Path(folder) / "recipe.yaml"
    written.write_text(yaml.safe_dump(recipe(labels, **changes)))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command(written, out, by=by),
        cwd=ROOT,
        env=environment,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process, timeout_s=540):
    """The exit code and what was said on stderr."""
    _, told = process.communicate(timeout=timeout_s)
    return process.returncode, told


def lines(out, name):
    return [json.loads(line) for line in Store.open(str(out)).read(name).splitlines()]


def noted(out, folder):
    """All notes of a folder by their file's name."""
    store = Store.open(str(out))
    return {
        name: [json.loads(line) for line in store.read(f"{folder}/{name}").splitlines()]
        for name in store.names(folder)
    }


def committed(out):
    """Return the last step that is in a complete checkpoint."""
    latest = checkpoints.latest_checkpoint(Store.open(str(out)))
    return 0 if latest is None else latest.step


def facts_of(out):
    return json.loads(Store.open(str(out)).read("metrics.json"))
