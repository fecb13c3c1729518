"""The files an operator deploys say what Serve, our own config and Kubernetes accept, key by key."""

import copy
import json
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
import yaml
from pydantic import BaseModel
from ray.serve._private.build_app import build_app
from ray.serve._private.config import DeploymentConfig
from ray.serve.schema import ServeDeploySchema

from ray_app.errors import ConfigError, DetectorError
from ray_app.serving.app import build
from ray_app.serving.config import QUIET, ServeConfig, read_file
from ray_app.serving.ensembles import plan_ensembles
from ray_app.serving.ray_server import SERVE_VARIABLES
from tests.make import crds

ROOT = Path(__file__).resolve().parents[2]
SERVE_FILES = sorted((ROOT / "configs/serve").glob("*.yaml"))
KUBERNETES = ROOT / "configs/kubernetes/rayservice.yaml"
MANIFESTS: dict[str, Any] = {
    f"{item['kind']} {item['metadata']['name']}": item
    for item in yaml.safe_load_all(KUBERNETES.read_text())
}
SERVICE = MANIFESTS["RayService touchstone"]
SERVED = yaml.safe_load(SERVICE["spec"]["serveConfigV2"])
EVERY_CONFIG = {path.name: yaml.safe_load(path.read_text()) for path in SERVE_FILES} | {
    KUBERNETES.name: SERVED
}
every_config = pytest.mark.parametrize("config", EVERY_CONFIG.values(), ids=EVERY_CONFIG)


def models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return (
        [model for argument in get_args(annotation) for model in models_in(argument)]
        if get_origin(annotation)
        else []
    )


def unknown_keys(value: Any, models: list[type[BaseModel]], where: str = "") -> list[str]:
    """Keys that no model has. Serve itself lets most of them pass in silence."""
    if isinstance(value, list):
        return [
            found
            for index, item in enumerate(value)
            for found in unknown_keys(item, models, f"{where}[{index}]")
        ]
    if not isinstance(value, dict) or not models:
        return []
    fields = {
        name: field.annotation for model in models for name, field in model.model_fields.items()
    }
    found = [f"{where}.{key}" for key in value if key not in fields]
    return found + [
        bad
        for key in value
        if key in fields
        for bad in unknown_keys(value[key], models_in(fields[key]), f"{where}.{key}")
    ]


def check(config: dict[str, Any]) -> ServeConfig:
    """What `serve deploy` would do with the file, and more strictly. Raises ValueError."""
    if found := unknown_keys(config, [ServeDeploySchema]):
        raise ValueError(f"unknown keys: {found}")
    ServeDeploySchema.model_validate(copy.deepcopy(config))
    return ServeConfig.model_validate(application(config)["args"])


def application(config: dict[str, Any]) -> dict[str, Any]:
    (only,) = config["applications"]
    return only


def built(config: dict[str, Any]) -> dict[str, DeploymentConfig]:
    """What the application says of each of its deployments, the one licence accepted that a file
    leaves to the operator.
    """
    served = check(config).model_copy(update={"accept_licences": ("openfake-swinv2-small",)})
    return {
        one.name: one._deployment_config
        for one in build_app(build(served), name="touchstone").deployments
    }


@every_config
def test_config_can_be_deployed_and_allows_nothing_risky(config):
    served, app = check(config), application(config)
    assert (app["import_path"], app["name"]) == ("ray_app.serving.app:build", "touchstone")
    assert not any([served.access.anonymous, served.access.cors_origins])
    assert "deployments" not in app, "the application sets it"
    for section in (config["http_options"], app["args"]["replica"]):
        section["portx"] = 1
        with pytest.raises((ValueError, ConfigError)):
            check(config)
        del section["portx"]


@every_config
def test_deadlines_grow_from_the_inside_out(config):
    limits, http = check(config).limits, config["http_options"]
    assert http["request_timeout_s"] > limits.deadline_s, "Serve would answer 408 before our 504"
    for deployment in built(config).values():
        shutdown = deployment.graceful_shutdown_timeout_s
        assert shutdown > limits.deadline_s, "a replica would end before its last answer"
        assert deployment.max_surge_percent == 100, "an update would fail requests"


def test_kubernetes_differs_only_in_what_a_pod_needs():
    file = EVERY_CONFIG["ensemble.yaml"]
    ours, theirs = (copy.deepcopy(application(config)) for config in (file, SERVED))
    assert theirs["args"]["access"].pop("tokens_file") == "/etc/touchstone/tokens"
    assert ours["args"]["access"].pop("tokens_file") is None
    assert theirs["args"]["replica"].pop("labels") == {"workload": "serving"}
    assert theirs == ours
    for key in ("proxy_location", "http_options", "logging_config"):
        assert SERVED[key] == file[key], key


