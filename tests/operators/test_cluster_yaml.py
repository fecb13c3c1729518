"""cluster.yaml is checked by Ray's own code, offline."""

import copy
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from ray.autoscaler._private.util import prepare_config, validate_config

from ray_app.cluster import gpu_check
from ray_app.cluster.shutdown import SIGNAL_GRACE_S, signal_grace_s

PATH = Path(__file__).resolve().parents[2] / "cluster.yaml"
CONFIG = yaml.safe_load(PATH.read_text())


def check(config):
    validate_config(prepare_config(copy.deepcopy(config)))


def test_ray_accepts_it():
    check(CONFIG)


def test_nothing_is_scheduled_on_the_head_and_workers_are_spot_in_one_zone():
    nodes = CONFIG["available_node_types"]
    assert nodes["head"]["resources"] == {"CPU": 0}
    assert "," not in CONFIG["provider"]["availability_zone"]
    for name, node in nodes.items():
        assert node["node_config"]["IamInstanceProfile"] == {
            "Name": "touchstone-head" if name == "head" else "touchstone-node"
        }
        assert ("InstanceMarketOptions" in node["node_config"]) == (name != "head")
        assert node["min_workers"] == 0
    assert any("GPU" in node["resources"] for node in nodes.values())
    assert CONFIG["idle_timeout_minutes"] > 0


def test_every_node_starts_from_an_image_that_ec2_finds_by_name():
    for node in CONFIG["available_node_types"].values():
        assert re.fullmatch(
            r"resolve:ssm:/aws/service/deeplearning/ami/x86_64/base-[a-z0-9.-]+/latest/ami-id",
            node["node_config"]["ImageId"],
        )


def test_the_image_has_the_pinned_ray_and_python_and_no_cuda_of_its_own():
    """A CUDA image puts its libraries before those that torch's wheels bring, and the driver is the
    machine's.
    """
    pins = pinned()
    assert (
        CONFIG["docker"]["image"]
        == f"rayproject/ray:{pins['ray']}-py{sys.version_info.major}{sys.version_info.minor}-cpu"
    )
    assert "NVIDIA_VISIBLE_DEVICES=all" in " ".join(CONFIG["docker"]["run_options"])
    assert gpu_check._MIN_DRIVER[pins["cuda-toolkit"].partition(".")[0]] == 580


def test_a_node_without_use_for_its_gpu_stops_at_the_last_setup_command():
    assert prepared()["worker_setup_commands"][-1] == "python -m ray_app.cluster.gpu_check"
    assert prepared()["head_setup_commands"][-1] == "python -m ray_app.cluster.gpu_check"


def prepared():
    return prepare_config(copy.deepcopy(CONFIG))


def pinned():
    lines = (PATH.parent / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if "==" in line)


