"""Rooms import only from rooms above them; heavy packages stay where they belong; importing does nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = [
    "errors",
    "config",
    "storage",
    "images",
    "perturbations",
    "archives",
    "detectors",
    "simulation",
    "ensembles",
    "profiling",
    "inference",
    "runs",
    "metrics",
    "datasets",
    "augmentation",
    "learning",
    "reports",
    "scoring",
    "packing",
    "collecting",
    "generation",
    "training",
    "evaluation",
    "comparison",
    "calibration",
    "auditing",
    "evidence",
    "serving",
    "cli",
]
RAY_ROOMS = {"scoring", "collecting", "generation", "training", "evaluation", "serving"}
TORCH_ROOMS = {
    "detectors",
    "simulation",
    "profiling",
    "inference",
    "augmentation",
    "learning",
    "scoring",
    "generation",
    "training",
    "evaluation",
    "serving",
}
# Of the serving room, what knows Ray; the rest runs, and is tested, without it.
SERVING_ON_RAY = {"app.py", "deployments.py", "metrics.py", "running.py"}
SOURCES = sorted((ROOT / "ray_app").rglob("*.py"))


def room_of(source: Path) -> str:
    return source.relative_to(ROOT / "ray_app").parts[0].removesuffix(".py")


def imported(source: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{source}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(source):
    room = room_of(source)
    if room == "__init__":
        return
    for name in imported(source):
        parts = name.split(".")
        if parts[0] == "ray_app" and len(parts) > 1 and parts[1] in ROOMS:
            assert ROOMS.index(parts[1]) <= ROOMS.index(room), f"{room} imports {name}"
        assert parts[0] != "ray" or room in RAY_ROOMS, f"{room} imports {name}"
        assert parts[0] not in ("torch", "timm", "transformers", "torchvision") or room in TORCH_ROOMS, f"{room} imports {name}"


def test_serving_knows_ray_in_few_places():
    serving = [source for source in SOURCES if room_of(source) == "serving"]
    assert {source.name for source in serving if any(name.split(".")[0] == "ray" for name in imported(source))} <= SERVING_ON_RAY


def test_every_room_has_its_place():
    assert {room_of(source) for source in SOURCES} <= {*ROOMS, "__init__"}


def test_what_ci_runs_though_slow_lies_where_it_is_looked_for():
    [command] = [line for line in (ROOT / "Makefile").read_text().splitlines() if "-m 'slow and ci'" in line]
    folders = [ROOT / word for word in command.split() if word.startswith("tests/")]
    marked = [source for source in (ROOT / "tests").rglob("test_*.py") if "pytest.mark." + "ci\n" in source.read_text()]
    assert marked
    assert all(any(source.is_relative_to(folder) for folder in folders) for source in marked)


@pytest.mark.parametrize("name", ["utils", "util", "helpers", "common", "core", "misc", "manager"])
def test_no_name_that_says_nothing(name):
    assert not [source for source in SOURCES if name in (source.stem, *source.parent.parts)]


@pytest.mark.parametrize(
    "module",
    ["ray_app", "ray_app.errors", "ray_app.config", "ray_app.storage", "ray_app.images", "ray_app.archives", "ray_app.detectors",
     "ray_app.ensembles", "ray_app.inference", "ray_app.runs", "ray_app.metrics", "ray_app.datasets", "ray_app.augmentation",
     "ray_app.learning", "ray_app.reports", "ray_app.scoring", "ray_app.datajobs.shards", "ray_app.training", "ray_app.evaluation",
     "ray_app.perturbations", "ray_app.evaluation.calibrate", "ray_app.evaluation.audit", "ray_app.evaluation.evidence", "ray_app.serving",
     "ray_app.serving.client", "ray_app.attribution", "ray_app.datajobs.download", "ray_app.cli.main"],
)  # fmt: skip
def test_import_is_light_and_touches_nothing(module, tmp_path):
    heavy = ("torch", "ray", "timm", "transformers", "torchvision")
    code = f"import {module}, sys, os; print([name for name in {heavy} if name in sys.modules], os.listdir('.'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.strip() == "[] []"