@pytest.mark.parametrize("name", ["ensemble.yaml", "published.yaml"])
def test_overrides_in_comments_can_be_deployed(name):
    """Serve refuses an application whose config speaks of deployments that it does not have."""
    config = yaml.safe_load(
        (ROOT / "configs/serve" / name).read_text().replace("# deployments:", "deployments:")
    )
    check(config)
    (shown,) = application(config)["deployments"]
    assert shown["name"] in built(config)


def test_file_accepts_no_licence():
    with pytest.raises(DetectorError, match="licence is not accepted"):
        plan_ensembles(check(EVERY_CONFIG["published.yaml"]))


def test_kuberay_accepts_service_and_network_policies():
    """The CRD of KubeRay has the schema of Kubernetes' own policies."""
    assert SERVICE["apiVersion"] == "ray.io/v1"
    assert crds.faults("RayService", SERVICE) == []
    broken = json.loads(json.dumps(SERVICE).replace('"emptyDir":', '"emptyDirx":'))
    assert crds.faults("RayService", broken) != []
    for name, rules in (("in", "ingress"), ("out", "egress")):
        spec = MANIFESTS[f"NetworkPolicy touchstone-{name}"]["spec"]
        assert set(spec) == {"podSelector", "policyTypes", rules}
        assert spec["policyTypes"] == [rules.title()]
        place = ("spec", "rayClusterConfig", "networkPolicy", "head", f"{rules}Rules")
        assert crds.faults("RayService", spec[rules], *place) == []


def pods():
    cluster = SERVICE["spec"]["rayClusterConfig"]
    return {
        "head": cluster["headGroupSpec"],
        **{group["groupName"]: group for group in cluster["workerGroupSpecs"]},
    }


@pytest.mark.parametrize("group", pods().values(), ids=pods())
def test_pods_are_confined_and_have_the_variables_of_serve(group):
    spec = group["template"]["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    # Only the autoscaler needs the token of the service account.
    is_head = group is pods()["head"]
    assert spec.get("automountServiceAccountToken") is (None if is_head else False)
    (container,) = spec["containers"]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert {"cpu", "memory"} <= set(container["resources"]["limits"])
    assert container["image"].rsplit(":", 1)[1] not in ("", "latest")
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    mounted = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
    assert mounted["/dev/shm"]["emptyDir"]["medium"] == "Memory"
    assert "secret" in mounted["/etc/touchstone"]
    variables = {one["name"]: one["value"] for one in container["env"]}
    proxy = dict.fromkeys(("RAY_SERVE_ENABLE_HA_PROXY", "RAY_SERVE_ENABLE_DIRECT_INGRESS"), "1")
    assert (SERVE_VARIABLES | proxy).items() <= variables.items()


def test_head_runs_no_task_and_cluster_needs_a_token():
    cluster = SERVICE["spec"]["rayClusterConfig"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert cluster["authOptions"]["mode"] == "token"
    assert cluster["autoscalerOptions"]["version"] == "v2"
    assert [group["labels"] for group in cluster["workerGroupSpecs"]] == [{"workload": "serving"}]
    readiness = cluster["workerGroupSpecs"][0]["template"]["spec"]["containers"][0][
        "readinessProbe"
    ]
    assert "/readyz" in json.dumps(readiness)


def test_policies_select_existing_pods():
    labels = {name: group["template"]["metadata"]["labels"] for name, group in pods().items()}
    selectors = {
        "NetworkPolicy touchstone-in": ("podSelector", {"head", "serving"}),
        "NetworkPolicy touchstone-out": ("podSelector", {"serving"}),
        "PodDisruptionBudget touchstone": ("selector", {"serving"}),
    }
    for manifest, (key, meant) in selectors.items():
        selector = MANIFESTS[manifest]["spec"][key]["matchLabels"]
        assert {
            name for name, found in labels.items() if selector.items() <= found.items()
        } == meant
    assert set(MANIFESTS) == {"RayService touchstone", *selectors}, (
        "Serve and Ray scale; nothing else does"
    )


def test_evicted_pod_has_time_for_its_last_answers():
    spec = pods()["serving"]["template"]["spec"]
    (*_, before) = spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    shutdown = max(deployment.graceful_shutdown_timeout_s for deployment in built(SERVED).values())
    assert spec["terminationGracePeriodSeconds"] > float(before.removeprefix("sleep ")) + shutdown


@pytest.mark.parametrize("path", SERVE_FILES, ids=lambda path: path.name)
def test_serve_command_reads_args_and_log_of_a_file(path):
    config = yaml.safe_load(path.read_text())
    log, place = config["logging_config"], f"{path}: applications.0.args"
    assert read_file(str(path)) == (config["applications"][0]["args"], place, log)
    assert read_file(path.stem)[2] == log
    assert read_file(None)[2] == QUIET
