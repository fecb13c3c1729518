"""The field's words, light imports. Who imports whom: import-linter, in pyproject.toml."""

import ast
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "ray_app").rglob("*.py"))
MODULES = [source for source in SOURCES if source.name != "__init__.py"]
HEAVY = ("torch", "ray", "timm", "transformers", "torchvision")
SAYS_NOTHING = {"utils", "util", "helpers", "common", "core", "misc", "manager"}


def name_of(source: Path) -> str:
    """The dotted name of a module or package."""
    return ".".join(source.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


NAMES = {name_of(source) for source in SOURCES}


def test_no_module_is_reached_through_its_package_without_being_imported():
    """`archives.build.list` works only where `ray_app.archives.build` was imported before: packages
    offer names, not modules.
    """
    pattern = re.compile(
        rf"(?<![\w.])({'|'.join(name.removeprefix('ray_app.') for name in NAMES if name.count('.') == 1)})\.(\w+)\.\w"
    )
    found = []
    for source in MODULES:
        text = source.read_text()
        packages = {
            name
            for name, module in set(pattern.findall(text))
            if f"ray_app.{name}.{module}" in NAMES
        }
        found += [
            f"{name_of(source)}: {name}"
            for name in packages
            if re.search(rf"^from ray_app import .*\b{name}\b", text, re.MULTILINE)
        ]
    assert not found


def test_no_public_class_has_a_namesake():
    names = Counter(
        node.name
        for source in SOURCES
        for node in ast.parse(source.read_text()).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert {name: times for name, times in names.items() if times > 1} == {}


def test_no_name_says_nothing():
    assert {
        str(source)
        for source in SOURCES
        if SAYS_NOTHING & {source.stem, *source.relative_to(ROOT).parts}
    } == set()


# In this order in one process: what is run, and what it must not have loaded besides HEAVY.
LIGHT = [
    ("import ray_app.cli.train", ("numpy", "sklearn", "pyarrow", "pydantic")),
    ("import ray_app.serving.client", ("pyarrow", "fastapi")),
    ("import ray_app.images", ("pi_heif", "rawpy")),
    ("import ray_app.ensembles", ("sklearn",)),
    (
        "from ray_app.detectors import DetectorCard, Preprocessing, list_cards, load_card, resolve_weights; list_cards()",
        (),
    ),
    ("from ray_app.detectors.licences import accepted_licences; accepted_licences()", ()),
    ("import ray_app.inference.decoder_child, ray_app.cli.main", ()),
    ("import ray_app.scoring.run, ray_app.scoring.stages", ("scipy",)),
    *((f"import {name_of(source)}", ()) for source in SOURCES if source.name == "__init__.py"),
]
# What commands load that need no cluster, each in a process of its own: what it must not have
# loaded besides HEAVY.
QUICK = {
    "--help": ("numpy", "pyarrow", "pydantic", "yaml", "fsspec"),
    "results nowhere": (
        "PIL",
        "jinja2",
        "pandas",
        "sklearn",
        "scipy",
        "s3fs",
        "aiohttp",
        "pyarrow.dataset",
        "ray_app.runs.document",
    ),
    "detectors list": (
        "jinja2",
        "pandas",
        "sklearn",
        "scipy",
        "s3fs",
        "aiohttp",
        "pyarrow",
        "ray_app.runs.document",
    ),
    "score nowhere --out run": (
        "jinja2",
        "pandas",
        "sklearn",
        "scipy",
        "s3fs",
        "aiohttp",
        "huggingface_hub",
        "pyarrow.dataset",
    ),
    "results nowhere --image photo.jpg --json": (
        "PIL",
        "pandas",
        "sklearn",
        "scipy",
        "s3fs",
        "aiohttp",
        "pyarrow.dataset",
    ),
}
TINY = """
import numpy; from ray_app.detectors import load_detector
assert numpy.isfinite(load_detector("touchstone-tiny").score(numpy.zeros((1, 256, 256, 3), numpy.uint8))).all()
"""
# One picture, scored by the default ensemble: with torch, and none of what takes as long to import
# again.
CHECK = """
import contextlib, io, tempfile; from PIL import Image; from ray_app.cli.main import main
with tempfile.NamedTemporaryFile(suffix=".png") as file, contextlib.redirect_stdout(io.StringIO()):
    Image.effect_noise((300, 200), 60).convert("RGB").save(file, "PNG")
    file.flush()
    assert main(["check", file.name]) == 0
"""
HEAVY_FOR_ONE = ("torch._dynamo", "sklearn", "pandas", "scipy", "pyarrow", "fastapi", "jinja2")


def test_imports_are_light_and_touch_nothing(tmp_path):
    """What a user's process loads before it knows what is wanted; the shipped detector, which needs
    torch alone.
    """
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
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert json.loads(done.stdout) == [[], []]


def test_one_picture_is_checked_with_torch_alone():
    """In a process of its own: what the test above has loaded would not be loaded again."""
    code = f"{CHECK}\nimport json, sys; print(json.dumps([name for name in {HEAVY[1:] + HEAVY_FOR_ONE!r} if name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


@pytest.mark.parametrize("command", QUICK)
def test_a_command_that_needs_no_cluster_loads_little(tmp_path, command):
    code = f"""
import sys
from ray_app.cli.main import main
main({command.split()!r})
print([name for name in {HEAVY + QUICK[command]!r} if name in sys.modules], file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert done.stderr.splitlines()[-1] == "[]"


def test_no_test_module_imports_another_one():
    """What several need is in `tests/make`, or beside them in a module without tests."""
    pattern = re.compile(r"^\s*(?:from|import) (tests[\w.]*\.(?:test_|conftest)\w*)", re.MULTILINE)
    files = [*(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    imports = {(file, name) for file in files for name in pattern.findall(file.read_text("utf-8"))}
    # A script that a test starts may import the test's own file.
    assert sorted(name for file, name in imports if name != name_of(file)) == []
