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

import pytest
import ray
import yaml

from ray_app import __version__
from ray_app.cli.main import main
from ray_app.cluster.config import RAY_SHARE
from ray_app.cluster.shutdown import SIGNAL_GRACE_S
from ray_app.scoring.run import MARGIN_S, NOTICE_EVERY
from tests.make import crds
from tests.make.runs import ROOT
from tests.make.servers.kube_api import KubeApi

KUBERNETES = ROOT / "configs/kubernetes"
TEXTS = {path.name: path.read_text() for path in sorted(KUBERNETES.glob("*.yaml"))}


def manifest(file, kind):
    (found,) = (one for one in yaml.safe_load_all(TEXTS[file]) if one["kind"] == kind)
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
    "cronjob": CRON["spec"]["jobTemplate"]["spec"]["template"],
}
UNITS = {"Mi": 2**20, "Gi": 2**30, "m": 1e-3, "": 1.0}


def amount(quantity):
    number, unit = re.fullmatch(r"([\d.]+)(\w*)", str(quantity)).groups()
    return float(number) * UNITS[unit]


def container(pod):
    (only,) = pod["spec"]["containers"]
    return only


def test_kuberay_accepts_run_and_night_and_refuses_typos():
    for kind, found in (("RayJob", RUN), ("RayCronJob", NIGHT)):
        assert found["apiVersion"] == "ray.io/v1"
        assert crds.faults(kind, found) == []
    names = "activeDeadlineSeconds secretRef tolerations maxReplicas mode timeZone"
    for name in names.split():
        damaged = json.loads(json.dumps(NIGHT).replace(f'"{name}":', f'"{name}x":'))
        assert damaged != NIGHT
        assert crds.faults("RayCronJob", damaged), name


def test_kubernetes_accepts_pods_and_network_rules():
    """Of Kubernetes' own kinds, KubeRay's CRDs have the schemas of pods and of network rules."""
    assert crds.faults("RayJob", PODS["cronjob"], "spec", "submitterPodTemplate") == []
    rules = manifest("run.yaml", "NetworkPolicy")["spec"]["ingress"]
    place = ("spec", "rayClusterSpec", "networkPolicy", "head", "ingressRules")
    assert crds.faults("RayJob", rules, *place) == []
    # Rules of KubeRay's validation.go that are in no schema.
    assert len(RUN["metadata"]["name"]) <= 47
    assert len(NIGHT["metadata"]["name"]) <= 36
    assert "TZ" not in NIGHT["spec"]["schedule"]
    for job in JOBS.values():
        assert "deletionStrategy" not in job, "not with shutdownAfterJobFinishes"
        assert "enableK8sTokenAuth" not in job["rayClusterSpec"]["authOptions"], "not with a RayJob"


def test_night_is_a_run_that_ends_before_the_next():
    night = dict(JOBS["raycronjob.yaml"])
    deadline_s = night.pop("activeDeadlineSeconds")
    assert night == JOBS["rayjob.yaml"]
    assert deadline_s * (night["backoffLimit"] + 1) < 24 * 3600, (
        "RayCronJob lets nights overlap, and each try has the deadline again"
    )
    assert night["backoffLimit"] > 0, "the same command continues the run"
    assert night["shutdownAfterJobFinishes"] is True
    for key in ("schedule", "timeZone"):
        assert NIGHT["spec"][key] == CRON["spec"][key]
    assert CRON["spec"]["concurrencyPolicy"] == "Forbid"


@pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)
def test_entrypoint_is_a_command_whose_config_is_read(job, tmp_path, monkeypatch):
    program, *arguments = shlex.split(job["entrypoint"])
    assert program == "touchstone"
    mounts = container(PODS["head"])["volumeMounts"]
    [mounted] = [mount["mountPath"] for mount in mounts if mount["name"] == "config"]
    name = Path(arguments[arguments.index("--config") + 1])
    assert name.parent == Path(mounted)
    config = manifest("run.yaml", "ConfigMap")["data"]["score.yaml"]
    (tmp_path / name.name).write_text(config)
    started = []
    monkeypatch.setattr(
        "ray_app.scoring.run.score_archive", lambda settings: started.append(settings) or exit()
    )
    with pytest.raises(SystemExit):
        main([one.replace(mounted, str(tmp_path)) for one in arguments])
    [settings] = started
    assert (settings.source, settings.out) == (("s3://bucket/photos",), "s3://bucket/runs/photos")
    most, limits = GROUPS["gpu"]["maxReplicas"], container(PODS["gpu"])["resources"]["limits"]
    assert settings.cluster.gpus == most, "what is requested is what may come"
    assert settings.cluster.cpus == most * amount(limits["cpu"])


