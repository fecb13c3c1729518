"""The distribution: its name, the hints that install it, what its wheel holds, and what it does where nothing else is."""

import email
import json
import re
import subprocess
import sys
import tomllib
import zipfile
from functools import cache
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
BAD_NETWORK = ("Retrying (", "Failed to establish", "Temporary failure", "ProxyError")


def read(path):
    return path.read_text(errors="replace")


def test_each_hint_installs_our_distribution_with_an_extra_that_it_has():
    found = [(str(path.relative_to(ROOT)), *one) for path in TEXTS for one in WITH_EXTRA.findall(read(path))]
    assert {name for _, name, _ in found} == {NAME}, [one for one in found if one[1] != NAME]
    named = {extra for _, _, extras in found for extra in extras.split(",")}
    assert named <= EXTRAS
    assert {"phash", "jxl", "delta", "generate"} <= named  # the pattern reads code, docs and cards


def test_no_line_installs_a_stranger_s_package():
    found = [(str(path.relative_to(ROOT)), name) for path in TEXTS for name in INSTALLED.findall(read(path))]
    assert found
    assert [one for one in found if one[1] != NAME] == []


def test_each_extra_that_users_may_want_is_named_somewhere():
    """An extra that no message and no page names is one that nobody finds. `bench` and `dev` are for who works on the tree."""
    texts = "".join(map(read, TEXTS))
    assert {extra for extra in EXTRAS - {"bench", "dev"} if f"[{extra}]" not in texts and f"`{extra}`" not in texts} == set()


def pip(*arguments, **options):
    """pip with the index that it is configured with."""
    command = [sys.executable, "-m", "pip", *arguments, "--disable-pip-version-check", "--retries", "1", "--timeout", "10"]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, **options)


@cache
def versions(name):
    """Those that the index has of a distribution, as pip says; None where it has none."""
    done = pip("index", "versions", name)
    if done.returncode and "No matching distribution found" in done.stderr and not any(sign in done.stderr for sign in BAD_NETWORK):
        return None
    if done.returncode:
        pytest.skip(f"no package index answers: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout


def test_the_name_is_free_or_ours(tmp_path):
    if versions("pip") is None:
        pytest.skip("the package index that pip is configured with does not know even pip")
    if versions(NAME) is None:
        return
    done = pip("download", "--no-deps", "--only-binary", ":all:", "--dest", str(tmp_path), NAME)
    assert done.returncode == 0, done.stderr
    [wheel] = tmp_path.glob("*.whl")
    assert "ray_app/cli/main.py" in zipfile.ZipFile(wheel).namelist(), f"{NAME} is somebody else's by now"


def test_the_command_and_the_import_have_other_names():
    """`touchstone` on the index is a stranger's: what we are called there, what one types, and what one imports are three words."""
    assert PROJECT["scripts"] == {"touchstone": "ray_app.cli.main:script"}
    assert NAME != "touchstone"


@pytest.fixture(scope="module")
def wheel(wheel_environment):
    with zipfile.ZipFile(wheel_environment.wheel) as opened:
        yield opened


@pytest.mark.slow
def test_the_wheel_holds_the_package_its_configs_and_its_licence_alone(wheel):
    listed = subprocess.run([sys.executable, "-m", "zipfile", "-l", wheel.filename], capture_output=True, text=True, check=True).stdout
    assert "ray_app/_configs/ensembles/default.yaml" in listed
    names = [name for name in wheel.namelist() if not name.endswith("/")]
    assert {name.split("/")[0] for name in names} == {"ray_app", f"{NAME.replace('-', '_')}-{__version__}.dist-info"}
    assert [name for name in names if "test" in Path(name).name and name.endswith(".py") and Path(name).name.startswith("test")] == []
    shipped = {str(path.relative_to(ROOT / "configs")) for path in (ROOT / "configs").rglob("*") if path.is_file()}
    assert {name.removeprefix("ray_app/_configs/") for name in names if name.startswith("ray_app/_configs/")} == shipped
    tracked = subprocess.run(["git", "ls-files", "ray_app"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert set(tracked) <= set(names)
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


@pytest.mark.slow
def test_the_metadata_tell_what_is_known_and_invent_nothing(wheel):
    [path] = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    told = email.message_from_bytes(wheel.read(path))
    assert (told["Name"], told["Version"], told["License-Expression"]) == (NAME, __version__, "Apache-2.0")
    assert told.get_all("License-File") == ["LICENSE"]
    assert told["Description-Content-Type"] == "text/markdown"
    assert told.get_payload().startswith("# Touchstone")
    assert set(told.get_all("Provides-Extra")) == EXTRAS
    assert "Programming Language :: Python :: 3.11" in told.get_all("Classifier")
    # Nobody has told where the project lives and who its authors are, so no address stands here.
    assert told.get_all("Project-URL") is told["Home-page"] is told["Author"] is None


@pytest.mark.slow
def test_two_builds_give_the_same_bytes(wheel_environment, tmp_path):
    from tests.wheel import build_wheel

    assert build_wheel(tmp_path).read_bytes() == wheel_environment.wheel.read_bytes()


@pytest.mark.slow
def test_the_command_says_its_version_and_its_commands(wheel_environment, tmp_path):
    said = wheel_environment.run("touchstone", "--version", folder=tmp_path).stdout
    assert re.fullmatch(rf"touchstone,? (version )?{re.escape(__version__)}\n", said)
    helped = wheel_environment.run("touchstone", "--help", folder=tmp_path).stdout
    for command in ("demo", "check", "score", "plan", "results", "serve", "train", "evaluate", "compare"):
        assert re.search(rf"^  {command} ", helped, re.MULTILINE), helped


@pytest.mark.slow
@pytest.mark.timeout(1000)  # a minute on a free machine: the first command of an environment also compiles torch and Ray
def test_the_demo_runs_in_an_empty_folder(wheel_environment, tmp_path):
    done = wheel_environment.run("touchstone", "demo", "--images", "20", "--out", "demo-run", folder=tmp_path, timeout=900)
    assert re.search(r"^\d+ files: \d+ flagged as fake, ", done.stdout, re.MULTILINE), done.stdout
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["demo-run"]
    summary = json.loads((tmp_path / "demo-run" / "run" / "summary.json").read_text())
    assert (summary["version"], summary["complete"], summary["ensemble"]["name"]) == (__version__, True, "tiny")
    flagged = wheel_environment.run("touchstone", "results", "demo-run/run", "--verdict", "fake", "--json", folder=tmp_path).stdout
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
def test_an_environment_without_extras_names_the_line_that_installs_one(wheel_environment, tmp_path):
    (tmp_path / "photos").mkdir()
    done = wheel_environment.run("touchstone", "score", "photos", "--out", "run", "--set", "perceptual_hash=true", folder=tmp_path, code=2)
    assert f"pip install '{NAME}[phash]'" in done.stderr
