"""The Dockerfile's structure: what can be told without a builder."""

import fnmatch
import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]


def instructions() -> list[tuple[str, str]]:
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
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
    """Who it runs as, unless the builder says otherwise: a number, since `runAsNonRoot` cannot judge a name."""
    [user] = [rest for word, rest in whole(target) if word == "USER"]
    defaults = dict(rest.split("=") for word, rest in whole(target) if word == "ARG" and "=" in rest)
    return int(defaults[user.removeprefix("$")])


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_an_image_runs_as_a_number_that_is_not_root_hears_signals_and_is_asked_for_its_health(target):
    assert user_id(target) > 0
    said = dict(whole(target))
    assert json.loads(said["ENTRYPOINT"]) == ["tini", "--"]
    assert json.loads(said["CMD"])[:2] == ["touchstone", "serve"]
    assert json.loads(re.search(r"CMD (\[.*\])", said["HEALTHCHECK"])[1])[-1].endswith("/healthz")
    installs = [rest for word, rest in whole(f"packages-{target}") if word == "RUN" and "pip install" in rest]
    assert installs
    assert all("--constraint /constraints.txt" in install for install in installs)


def test_no_host_of_a_package_index_is_written_down():
    assert re.findall(r"https?://([^/\s:\"]+)", (ROOT / "Dockerfile").read_text()) == ["127.0.0.1"]
    assert ("ARG", "TORCH_INDEX") in stages()["packages-cpu"], "without a default"


def test_what_is_copied_is_there_and_reaches_the_builder():
    let_in = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
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
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    cluster = service["spec"]["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        spec = group["template"]["spec"]
        assert spec["containers"][0]["image"] == f"touchstone:{version}-cpu"
        assert spec["securityContext"]["runAsUser"] == user_id("cpu")
    for file in ("Dockerfile", "docs/serving.md"):
        named = re.findall(r"touchstone:([0-9.]+)-(?:cpu|cuda)", (ROOT / file).read_text())
        assert set(named) == {version}, file
