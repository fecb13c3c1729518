"""The manifests of scoring runs say what KubeRay and our own command accept, and leave a run the
time that it needs to stop.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from ray_app import __version__
from ray_app.cli.main import main
from ray_app.cluster.config import RAY_SHARE
from ray_app.cluster.shutdown import SIGNAL_GRACE_S
from ray_app.scoring import ScoreConfig
from ray_app.scoring.run import MARGIN_S, NOTICE_EVERY
from tests import crds
from tests.kube_api import KubeApi

ROOT = Path(__file__).resolve().parents[2]
KUBERNETES = ROOT / "configs/kubernetes"
FILES = {
    path.name: list(yaml.safe_load_all(path.read_text()))
    for path in sorted(KUBERNETES.glob("*.yaml"))
}


def manifest(file: str, kind: str) -> dict[str, Any]:
    (found,) = (one for one in FILES[file] if one["kind"] == kind)
    return found


RUN, NIGHT, CRON = (
    manifest("rayjob.yaml", "RayJob"),
    manifest("raycronjob.yaml", "RayCronJob"),
    manifest("cronjob.yaml", "CronJob"),
)
JOBS = {"rayjob.yaml": RUN["spec"], "raycronjob.yaml": NIGHT["spec"]["jobTemplate"]}
CLUSTER = RUN["spec"]["rayClusterSpec"]
GROUPS = {
    "head": CLUSTER["headGroupSpec"],
    **{group["groupName"]: group for group in CLUSTER["workerGroupSpecs"]},
}
PODS = {
    "submitter": RUN["spec"]["submitterPodTemplate"],
    **{name: group["template"] for name, group in GROUPS.items()},
}
PODS["cronjob"] = CRON["spec"]["jobTemplate"]["spec"]["template"]
every_group = pytest.mark.parametrize("group", GROUPS.values(), ids=GROUPS)
every_pod = pytest.mark.parametrize("pod", PODS.values(), ids=PODS)
UNITS = {"Mi": 2**20, "Gi": 2**30, "m": 1e-3, "": 1.0}


def amount(quantity: str | int) -> float:
    number, unit = re.fullmatch(r"([\d.]+)(\w*)", str(quantity)).groups()
    return float(number) * UNITS[unit]


def container(pod: dict[str, Any]) -> dict[str, Any]:
    (only,) = pod["spec"]["containers"]
    return only


def environment(pod: dict[str, Any]) -> dict[str, str]:
    return {one["name"]: one["value"] for one in container(pod)["env"]}


def test_kuberay_accepts_the_run_and_the_night_and_would_refuse_typos():
    for kind, found in (("RayJob", RUN), ("RayCronJob", NIGHT)):
        assert found["apiVersion"] == "ray.io/v1"
        assert crds.faults(kind, found) == []
    for name in (
        "activeDeadlineSeconds",
        "secretRef",
        "tolerations",
        "maxReplicas",
        "mode",
        "timeZone",
    ):
        damaged = json.loads(json.dumps(NIGHT).replace(f'"{name}":', f'"{name}x":'))
        assert damaged != NIGHT
        assert crds.faults("RayCronJob", damaged), name


def test_kubernetes_and_the_controller_accept_what_stands_beside_them():
    """Of Kubernetes' own kinds, KubeRay's CRDs have the schemas of pods and of network rules."""
    assert crds.faults("RayJob", PODS["cronjob"], "spec", "submitterPodTemplate") == []
    policy = manifest("run.yaml", "NetworkPolicy")["spec"]
    assert (
        crds.faults(
            "RayJob",
            policy["ingress"],
            "spec",
            "rayClusterSpec",
            "networkPolicy",
            "head",
            "ingressRules",
        )
        == []
    )
    # Rules of KubeRay's validation.go that are in no schema.
    assert len(RUN["metadata"]["name"]) <= 47
    assert len(NIGHT["metadata"]["name"]) <= 36
    assert "TZ" not in NIGHT["spec"]["schedule"]
    for job in JOBS.values():
        assert "deletionStrategy" not in job, "not beside shutdownAfterJobFinishes"
        assert "enableK8sTokenAuth" not in job["rayClusterSpec"]["authOptions"], "not with a RayJob"


def test_a_night_is_a_run_with_an_end_before_the_next():
    night = dict(JOBS["raycronjob.yaml"])
    deadline_s = night.pop("activeDeadlineSeconds")
    assert night == JOBS["rayjob.yaml"]
    assert deadline_s * (night["backoffLimit"] + 1) < 24 * 3600, (
        "RayCronJob lets nights overlap, and each try has the deadline anew"
    )
    assert night["backoffLimit"] > 0, "the same command goes on"
    assert night["shutdownAfterJobFinishes"] is True
    assert (NIGHT["spec"]["schedule"], NIGHT["spec"]["timeZone"]) == (
        CRON["spec"]["schedule"],
        CRON["spec"]["timeZone"],
    )
    assert CRON["spec"]["concurrencyPolicy"] == "Forbid"


@pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)
def test_the_command_is_one_of_ours_and_its_config_is_read(job, tmp_path, monkeypatch):
    program, *arguments = shlex.split(job["entrypoint"])
    assert program == "touchstone"
    config = manifest("run.yaml", "ConfigMap")["data"]["score.yaml"]
    mounted = {
        mount["name"]: mount["mountPath"] for mount in container(PODS["head"])["volumeMounts"]
    }
    name = arguments[arguments.index("--config") + 1]
    assert Path(name).parent == Path(mounted["config"])
    (tmp_path / Path(name).name).write_text(config)
    asked = []
    monkeypatch.setattr(
        "ray_app.scoring.run.score_archive", lambda settings: asked.append(settings) or exit()
    )
    with pytest.raises(SystemExit):
        main([one.replace(mounted["config"], str(tmp_path)) for one in arguments])
    [settings] = asked
    assert isinstance(settings, ScoreConfig)
    assert settings.source == ("s3://bucket/photos",)
    assert settings.out == "s3://bucket/runs/photos"
    gpu, cores = GROUPS["gpu"], amount(container(PODS["gpu"])["resources"]["limits"]["cpu"])
    assert settings.cluster.gpus == gpu["maxReplicas"], "what is asked for is what may come"
    assert settings.cluster.cpus == gpu["maxReplicas"] * cores


@every_group
def test_a_pod_that_is_to_go_gives_a_run_the_time_to_stop(group):
    """Ray drains its own node for so long when it gets SIGTERM, which the driver notices, and
    stops; then Ray ends its processes.
    """
    spec = group["template"]["spec"]
    drained_s = float(environment(group["template"])["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
    assert drained_s >= NOTICE_EVERY + SIGNAL_GRACE_S + MARGIN_S + 10, (
        "noticed, committed, written down"
    )
    assert spec["terminationGracePeriodSeconds"] >= drained_s + 10
    assert float(environment(group["template"])["RAY_JOB_STOP_WAIT_TIME_S"]) >= SIGNAL_GRACE_S + 10
    constants = (Path(ray.__file__).parent / "_private/ray_constants.py").read_text()
    assert "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S" in constants, (
        "another Ray: does it still say that its node will go?"
    )


@every_group
def test_ray_s_memory_is_a_share_of_the_pod_s_and_the_object_store_fits(group):
    """What Touchstone takes a node's memory for: KubeRay by itself would hand Ray the whole limit."""
    limit = amount(container(group["template"])["resources"]["limits"]["memory"])
    memory, store = (
        float(group["rayStartParams"][key]) for key in ("memory", "object-store-memory")
    )
    assert memory == pytest.approx(RAY_SHARE * limit, rel=1e-3)
    assert memory + store <= limit
    volumes = {volume["name"]: volume for volume in group["template"]["spec"]["volumes"]}
    (shared,) = (
        volumes[mount["name"]]
        for mount in container(group["template"])["volumeMounts"]
        if mount["mountPath"] == "/dev/shm"
    )
    assert shared["emptyDir"]["medium"] == "Memory"
    assert store < amount(shared["emptyDir"]["sizeLimit"]) < limit


