"""The Serve application: which deployments there are, what each takes, how they are bound. `serve deploy` calls `build`."""

from collections.abc import Callable
from typing import Any

from ray import serve
from ray.serve import Application

from ray_app.scoring.cluster import WORKER_ENVIRONMENT
from ray_app.serving.config import Resources, ServeConfig
from ray_app.serving.deployments import Detectors, Ingress, Jobs
from ray_app.serving.generation import groups_of, plan_generation

NAME = "touchstone"
JOBS = Resources(num_cpus=0.1)
SHUTDOWN_MARGIN_S = 10.0  # a replica that ends has time for the longest request that it took


def build(config: ServeConfig) -> Application:
    """The application of one config, for `serve deploy`: its secrets stand in the environment of the cluster's nodes, or in files."""
    return application(config)


def application(config: ServeConfig, webhook_key: str | None = None) -> Application:
    """The application of one config; `webhook_key` signs webhooks where no replica inherits the variable that holds it.

    Raises ConfigError and DetectorError for what can be known before weights are loaded.
    """
    spec, _, _ = plan_generation(config)
    slots, most = spec.slots, config.limits.max_requests
    groups = {
        name: _deployment(
            Detectors,
            name=name,
            user_config={"generation": config.generation},
            max_ongoing_requests=max(4 * slots, 16),
            max_queued_requests=most * config.limits.max_files,
            **_replicas(config.groups.get(name, config.detectors), config, load=2 * slots),
        ).bind(name, config, list(groups_of(spec)))
        for name in groups_of(spec)
    }
    jobs = _deployment(
        Jobs, name="jobs", max_ongoing_requests=1000, **_replicas(JOBS.model_copy(update={"labels": config.ingress.labels}), config)
    ).bind(config, groups, webhook_key)
    # The ingress refuses by itself, in its own words, before the proxy would.
    ingress = _deployment(
        serve.ingress()(Ingress), name="ingress", max_ongoing_requests=4 * most + 100, **_replicas(config.ingress, config, load=most / 2)
    )
    return ingress.bind(config, groups, jobs)


def _deployment(kind: Callable[..., Any], **options: Any) -> serve.Deployment:
    made: serve.Deployment = serve.deployment(kind).options(**options)  # type: ignore[attr-defined]
    return made


def _replicas(resources: Resources, config: ServeConfig, load: float = 1.0) -> dict[str, Any]:
    """Deployment options; `load` is how many requests at a time one replica should have before another is started."""
    actor: dict[str, Any] = {
        "num_cpus": resources.num_cpus,
        "num_gpus": resources.num_gpus,
        "runtime_env": {"env_vars": WORKER_ENVIRONMENT},
    }
    if resources.memory_bytes:
        actor["memory"] = resources.memory_bytes
    if resources.labels:
        actor["label_selector"] = dict(resources.labels)
    many: dict[str, Any] = {"num_replicas": resources.replicas}
    if resources.max_replicas:
        scaling = {"min_replicas": resources.replicas, "max_replicas": resources.max_replicas, "target_ongoing_requests": load}
        many = {"autoscaling_config": scaling}
    # New replicas are up before old ones stop: an update fails no request.
    ends = config.limits.deadline_s + SHUTDOWN_MARGIN_S
    return {"ray_actor_options": actor, "max_surge_percent": 100, "graceful_shutdown_timeout_s": ends, **many}
