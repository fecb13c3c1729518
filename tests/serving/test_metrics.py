"""Dashboards, alerts, and scrape jobs use the metrics that the endpoint and runs have."""

import importlib.util
import json
import re
from pathlib import Path

import yaml

from ray_app.scoring import run_metrics
from ray_app.serving.metrics import COUNTERS, GAUGES, HISTOGRAMS

ROOT = Path(__file__).resolve().parents[2]
RULES = [
    rule
    for group in yaml.safe_load((ROOT / "configs/prometheus/alerts.yaml").read_text())["groups"]
    for rule in group["rules"]
]
BOARDS = {
    path.name: json.loads(path.read_text())
    for path in sorted((ROOT / "configs/grafana").glob("*.json"))
}
QUERIES = [
    target["expr"]
    for board in BOARDS.values()
    for panel in board["panels"]
    for target in panel["targets"]
]
QUERIES += [rule["expr"] for rule in RULES]


COUNTED = COUNTERS | HISTOGRAMS | GAUGES | run_metrics.COUNTERS | run_metrics.GAUGES


def exported() -> set[str]:
    """Every series name of ours, and of Serve by its own source."""
    ours = {f"{name}_total" for name in COUNTERS | run_metrics.COUNTERS}
    ours |= {f"{name}_{part}" for name in HISTOGRAMS for part in ("bucket", "sum", "count")}
    ours |= set(GAUGES | run_metrics.GAUGES)
    serve = Path(importlib.util.find_spec("ray").origin).parent / "serve"
    sources = "".join(path.read_text() for path in serve.glob("_private/*.py"))
    names = set(re.findall(r'"(serve_\w+)"', sources))
    return {f"ray_touchstone_{name}" for name in ours} | {f"ray_{name}" for name in names}


def test_dashboards_and_alerts_use_existing_series():
    asked = set(re.findall(r"\b(?:ray_|touchstone_)\w+", " ".join(QUERIES)))
    assert asked <= exported()
    queries = " ".join(QUERIES)
    suffix = r"(_total|_bucket|_sum|_count|\b)"
    hidden = [
        name for name in COUNTED if not re.search(rf"\bray_touchstone_{name}{suffix}", queries)
    ]
    assert hidden == [], "these series are counted but not shown"


def test_labels_in_queries_are_labels_of_the_series():
    named = {label for query in QUERIES for label in re.findall(r'(\w+)\s*(?:=~|!~|!=|=)"', query)}
    grouped = {
        label.strip()
        for query in QUERIES
        for group in re.findall(r"\b(?:by|on) \(([^)]*)\)", query)
        for label in group.split(",")
    }
    of_endpoint = {label for _, labels, *_ in (COUNTERS | HISTOGRAMS).values() for label in labels}
    of_runs = {
        label
        for _, labels in (run_metrics.COUNTERS | run_metrics.GAUGES).values()
        for label in labels
    }
    assert (named | grouped) - {"job", "le", "deployment"} <= of_endpoint | of_runs
    assert of_runs - of_endpoint == {"run"}
    assert all("run_" in query for query in QUERIES if re.search(r"\brun\b", query)), (
        "the endpoint's page has no run"
    )


def test_scrape_jobs_find_the_endpoint_the_nodes_and_the_runs():
    server, nodes, runs = yaml.safe_load((ROOT / "configs/prometheus/scrape.yaml").read_text())[
        "scrape_configs"
    ]
    assert server["authorization"] == {
        "type": "Bearer",
        "credentials_file": "/etc/prometheus/touchstone-token",
    }
    assert len(server["static_configs"][0]["targets"]) == 1
    assert nodes["file_sd_configs"] == [{"files": ["/tmp/ray/prom_metrics_service_discovery.json"]}]
    pattern = re.search(r'up\{job=~"([^"]+)"\}', " ".join(QUERIES))[1]
    assert all(re.fullmatch(pattern, job["job_name"]) for job in (server, nodes))
    endpoint = [f"ray_touchstone_{name}" for name in COUNTERS | HISTOGRAMS | GAUGES]
    assert all(
        re.fullmatch(nodes["metric_relabel_configs"][0]["regex"], name)
        for name in [*endpoint, "ray_serve_num_http_requests"]
    )
    (kept,) = runs["metric_relabel_configs"]
    assert all(
        re.fullmatch(kept["regex"], f"ray_touchstone_{name}")
        for name in run_metrics.COUNTERS | run_metrics.GAUGES
    )