def test_nobody_commands_the_cluster_without_its_token_and_no_key_stands_anywhere():
    for job in JOBS.values():
        assert job["rayClusterSpec"]["authOptions"] == {"mode": "token"}
        assert job["rayClusterSpec"]["rayVersion"] == ray.__version__, (
            "KubeRay needs it for the token"
        )
    for path in KUBERNETES.glob("*.yaml"):
        assert not re.search(r"AKIA|value: *\S*(?i:secret|password|token)", path.read_text()), (
            path.name
        )
    for name in GROUPS:
        assert container(PODS[name])["envFrom"] == [
            {"secretRef": {"name": "touchstone-s3", "optional": True}}
        ]
        assert (
            PODS[name]["spec"]["serviceAccountName"]
            == manifest("run.yaml", "ServiceAccount")["metadata"]["name"]
        )
    selector = manifest("run.yaml", "NetworkPolicy")["spec"]["podSelector"]["matchLabels"]
    assert all(
        selector.items() <= PODS[name]["metadata"]["labels"].items()
        for name in (*GROUPS, "submitter")
    )


@every_pod
def test_pods_are_confined(pod):
    spec, only = pod["spec"], container(pod)
    assert spec["securityContext"]["runAsNonRoot"] is True
    needs_kubernetes = pod in (PODS["head"], PODS["cronjob"])  # the autoscaler, and kubectl
    assert spec.get("automountServiceAccountToken") is (None if needs_kubernetes else False)
    assert only["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {"cpu", "memory"} <= set(only["resources"]["limits"]) & set(
        only["resources"]["requests"]
    )
    assert {mount["name"] for mount in only["volumeMounts"]} == {
        volume["name"] for volume in spec["volumes"]
    }


