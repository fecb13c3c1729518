"""The README's own blocks, run."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ray_app import __version__
from ray_app.cli.main import main, touchstone
from ray_app.datasets.simulation.archive import build_sample_archive
from tests.detectors.small_clip import small_card
from tests.images.factory import photo
from tests.ray_head import free_ports
from tests.scoring.stages import without_ray

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
SQL = re.findall(r"```sql\n(.*?)```", README, re.DOTALL)
COMMANDS = [line for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]

# Run elsewhere: `make` by CI itself, jobs by tests/scoring/test_job.py, cluster.yaml by tests/test_cluster_yaml.py, `serve deploy` by
# tests/serving/test_deployed.py, what Kubernetes applies by tests/serving/test_configs.py, tokens by tests/serving/http/test_auth.py,
# the training of minutes and what it made by tests/training/test_quick.py, the evaluation of minutes, with fewer pictures, by
# tests/evaluation/on_ray/test_evaluate.py.
TRAINED = (
    "touchstone train configs/train/quick.yaml --out mine",
    "touchstone score demo-run/archive --detector mine/card.yaml --out run-of-mine",
)
SIMULATED = "touchstone evaluate simulated:: --perturb standard --out figures"
# Calibrating wants hundreds of labelled images: tests/scoring/test_calibrated_card.py, tests/scoring/test_references.py.
CALIBRATED = (
    "touchstone detectors calibrate labelled-run --labels labels.csv --fpr 0.01 --out mine.yaml",
    "touchstone score s3://bucket/photos --ensemble mine.yaml --stability 5 --out s3://bucket/calibrated-run",
    "touchstone results s3://bucket/calibrated-run --fdr 0.05",
)
# Images from elsewhere: tests/datajobs/download, tests/test_profile_walk.py.
GATHERED = (
    "touchstone data collect urls.csv --out collected",
    "touchstone data generate sd-3.5 --prompts prompts.txt --like photos --accept-licence sd-3.5 --out made",
)
ELSEWHERE = (
    "make ",
    "ray ",
    "export RAY_AUTH_MODE=",
    "export RAY_API_SERVER_ADDRESS=",
    "serve deploy ",
    "kubectl apply ",
    "TOUCHSTONE_TOKENS=",
    SIMULATED,
    *TRAINED,
    *CALIBRATED,
    *GATHERED,
)

SERVE = "touchstone serve"  # never returns: the fixture `endpoint` is its run
ENDPOINT = "http://127.0.0.1:8000"

# Weights that cannot be had here: one clear line and exit code 4.
NEEDS_WEIGHTS = {"fetch", "fit"}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, s3):
    """A folder as after `make demo`, and s3://bucket/photos with the same images."""
    folder = tmp_path_factory.mktemp("readme")
    archive = folder / "demo-run" / "archive"
    build_sample_archive(archive, files=12)
    s3.bucket("bucket")
    for path in archive.rglob("*"):
        if path.is_file():
            s3.client().upload_file(str(path), "bucket", f"photos/{path.relative_to(archive)}")
    for photograph, name in zip(sorted(archive.rglob("*.jpg")), ("photo.jpg", "other.jpg"), strict=False):
        shutil.copy(photograph, folder / name)
    before = os.getcwd()
    os.chdir(folder)
    (folder / "list.csv").write_text("uri,label\nphoto.jpg,real\nother.jpg,real\n")
    write_head(folder)
    with without_ray():
        assert main(["score", "demo-run/archive", "--ensemble", "tiny", "--out", "run"]) == 0
    yield folder
    os.chdir(before)


@pytest.fixture(scope="module")
def endpoint(workplace, tmp_path_factory):
    """The URL of what `touchstone serve` starts, on a port that is free here."""
    assert SERVE in COMMANDS
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "ray_app.cli.main", "serve", "--port", str(port)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    log = tmp_path_factory.mktemp("endpoint") / "log"
    with log.open("w") as errors:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True)
    try:
        assert process.stdout.readline().strip() == f"http://127.0.0.1:{port}/", log.read_text()
        yield f"http://127.0.0.1:{port}"
        process.terminate()
        assert process.wait(60) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def here(request):
    """What the README says of its endpoint, said of the one that runs here."""
    return lambda text: text.replace(ENDPOINT, request.getfixturevalue("endpoint")) if ENDPOINT in text else text


def write_head(folder):
    """labels.csv, and my-head as `detectors fit` makes it, on a backbone whose weights are here."""
    for number in range(40):
        photo(seed=number).save(folder / f"{number}.png")
    rows = [f"{number}.png,{('real', 'fake')[number % 2]}" for number in range(40)]
    (folder / "labels.csv").write_text("\n".join(["uri,label", *rows]))
    (folder / "base").mkdir()
    _, card = small_card(folder / "base")
    assert main(["detectors", "fit", str(card), "--labels", "labels.csv", "--out", "my-head"]) == 0


@pytest.mark.ray
@pytest.mark.parametrize("block", PYTHON, ids=lambda block: block.strip().splitlines()[-1][:40])
def test_python_blocks_run(workplace, here, block, capsys, request):
    if "ray.data" in block:
        request.getfixturevalue("ray_cluster")
    exec(compile(here(block), "README.md", "exec"), {})
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.ray
@pytest.mark.parametrize("query", SQL)
def test_queries_give_one_row_per_member(workplace, query):
    import duckdb

    rows = duckdb.sql(query).fetchall()
    assert len(rows) == json.loads(Path("run/summary.json").read_text())["members"]


@pytest.mark.ray
@pytest.mark.parametrize("line", COMMANDS)
def test_commands_run(workplace, here, off_ray, line, monkeypatch):
    if line.startswith(ELSEWHERE) or line == SERVE:
        return
    program, *arguments = shlex.split(here(line))
    if program == "curl":
        scores(program, *arguments)
        return
    assert program == "touchstone"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(arguments) == (4 if NEEDS_WEIGHTS & set(arguments) else 0)


def scores(*command):
    """A line that asks the endpoint with a program of the machine, and is told a score per image."""
    if not shutil.which(command[0]):
        pytest.skip(f"{command[0]} is not installed")
    answer = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)
    assert [one["score"] is not None for one in answer.get("results", [answer])] == [True] * sum("@" in word for word in command)


def test_readme_names_every_command():
    for name in touchstone.commands:
        assert f"touchstone {name}" in README


def test_no_blank_was_left_to_fill_in():
    assert not re.search(r"@[A-Z]+@", README)


def test_the_changelog_s_newest_version_is_the_package_s():
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest[1] == __version__
    assert f'version = "{__version__}"' in (ROOT / "pyproject.toml").read_text()