@pytest.mark.parametrize("group", GROUPS.values(), ids=GROUPS)
def test_pods_give_a_run_time_to_stop_and_ray_its_memory(group):
    """Ray drains its own node when it gets SIGTERM, which the driver notices, and stops; then Ray
    ends its processes. KubeRay by itself would give Ray the whole memory of the pod.
    """
    pod, only = group["template"]["spec"], container(group["template"])
    environment = {one["name"]: one["value"] for one in only["env"]}
    drained_s = float(environment["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
    assert drained_s >= NOTICE_EVERY + SIGNAL_GRACE_S + MARGIN_S + 10
    assert pod["terminationGracePeriodSeconds"] >= drained_s + 10
    assert float(environment["RAY_JOB_STOP_WAIT_TIME_S"]) >= SIGNAL_GRACE_S + 10
    constants = (Path(ray.__file__).parent / "_private/ray_constants.py").read_text()
    assert "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S" in constants, "another Ray"
    limit = amount(only["resources"]["limits"]["memory"])
    parameters = group["rayStartParams"]
    memory, store = (float(parameters[key]) for key in ("memory", "object-store-memory"))
    assert memory == pytest.approx(RAY_SHARE * limit, rel=1e-3)
    assert memory + store <= limit
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounted = {mount["mountPath"]: volumes[mount["name"]] for mount in only["volumeMounts"]}
    shared = mounted["/dev/shm"]["emptyDir"]
    assert shared["medium"] == "Memory"
    assert store < amount(shared["sizeLimit"]) < limit


def test_cluster_requires_its_token_and_no_file_has_a_key():
    for job in JOBS.values():
        cluster = job["rayClusterSpec"]
        assert cluster["authOptions"] == {"mode": "token"}
        assert cluster["rayVersion"] == ray.__version__, "KubeRay needs it for the token"
    for name, text in TEXTS.items():
        assert not re.search(r"AKIA|value: *\S*(?i:secret|password|token)", text), name
    secret = {"secretRef": {"name": "touchstone-s3", "optional": True}}
    account = manifest("run.yaml", "ServiceAccount")["metadata"]["name"]
    for name in GROUPS:
        assert container(PODS[name])["envFrom"] == [secret]
        assert PODS[name]["spec"]["serviceAccountName"] == account
    selector = manifest("run.yaml", "NetworkPolicy")["spec"]["podSelector"]["matchLabels"]
    for name in (*GROUPS, "submitter"):
        assert selector.items() <= PODS[name]["metadata"]["labels"].items()


@pytest.mark.parametrize("name", PODS)
def test_pods_are_confined(name):
    spec, only = PODS[name]["spec"], container(PODS[name])
    assert spec["securityContext"]["runAsNonRoot"] is True
    needs_kubernetes = name in ("head", "cronjob")  # the autoscaler, and kubectl
    assert spec.get("automountServiceAccountToken") is (None if needs_kubernetes else False)
    assert only["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    for kind in ("limits", "requests"):
        assert {"cpu", "memory"} <= set(only["resources"][kind])
    mounts = {mount["name"] for mount in only["volumeMounts"]}
    assert mounts == {volume["name"] for volume in spec["volumes"]}


def test_images_are_of_this_version():
    built = (ROOT / "Dockerfile").read_text()
    for text in TEXTS.values():
        for image in re.findall(r"^ +image: (\S+)", text, re.MULTILINE):
            assert ":" in image
            assert not image.endswith((":latest", ":"))
            if image.startswith("touchstone:"):
                assert image in {f"touchstone:{__version__}-{kind}" for kind in ("cpu", "cuda")}
                assert f"--tag {image}" in built


def test_role_of_the_cronjob_allows_only_its_command():
    command = container(PODS["cronjob"])["command"]
    assert command[:3] == ["kubectl", "replace", "--force"]
    assert Path(command[-1]).name == "rayjob.yaml"
    role, name = manifest("cronjob.yaml", "Role"), RUN["metadata"]["name"]
    rights = {verb: rule.get("resourceNames") for rule in role["rules"] for verb in rule["verbs"]}
    assert rights == {"create": None, "get": [name], "delete": [name]}
    for rule in role["rules"]:
        assert (rule["resources"], rule["apiGroups"]) == (["rayjobs"], ["ray.io"])
    binding = manifest("cronjob.yaml", "RoleBinding")
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    account = PODS["cronjob"]["spec"]["serviceAccountName"]
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": account}]


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_kubectl_needs_every_right_of_the_role(tmp_path):
    """The first night there is nothing to replace."""
    program, *words, _ = container(PODS["cronjob"])["command"]
    environment = {**os.environ, "HOME": str(tmp_path)}
    with KubeApi() as api:
        command = [program, "--server", api.url, *words, str(KUBERNETES / "rayjob.yaml")]
        for _ in range(2):
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=60, env=environment
            )
            assert done.returncode == 0, done.stderr
    [sent] = api.objects.values()
    assert sent["spec"] == RUN["spec"]
    rules = manifest("cronjob.yaml", "Role")["rules"]
    assert api.verbs == {verb for rule in rules for verb in rule["verbs"]}
