"""The distribution: its name, the hints that install it, what its wheel holds, and what it does
where nothing else is.
"""

import json
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from ray_app import __version__

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NAME, EXTRAS = PROJECT["name"], set(PROJECT["optional-dependencies"])
# What people read or run. The changelog and UPGRADING.md also name what once was.
TEXTS = [
    path
    for place in (
        "ray_app",
        "configs",
        "docs",
        "jobs",
        "README.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "Dockerfile",
        "cluster.yaml",
        "Makefile",
    )
    for path in ([ROOT / place] if (ROOT / place).is_file() else sorted((ROOT / place).rglob("*")))
    if path.suffix in {".py", ".md", ".yaml", ".yml", ".html", ".js", ".ipynb", ".toml", ""}
    and path.is_file()
    and "__pycache__" not in path.parts
]
WITH_EXTRA = re.compile(r"\b(touchstone[\w-]*)\[([a-z0-9,]+)\]")
INSTALLED = re.compile(r"pip install ['\"]?(touchstone[\w-]*)")


def read(path):
    return path.read_text(errors="replace")


def test_each_hint_installs_our_distribution_with_an_extra_that_it_has():
    found = [
        (str(path.relative_to(ROOT)), *one)
        for path in TEXTS
        for one in WITH_EXTRA.findall(read(path))
    ]
    assert {name for _, name, _ in found} == {NAME}, [one for one in found if one[1] != NAME]
    named = {extra for _, _, extras in found for extra in extras.split(",")}
    assert named <= EXTRAS
    assert {"phash", "raw", "generate"} <= named  # the pattern reads code, docs and cards


def test_no_line_installs_a_stranger_s_package():
    found = [
        (str(path.relative_to(ROOT)), name)
        for path in TEXTS
        for name in INSTALLED.findall(read(path))
    ]
    assert found
    assert [one for one in found if one[1] != NAME] == []


@pytest.fixture(scope="module")
def wheel(wheel_environment):
    with zipfile.ZipFile(wheel_environment.wheel) as opened:
        yield opened


@pytest.mark.slow
def test_the_wheel_holds_the_package_its_configs_and_its_licence_alone(wheel):
    listed = subprocess.run(
        [sys.executable, "-m", "zipfile", "-l", wheel.filename],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "ray_app/_configs/ensembles/default.yaml" in listed
    names = [name for name in wheel.namelist() if not name.endswith("/")]
    assert {name.split("/")[0] for name in names} == {
        "ray_app",
        f"{NAME.replace('-', '_')}-{__version__}.dist-info",
    }
    assert [
        name
        for name in names
        if "test" in Path(name).name and name.endswith(".py") and Path(name).name.startswith("test")
    ] == []
    shipped = {
        str(path.relative_to(ROOT / "configs"))
        for path in (ROOT / "configs").rglob("*")
        if path.is_file()
    }
    assert {
        name.removeprefix("ray_app/_configs/")
        for name in names
        if name.startswith("ray_app/_configs/")
    } == shipped
    tracked = subprocess.run(
        ["git", "ls-files", "ray_app"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert set(tracked) <= set(names)
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


@pytest.mark.slow
def test_the_command_says_its_version_and_its_commands(wheel_environment, tmp_path):
    said = wheel_environment.run("touchstone", "--version", folder=tmp_path).stdout
    assert re.fullmatch(rf"touchstone,? (version )?{re.escape(__version__)}\n", said)
    helped = wheel_environment.run("touchstone", "--help", folder=tmp_path).stdout
    for command in (
        "demo",
        "check",
        "score",
        "plan",
        "results",
        "serve",
        "train",
        "evaluate",
        "compare",
    ):
        assert re.search(rf"^  {command} ", helped, re.MULTILINE), helped


@pytest.mark.slow
# a minute on a free machine: the first command of an environment also compiles torch and Ray
@pytest.mark.timeout(1000)
def test_the_demo_runs_in_an_empty_folder(wheel_environment, tmp_path):
    done = wheel_environment.run(
        "touchstone", "demo", "--out", "demo-run", folder=tmp_path, timeout=900
    )
    assert re.search(r"^\d+ files: \d+ flagged as fake, ", done.stdout, re.MULTILINE), done.stdout
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["demo-run"]
    summary = json.loads((tmp_path / "demo-run" / "run" / "summary.json").read_text())
    assert (summary["version"], summary["complete"], summary["ensemble"]["name"]) == (
        __version__,
        True,
        "tiny",
    )
    flagged = wheel_environment.run(
        "touchstone", "results", "demo-run/run", "--verdict", "fake", "--json", folder=tmp_path
    ).stdout
    assert len(flagged.splitlines()) == summary["verdicts"]["fake"]


@pytest.mark.slow
def test_python_scores_with_the_shipped_detector_and_knows_no_checkout(wheel_environment, tmp_path):
    source = """
import json, ray_app
from PIL import Image
Image.effect_noise((300, 300), 60).convert("RGB").save("noise.png")
[result] = ray_app.load_ensemble("default").score(["noise.png"])
print(json.dumps([ray_app.__file__, result.status, result.verdict, list(result.scores)]))
"""
    file, status, verdict, scores = json.loads(wheel_environment.python(source, folder=tmp_path))
    assert Path(file).is_relative_to(wheel_environment.folder)
    assert status == "ok"
    assert verdict in {"real", "fake", "abstain"}
    assert scores == ["touchstone-photo", "touchstone-photo-detail"]


@pytest.mark.slow
def test_an_environment_without_extras_names_the_line_that_installs_one(
    wheel_environment, tmp_path
):
    (tmp_path / "photos").mkdir()
    done = wheel_environment.run(
        "touchstone",
        "data",
        "index",
        "photos",
        "--hash",
        "phash",
        "--out",
        "index",
        folder=tmp_path,
        code=2,
    )
    assert f"pip install '{NAME}[phash]'" in done.stderr
