"""No command runs code from the folder that is scored or from the current folder, whatever the
names of its files are.
"""

import importlib.machinery
import json
import os
import pkgutil
import signal
import subprocess
import sys
import sysconfig

import httpx
import pytest
import yaml

from benchmarks.photographs import write_photographs
from ray_app.cli.main import main
from ray_app.detectors import load_card
from ray_app.ensembles import load_ensemble_card
from ray_app.ensembles.card import EnsembleMember
from ray_app.evaluation.calibrate.files import name_from_card
from ray_app.import_path import working_in
from ray_app.transforms.perturbations import load_perturbations
from tests.make.ray_head import BIN, free_ports, ray_head
from tests.make.runs import ROOT, rows_of
from tests.make.waiting import kill_family
from tests.training.trainings import recipe

# Modules that libraries try to import if they are installed, and those that Python itself imports
# at its start.
OPTIONAL = (
    "tensorflow",
    "jax",
    "flax",
    "cupy",
    "cudf",
    "dask",
    "polars",
    "modin",
    "sitecustomize",
    "usercustomize",
    "ray_app",
    "tests",
)
STUB = (
    "with open({marker!r}, 'a') as marker:\n    marker.write(__name__ + ' ' + __file__ + '\\n')\n"
)
IMAGES = 6


def top_level_modules():
    """The names of all modules that a process of this environment can import."""
    folders = {sysconfig.get_path(kind) for kind in ("purelib", "platlib")}
    return sorted(
        {
            *sys.stdlib_module_names,
            *(module.name for module in pkgutil.iter_modules(folders)),
            *OPTIONAL,
        }
    )


class Hostile:
    """A folder of images, with a file for every module that notes when it is imported."""

    def __init__(self, folder):
        self.folder, self.marker = folder / "archive", folder / "imported.txt"
        write_photographs(self.folder, IMAGES, size=(96, 96))
        self.images = sorted(path.relative_to(self.folder) for path in self.folder.rglob("*.*"))
        for name in top_level_modules():
            (self.folder / f"{name}.py").write_text(STUB.format(marker=str(self.marker)))
        labels = [
            f"{self.folder / path},{'fake' if number % 2 else 'real'},{number // 2}"
            for number, path in enumerate(self.images)
        ]
        (self.folder / "labels.csv").write_text("\n".join(["uri,label,group", *labels]))

    @property
    def imported(self):
        """The modules that were imported from the folder."""
        return self.marker.read_text() if self.marker.exists() else ""

    def run(self, *words, program="touchstone", code=0, **variables):
        """Run a command in the folder."""
        done = subprocess.run(
            [BIN / program, *map(str, words)],
            cwd=self.folder,
            env=os.environ | variables,
            capture_output=True,
            text=True,
        )
        assert not self.imported
        assert done.returncode == code, done.stderr
        return done.stdout


@pytest.fixture
def hostile(tmp_path):
    return Hostile(tmp_path)


def test_stubs_have_the_names_of_modules_and_tell_when_imported(hostile):
    assert {
        "click",
        "safetensors",
        "starlette",
        "PIL",
        "numpy",
        "multiprocessing",
        "colorsys",
        "json",
        "ray",
    } <= set(top_level_modules())
    suffixes = importlib.machinery.SOURCE_SUFFIXES
    assert {path.suffix for path in hostile.folder.glob("click.*")} == set(suffixes)
    subprocess.run(
        [sys.executable, "-c", "import click"],
        cwd=hostile.folder,
        env=os.environ | {"PYTHONSAFEPATH": ""},
        check=True,
    )
    assert hostile.imported.startswith("click ")


@pytest.mark.ray
def test_score_of_the_current_folder_imports_no_file_of_it(hostile):
    # Python itself would search an empty entry of PYTHONPATH: with -E it does not, and the children
    # inherit the variable.
    hostile.run(
        "-E",
        BIN / "touchstone",
        "score",
        ".",
        "--ensemble",
        "tiny",
        "--out",
        "../run",
        program="python",
        PYTHONPATH=":modules",
    )
    statuses = [row["status"] for row in rows_of(hostile.folder.parent / "run").values()]
    assert statuses.count("ok") == IMAGES
    assert set(statuses) == {"ok", "unsupported_format"}


