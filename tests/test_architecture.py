"""Rooms import only from rooms above them; heavy packages stay where they belong; importing does nothing."""

import ast
import json
import subprocess
import sys
from pathlib import Path

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


def offences(source: Path) -> list[str]:
    """What a module imports from a room above its own, and heavy packages in rooms where they do not belong."""
    room, found = room_of(source), []
    for name in imported(source) if room != "__init__" else ():
        parts = name.split(".")
        up = parts[0] == "ray_app" and len(parts) > 1 and parts[1] in ROOMS and ROOMS.index(parts[1]) > ROOMS.index(room)
        ray = parts[0] == "ray" and room not in RAY_ROOMS
        torch = parts[0] in ("torch", "timm", "transformers", "torchvision") and room not in TORCH_ROOMS
        found += [f"{source.relative_to(ROOT)} imports {name}"] if up or ray or torch else []
    return found


def test_imports_point_down():
    assert [offence for source in SOURCES for offence in offences(source)] == []


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


def test_no_name_that_says_nothing():
    nothing = {"utils", "util", "helpers", "common", "core", "misc", "manager"}
    assert [source for source in SOURCES if nothing & {source.stem, *source.relative_to(ROOT).parts}] == []


# In this order in one process: what is run, and what it must not have loaded besides HEAVY. The last one brings torch.
HEAVY = ("torch", "ray", "timm", "transformers", "torchvision")
LIGHT = [
    ("import ray_app.cli.fit", ("numpy", "sklearn", "pyarrow", "pydantic")),
    ("import ray_app.serving.client", ("pyarrow", "fastapi")),
    ("import ray_app.images", ("pi_heif", "imagecodecs", "rawpy")),
    ("import ray_app.ensembles", ("sklearn",)),
    ("from ray_app.detectors import DetectorCard, Preprocessing, list_cards, load_card, resolve_weights; list_cards()", ()),
    ("from ray_app.detectors.licences import accepted_licences; accepted_licences()", ()),
    *((f"import ray_app.{room}", ()) for room in ROOMS),
    ("import ray_app.cli.main", ()),
]
TINY = """
import numpy; from ray_app.detectors import load_detector
assert numpy.isfinite(load_detector("touchstone-tiny").score(numpy.zeros((1, 256, 256, 3), numpy.uint8))).all()
"""


def test_imports_are_light_and_touch_nothing(tmp_path):
    """What a user's process loads before it knows what is wanted, and the shipped detector, which needs torch alone."""
    code = f"""
import json, os, sys
loaded = []
def check(code, heavy):
    exec(code, {{}})
    loaded.extend([code, name] for name in heavy if name in sys.modules)
for code, more in {LIGHT!r}:
    check(code, ({HEAVY!r}) + more)
check({TINY!r}, {HEAVY[1:]!r})
print(json.dumps([loaded, os.listdir(".")]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert json.loads(done.stdout) == [[], []]