def test_ray_installs_no_other_boto3_on_the_head():
    """Its own line takes the newest one, whose botocore aiobotocore refuses; or a botocore as old
    as the image's boto3.
    """
    installs = [
        command
        for kind in ("head", "worker")
        for command in prepared()[f"{kind}_setup_commands"]
        if "pip install" in command
    ]
    assert len(installs) == 2
    assert all(
        "--constraint constraints.txt" in command and "[aws]" in command for command in installs
    )
    project = tomllib.loads((PATH.parent / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    assert [Requirement(one).name for one in project["aws"]] == ["boto3"]


def test_the_pinned_boto3_botocore_and_s3fs_take_each_other():
    """By what each says of itself; the pins are what is installed here."""
    pins = pinned()
    for package in ("s3fs", "aiobotocore", "boto3", "s3transfer"):
        assert metadata.version(package) == pins[package]
        for requirement in map(Requirement, metadata.requires(package)):
            if requirement.name in pins and (
                requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            ):
                assert pins[requirement.name] in requirement.specifier, (
                    f"{package} wants {requirement}"
                )


def test_it_reads_the_same_formats_as_the_image():
    """Extras of pyproject bring formats (raw); HEIC and AVIF come without one. `aws` is for the
    launcher alone.
    """
    installs = "".join(CONFIG["setup_commands"]), (PATH.parent / "Dockerfile").read_text()
    here, image = (
        {
            extra
            for found in re.findall(r"(?:\.|whl\)?)\[([a-z,]+)\]", text)
            for extra in found.split(",")
        }
        for text in installs
    )
    assert here - {"aws"} == image
    required = {
        Requirement(one).name
        for one in tomllib.loads((PATH.parent / "pyproject.toml").read_text())["project"][
            "dependencies"
        ]
    }
    assert {"pi-heif", "pillow"} <= required


@pytest.mark.parametrize("has_it", [True, False], ids=["an image of one's own", "Ray's image"])
def test_a_node_installs_what_its_image_does_not_have(has_it, tmp_path):
    (tmp_path / "touchstone").mkdir()
    if has_it:
        (tmp_path / "opt").mkdir()
    pip = tmp_path / "pip"
    pip.write_text(f'#!/bin/sh\necho "$PWD $@" > {tmp_path}/called\n')
    pip.chmod(0o755)
    setup = CONFIG["setup_commands"][0].replace("/opt/touchstone", str(tmp_path / "opt"))
    subprocess.run(
        ["bash", "-c", setup],
        env={"HOME": str(tmp_path), "PATH": f"{tmp_path}:/usr/bin:/bin"},
        check=True,
    )
    assert (tmp_path / "called").exists() != has_it
    if not has_it:
        assert (
            (tmp_path / "called").read_text()
            == f"{tmp_path}/touchstone install --quiet --constraint constraints.txt .[aws]\n"
        )


def test_an_image_of_one_s_own_has_what_the_launcher_calls_in_it():
    """Ray 2.60's DockerCommandRunner: rsync into the container, a login shell of bash (Debian's),
    `~` as HOME of the image says.
    """
    check(
        {
            **CONFIG,
            "docker": {**CONFIG["docker"], "image": "registry.example.org/touchstone:1.2.3-cuda"},
        }
    )
    built = (PATH.parent / "Dockerfile").read_text()
    assert re.search(r"apt-get install .*\brsync\b", built)
    assert re.search(r"^ENV .*\bHOME=/home/touchstone\b", built, re.MULTILINE)
    assert "> /etc/profile.d/touchstone.sh" in built  # a login shell takes PATH from there
    # another home in each image
    assert all(place.startswith("~/") for place in CONFIG["file_mounts"])
    assert "--build-arg USER_ID=1000" in (PATH.parent / "docs" / "cluster.md").read_text()


def test_a_stopped_job_has_time_to_commit(monkeypatch):
    """Its driver runs on the head, or on the node that `--entrypoint-num-cpus` finds."""
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    for kind in ("head", "worker"):
        [start] = [one for one in CONFIG[f"{kind}_start_ray_commands"] if "ray start" in one]
        monkeypatch.setenv(
            "RAY_JOB_STOP_WAIT_TIME_S", re.search(r"RAY_JOB_STOP_WAIT_TIME_S=(\d+)", start)[1]
        )
        assert signal_grace_s() == SIGNAL_GRACE_S


def test_it_holds_no_secret():
    assert not re.search(
        r"AKIA|aws_secret|ssh_private_key|password", PATH.read_text(), re.IGNORECASE
    )


def test_every_node_starts_with_the_token_and_cannot_start_without():
    starts = [
        one
        for key in ("head_start_ray_commands", "worker_start_ray_commands")
        for one in CONFIG[key]
        if "ray start" in one
    ]
    assert len(starts) == 2
    assert all(
        re.match(r"RAY_AUTH_MODE=token RAY_JOB_STOP_WAIT_TIME_S=\d+ ray start ", one)
        for one in starts
    )
    assert CONFIG["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
