"""The Dockerfile: its structure, and those of its steps that run without a builder."""

import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import ray
import yaml

from ray_app import __version__

ROOT = Path(__file__).resolve().parents[2]


def instructions() -> list[tuple[str, str]]:
    lines = [
        line
        for line in (ROOT / "Dockerfile").read_text().splitlines()
        if not line.lstrip().startswith("#")
    ]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


def stages() -> dict[str, list[tuple[str, str]]]:
    """By name; a stage begins with its FROM."""
    found: dict[str, list[tuple[str, str]]] = {}
    for word, rest in instructions():
        if word == "FROM":
            current = found.setdefault(rest.split(" AS ")[1], [])
        current.append((word, rest))
    return found


def whole(target: str) -> list[tuple[str, str]]:
    """A stage with those that it builds upon, first to last."""
    parent = stages()[target][0][1].split()[0]
    return (whole(parent) if parent in stages() else []) + stages()[target]


def user_id(target: str) -> int:
    """Who it runs as, unless the builder says otherwise: a number, since `runAsNonRoot` cannot
    judge a name.
    """
    [user] = [rest for word, rest in whole(target) if word == "USER"]
    defaults = dict(
        rest.split("=") for word, rest in whole(target) if word == "ARG" and "=" in rest
    )
    return int(defaults[user.removeprefix("$")])


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_image_is_unprivileged_and_has_a_health_check(
    target,
):
    assert user_id(target) > 0
    said = dict(whole(target))
    assert json.loads(said["ENTRYPOINT"]) == ["tini", "--"]
    assert json.loads(said["CMD"])[:2] == ["touchstone", "serve"]
    assert json.loads(re.search(r"CMD (\[.*\])", said["HEALTHCHECK"])[1])[-1].endswith("/healthz")
    installs = [
        rest
        for word, rest in whole(f"packages-{target}")
        if word == "RUN" and "pip install" in rest
    ]
    assert installs
    assert all("--constraint /constraints.txt" in install for install in installs)


def test_no_host_of_a_package_index_is_named():
    assert re.findall(r"https?://([^/\s:\"]+)", (ROOT / "Dockerfile").read_text()) == ["127.0.0.1"]
    assert ("ARG", "TORCH_INDEX") in stages()["packages-cpu"], "without a default"


def install(target: str, tmp_path: Path, **arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the RUN lines that install packages, with a pip that only prints its arguments."""
    wheels = tmp_path / "wheels"
    wheels.mkdir(exist_ok=True)
    (wheels / "touchstone.whl").touch()
    lines = [
        rest
        for word, rest in stages()[f"packages-{target}"]
        if word == "RUN" and "rm -rf" not in rest
    ]
    script = "\n".join(["set -e", *lines]).replace("/opt/touchstone/bin/pip", "echo pip")
    command = ["sh", "-c", script.replace("/wheels", str(wheels))]
    environment = {"PATH": os.environ["PATH"], **arguments}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_steps_install_the_wheel_with_its_extras(target, tmp_path):
    for extras, wheel in (
        ({}, "touchstone.whl"),
        ({"EXTRAS": "raw,zst"}, "touchstone.whl[raw,zst]"),
    ):
        done = install(target, tmp_path, TORCH_INDEX="index", **extras)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1].endswith(f"/{wheel}")
        assert ("--index-url index torch torchvision" in done.stdout) == (target == "cpu")


def test_cpu_image_needs_an_index_of_torch(tmp_path):
    done = install("cpu", tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "TORCH_INDEX" in done.stderr


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_nothing_that_python_imports_is_removed(target):
    [line] = [
        rest for word, rest in stages()[f"packages-{target}"] if word == "RUN" and "rm -rf" in rest
    ]
    version, names = re.search(r"lib/(python[\d.]+)/site-packages && rm -rf (.*)", line).groups()
    assert all(
        rest.startswith(version.replace("python", "python:"))
        for word, rest in instructions()
        if word == "FROM" and "python:" in rest
    )
    found = {name: list(Path(ray.__file__).parents[1].glob(name)) for name in names.split()}
    assert {"ray/jars", "c2pa/libs/*.rlib"} <= {name for name, files in found.items() if files}
    inside = [
        file
        for files in found.values()
        for file in files
        for file in (file.rglob("*") if file.is_dir() else [file])
    ]
    assert {file.suffix for file in inside} <= {".jar", ".rlib"}


@pytest.mark.skipif(shutil.which("wget") is None, reason="no wget")
@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False)])
def test_health_check_fails_for_an_unhealthy_server(status, healthy):
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status if self.path == "/healthz" else 404)
            self.end_headers()

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        command = json.loads(re.search(r"CMD (\[.*\])", dict(whole("cpu"))["HEALTHCHECK"])[1])
        command[-1] = command[-1].replace("8000", str(server.server_port))
        assert (subprocess.run(command, timeout=30).returncode == 0) == healthy
        server.shutdown()


def test_copied_files_exist_and_reach_the_builder():
    let_in = [
        line[1:]
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    ]
    for word, rest in instructions():
        *sources, _target = shlex.split(rest)
        if word == "COPY" and not rest.startswith("--from="):
            for source in sources:
                assert (ROOT / source).exists(), source
                assert any(fnmatch.fnmatch(source, pattern) for pattern in let_in), source
        elif word == "COPY":
            assert sources[0].removeprefix("--from=") in stages()


def test_kubernetes_and_docs_name_this_image_and_user():
    text = (ROOT / "configs/kubernetes/rayservice.yaml").read_text()
    service = next(yaml.safe_load_all(text))
    cluster = service["spec"]["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        spec = group["template"]["spec"]
        assert spec["containers"][0]["image"] == f"touchstone:{__version__}-cpu"
        assert spec["securityContext"]["runAsUser"] == user_id("cpu")
    for file in ("Dockerfile", "docs/serving.md"):
        named = re.findall(r"touchstone:([0-9.]+)-(?:cpu|cuda)", (ROOT / file).read_text())
        assert set(named) == {__version__}, file