@pytest.mark.parametrize("name", FILES)
def test_images_are_of_this_version(name):
    images = re.findall(r"^ +image: (\S+)", (KUBERNETES / name).read_text(), re.MULTILINE)
    assert {image for image in images if image.startswith("touchstone:")} <= {
        f"touchstone:{__version__}-{kind}" for kind in ("cpu", "cuda")
    }
    assert all(not image.endswith((":latest", ":")) and ":" in image for image in images)
    built = (ROOT / "Dockerfile").read_text()
    assert all(f"--tag {image}" in built for image in images if image.startswith("touchstone:"))


def test_the_night_s_maker_may_do_what_its_command_does_and_no_more():
    command = container(PODS["cronjob"])["command"]
    assert command[:3] == ["kubectl", "replace", "--force"]
    role = manifest("cronjob.yaml", "Role")
    rights = {verb: rule.get("resourceNames") for rule in role["rules"] for verb in rule["verbs"]}
    assert all(
        rule["resources"] == ["rayjobs"] and rule["apiGroups"] == ["ray.io"]
        for rule in role["rules"]
    )
    assert rights == {
        "create": None,
        "get": [RUN["metadata"]["name"]],
        "delete": [RUN["metadata"]["name"]],
    }
    binding = manifest("cronjob.yaml", "RoleBinding")
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert binding["subjects"] == [
        {"kind": "ServiceAccount", "name": PODS["cronjob"]["spec"]["serviceAccountName"]}
    ]
    assert Path(command[-1]).name == "rayjob.yaml"


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_the_night_s_command_by_kubectl_itself(tmp_path):
    """The first night there is nothing to replace; the Role has every right that kubectl used."""
    command = container(PODS["cronjob"])["command"]
    with KubeApi() as api:
        for _ in range(2):
            arguments = [
                *command[:1],
                "--server",
                api.url,
                *command[1:-1],
                str(KUBERNETES / "rayjob.yaml"),
            ]
            done = subprocess.run(
                arguments,
                capture_output=True,
                text=True,
                timeout=60,
                env={**os.environ, "HOME": str(tmp_path)},
            )
            assert done.returncode == 0, done.stderr
        [sent] = api.objects.values()
    assert sent["spec"] == RUN["spec"]
    assert api.verbs == {
        verb for rule in manifest("cronjob.yaml", "Role")["rules"] for verb in rule["verbs"]
    }
