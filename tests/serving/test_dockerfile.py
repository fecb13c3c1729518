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
def test_an_image_runs_as_a_number_that_is_not_root_hears_signals_and_is_asked_for_its_health(
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


def test_no_host_of_a_package_index_is_written_down():
    assert re.findall(r"https?://([^/\s:\"]+)", (ROOT / "Dockerfile").read_text()) == ["127.0.0.1"]
    assert ("ARG", "TORCH_INDEX") in stages()["packages-cpu"], "without a default"


def installs(target: str, tmp_path: Path, **arguments: str) -> subprocess.CompletedProcess[str]:
    """The RUN lines that install packages, by a pip that only says what it is asked for."""
    (tmp_path / "wheels").mkdir(exist_ok=True)
    (tmp_path / "wheels" / "touchstone.whl").touch()
    lines = [
        rest
        for word, rest in stages()[f"packages-{target}"]
        if word == "RUN" and "rm -rf" not in rest
    ]
    script = "set -e\n" + "\n".join(lines).replace("/opt/touchstone/bin/pip", "echo pip").replace(
        "/wheels", str(tmp_path / "wheels")
    )
    environment = {"PATH": os.environ["PATH"], **arguments}
    return subprocess.run(
        ["sh", "-c", script], env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [({}, "touchstone.whl"), ({"EXTRAS": "raw,zst"}, "touchstone.whl[raw,zst]")],
)
def test_the_steps_install_the_wheel_with_the_extras_that_were_asked_for(
    arguments, asked, tmp_path
):
    for target in ("cpu", "cuda"):
        done = installs(target, tmp_path, TORCH_INDEX="index", **arguments)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1].endswith(f"/{asked}")
        assert ("--index-url index torch torchvision" in done.stdout) == (target == "cpu")


def test_an_image_without_cuda_is_refused_where_no_such_torch_is_named(tmp_path):
    done = installs("cpu", tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "TORCH_INDEX" in done.stderr


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_nothing_that_python_imports_is_taken_out_of_an_image(target):
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
def test_the_question_for_its_health_tells_a_server_that_is_ill(status, healthy):
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


def test_what_is_copied_is_there_and_reaches_the_builder():
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


def test_kubernetes_and_the_words_to_operators_use_this_image_and_this_user():
    text = (ROOT / "configs/kubernetes/rayservice.yaml").read_text()
    service = next(yaml.safe_load_all(text))
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[
        1
    ]
    cluster = service["spec"]["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        spec = group["template"]["spec"]
        assert spec["containers"][0]["image"] == f"touchstone:{version}-cpu"
        assert spec["securityContext"]["runAsUser"] == user_id("cpu")
    for file in ("Dockerfile", "docs/serving.md"):
        named = re.findall(r"touchstone:([0-9.]+)-(?:cpu|cuda)", (ROOT / file).read_text())
        assert set(named) == {version}, file