def test_a_library_that_torch_would_load_is_refused(tmp_path):
    hostile = tmp_path / "glibc-hwcaps" / "x86-64-v3"
    hostile.mkdir(parents=True)
    (hostile / "libcuda.so.1").write_bytes(b"\x7fELF")
    done = subprocess.run(
        [BIN / "touchstone", "doctor"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "the current folder contains glibc-hwcaps/x86-64-v3/libcuda.so.1" in done.stderr
    assert "→ start the command in another folder" in done.stderr


def test_links_that_lead_in_circles_are_searched_once(tmp_path):
    for name in ("tls", "haswell", "x86_64", "aarch64"):
        (tmp_path / name).symlink_to(".")
    done = subprocess.run(
        [BIN / "touchstone", "ensembles", "list"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


START = {
    "command": [BIN / "touchstone"],
    "module": [sys.executable, "-m", "ray_app.cli"],
    "job": [sys.executable, ROOT / "jobs" / "score.py"],
}


@pytest.mark.parametrize("name", START)
def test_no_package_is_imported_from_the_current_folder_at_the_start(tmp_path, name):
    for module in ("click", "yaml", "numpy", "pydantic"):
        (tmp_path / f"{module}.py").write_text(STUB.format(marker=str(tmp_path / "imported.txt")))
    # An empty entry is the current folder.
    variables = os.environ | {"PYTHONPATH": ":", "PYTHONSAFEPATH": ""}
    done = subprocess.run(
        [*START[name], "--help"], cwd=tmp_path, env=variables, capture_output=True, text=True
    )
    assert not (tmp_path / "imported.txt").exists()
    assert done.returncode == 0, done.stderr


def test_the_current_folder_may_have_been_deleted(tmp_path, monkeypatch):
    (tmp_path / "deleted").mkdir()
    monkeypatch.chdir(tmp_path / "deleted")
    (tmp_path / "deleted").rmdir()
    with working_in(tmp_path):
        assert os.getcwd() == str(tmp_path)


def test_a_detectors_name_is_never_a_file_of_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("corvi2023:thumb1024", "corvi2023", "touchstone-tiny", "blur"):
        (tmp_path / name).write_text("members: [{detector: hostile.yaml}]")
    member = EnsembleMember(detector="corvi2023")
    assert load_card("corvi2023:thumb1024").name == "corvi2023:thumb1024"
    assert load_ensemble_card("fusion-clip-corvi-openfake-v1").members
    assert name_from_card(tmp_path / "card.yaml", member) == member
    assert [one.name for one in load_perturbations(["blur:2"])] == ["blur:2"]
    assert main(["detectors", "fetch", "touchstone-tiny"]) == 0


def test_check_in_the_current_folder_imports_no_file_of_it(hostile):
    said = hostile.run("check", ".", "--ensemble", "tiny", "--json")
    assert [json.loads(line)["status"] for line in said.splitlines()].count("ok") == IMAGES


def train(hostile, workers):
    written = hostile.folder / "recipe.yaml"
    facts = recipe(
        "labels.csv",
        data={"validation": {"groups": 0.4}, "test": []},
        workers={"count": workers},
        loop={"epochs": 1, "batch": 2},
    )
    written.write_text(yaml.safe_dump(facts))
    return ["train", "recipe.yaml", "--out", "../out"]


COMMANDS = {
    "evaluate": lambda hostile: [
        "evaluate",
        ".",
        "--labels",
        "labels.csv",
        "--ensemble",
        "tiny",
        "--out",
        "../out",
    ],
    "plan": lambda hostile: ["plan", ".", "--ensemble", "tiny"],
    "pack": lambda hostile: [
        "data",
        "pack",
        ".",
        "--out",
        "../out",
        "--set",
        "cluster.workers=2",
        "--set",
        "cluster.cpus=2",
    ],
    "index": lambda hostile: ["data", "index", "list::labels.csv", "--out", "../out"],
    "train": lambda hostile: train(hostile, workers=1),
    "train on Ray": lambda hostile: train(hostile, workers=2),
    "doctor": lambda hostile: ["doctor"],
}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_imports_no_file_of_the_current_folder(hostile, name):
    hostile.run(*COMMANDS[name](hostile))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "options", [[], ["--workers", "2"], ["--ray"]], ids=["one", "several", "ray"]
)
def test_an_endpoint_imports_no_file_of_the_current_folder(hostile, tmp_path, options):
    (port,) = free_ports(1)
    command = [BIN / "touchstone", "serve", "--ensemble", "tiny", "--port", str(port), *options]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            command,
            cwd=hostile.folder,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        )
    try:
        assert process.stdout.readline().strip() == f"http://127.0.0.1:{port}/", (
            tmp_path / "log"
        ).read_text()
        image = (hostile.folder / hostile.images[0]).read_bytes()
        answer = httpx.post(
            f"http://127.0.0.1:{port}/v1/score",
            content=image,
            headers={"Content-Type": "image/jpeg"},
            timeout=60,
        )
        assert answer.status_code == 200, answer.text
        process.send_signal(signal.SIGINT)
        process.wait(90)
    finally:
        kill_family(process)
    assert not hostile.imported


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.ray
def test_a_job_imports_no_file_of_its_source_or_folder(hostile, tmp_path):
    command = f"cd {hostile.folder} && {sys.executable} {ROOT}/jobs/score.py . --ensemble tiny --out {tmp_path}/run"
    with ray_head() as head:
        words = [BIN / "ray", "job", "submit", "--", "bash", "-c", command]
        done = subprocess.run(
            words, cwd=hostile.folder, env=head.environment, capture_output=True, text=True
        )
    assert not hostile.imported
    assert done.returncode == 0, done.stdout[-3000:]
    assert [row["status"] for row in rows_of(tmp_path / "run").values()].count("ok") == IMAGES


DETECTOR = """
import sys

def by_width(images):
    return [image.shape[1] / 32 for image in images]
"""
USING = """
import os, subprocess, sys
from ray_app.cluster.config import ClusterConfig
from ray_app.cluster.ray_cluster import cluster, map_on_ray
import mine

with cluster(ClusterConfig()):
    print("in a task:", *map_on_ray(mine.by_width, [[]]))
for words in (["detectors", "add", "callable:mine:by_width", "--licence", "own", "--as", "mine"],
              ["score", sys.argv[1], "--detector", "mine", "--out", sys.argv[2]]):
    subprocess.run(["touchstone", *words], check=True)
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.ray
def test_an_uploaded_working_dir_stays_importable(hostile, tmp_path):
    uploaded = tmp_path / "uploaded"
    uploaded.mkdir()
    (uploaded / "mine.py").write_text(DETECTOR)
    (uploaded / "using.py").write_text(USING)
    with ray_head(TOUCHSTONE_CONFIG=str(tmp_path / "config.yaml")) as head:
        words = [
            "job",
            "submit",
            "--working-dir",
            uploaded,
            "--",
            sys.executable,
            "using.py",
            hostile.folder,
            tmp_path / "run",
        ]
        done = subprocess.run(
            [BIN / "ray", *map(str, words)],
            cwd=tmp_path,
            env=head.environment,
            capture_output=True,
            text=True,
        )
    assert not hostile.imported
    assert done.returncode == 0, done.stdout[-3000:]
    assert "in a task: []" in done.stdout
    scores = [row["scores"] for row in rows_of(tmp_path / "run").values() if row["status"] == "ok"]
    assert [dict(one) for one in scores] == [{"mine": 3.0}] * IMAGES
