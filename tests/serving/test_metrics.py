"""/metrics: one page for all replicas, with nothing of the cluster in it."""

import asyncio
import importlib.util
import json
import re
import socket
from pathlib import Path

import aiohttp
import yaml
from prometheus_client.parser import text_string_to_metric_families

from ray_app.scoring import run_metrics
from ray_app.serving.app import LABELS, UNREACHABLE, _agent_page, merged
from ray_app.serving.metrics import COUNTERS, GAUGES, HISTOGRAMS

ROOT = Path(__file__).resolve().parents[2]
RULES = [rule for group in yaml.safe_load((ROOT / "configs/prometheus/alerts.yaml").read_text())["groups"] for rule in group["rules"]]
BOARDS = {path.name: json.loads(path.read_text()) for path in sorted((ROOT / "configs/grafana").glob("*.json"))}
QUERIES = [target["expr"] for board in BOARDS.values() for panel in board["panels"] for target in panel["targets"]]
QUERIES += [rule["expr"] for rule in RULES]

# As Ray 2.60 writes it; addresses and ids shortened.
SYSTEM = 'Component="core_worker",NodeAddress="{node}",SessionName="session_2026-01-02_03-04-05_1_2",Version="2.60.0",WorkerId="{worker}",'
PAGE = """\
# HELP python_gc_objects_collected_total Objects collected during gc
# TYPE python_gc_objects_collected_total counter
python_gc_objects_collected_total{{generation="0"}} 1.0
# HELP ray_touchstone_requests_total requests answered
# TYPE ray_touchstone_requests_total counter
ray_touchstone_requests_total{{{a}route="/v1/score",status="200"}} 3.0
ray_touchstone_requests_total{{{b}route="/v1/score",status="200"}} 4.0
ray_touchstone_requests_total{{{b}route="/v1/score",status="503"}} 1.0
# HELP ray_touchstone_stage_seconds seconds
# TYPE ray_touchstone_stage_seconds histogram
ray_touchstone_stage_seconds_bucket{{{a}le="0.1",stage="wait"}} 2.0
ray_touchstone_stage_seconds_bucket{{{a}le="+Inf",stage="wait"}} 3.0
ray_touchstone_stage_seconds_count{{{a}stage="wait"}} 3.0
ray_touchstone_stage_seconds_sum{{{a}stage="wait"}} 0.5
# HELP ray_touchstone_images_in_flight images
# TYPE ray_touchstone_images_in_flight gauge
ray_touchstone_images_in_flight{{{a}}} 5.0
# HELP ray_serve_replica_utilization_percent busy
# TYPE ray_serve_replica_utilization_percent gauge
ray_serve_replica_utilization_percent{{{a}deployment="ingress"}} 60.0
ray_serve_replica_utilization_percent{{{b}deployment="ingress"}} 80.0
# HELP ray_node_cpu_count CPUs
# TYPE ray_node_cpu_count gauge
ray_node_cpu_count{{NodeAddress="{node}"}} 2.0
# HELP ray_touchstone_run_images_total files that have a row
# TYPE ray_touchstone_run_images_total counter
ray_touchstone_run_images_total{{{a}run="secret-night"}} 5.0
"""


def page(node: str) -> str:
    a, b = (SYSTEM.format(node=node, worker=f"{node}-{name}") for name in "ab")
    return PAGE.format(a=a, b=b, node=node)


def samples(text: str) -> dict[tuple[str, frozenset], float]:
    return {(s.name, frozenset(s.labels.items())): s.value for family in text_string_to_metric_families(text) for s in family.samples}


def test_replicas_of_all_nodes_are_added_up_in_one_family_each():
    text = merged([page("192.0.2.7"), page("192.0.2.8")])
    found = samples(text)
    served = {"route": "/v1/score"}
    assert found["ray_touchstone_requests_total", frozenset({**served, "status": "200"}.items())] == 14
    assert found["ray_touchstone_requests_total", frozenset({**served, "status": "503"}.items())] == 2
    assert found["ray_touchstone_stage_seconds_bucket", frozenset({"le": "0.1", "stage": "wait"}.items())] == 4
    assert found["ray_touchstone_stage_seconds_count", frozenset({"stage": "wait"}.items())] == 6
    assert found["ray_touchstone_images_in_flight", frozenset()] == 10
    assert text.count("# TYPE ray_touchstone_requests_total counter") == text.count("# TYPE ray_touchstone_stage_seconds histogram") == 1


def test_percentages_of_serve_are_not_added_up_and_nothing_tells_of_the_cluster_or_of_ray():
    text = merged([page("192.0.2.7")])
    found = {value for (name, _), value in samples(text).items() if name == "ray_serve_replica_utilization_percent"}
    assert found == {60, 80}
    assert not re.search(r"192\.0\.2|session_|WorkerId|Version|Component|ray_node|python_gc|touchstone_run|night", text)


def test_a_cluster_that_has_counted_nothing_has_a_page():
    assert samples(merged([], unreachable=2)) == {("touchstone_metrics_nodes_unreachable", frozenset()): 2}


def test_a_node_that_does_not_answer_is_no_error():
    listener = socket.socket()  # bound, and nobody listens
    listener.bind(("127.0.0.1", 0))

    async def ask():
        async with aiohttp.ClientSession() as session:
            return await _agent_page(session, f"http://127.0.0.1:{listener.getsockname()[1]}/metrics")

    with listener:
        assert asyncio.run(ask()) is None


def exported() -> set[str]:
    """Every series name of ours, and of Serve by its own source."""
    ours = (
        {f"{name}_total" for name in COUNTERS | run_metrics.COUNTERS}
        | {f"{name}_{part}" for name in HISTOGRAMS for part in ("bucket", "sum", "count")}
        | set(GAUGES | run_metrics.GAUGES)
    )
    serve = Path(importlib.util.find_spec("ray").origin).parent / "serve"
    sources = "".join(path.read_text() for path in serve.glob("_private/*.py"))
    return {f"ray_touchstone_{name}" for name in ours} | {f"ray_{name}" for name in re.findall(r'"(serve_\w+)"', sources)} | {UNREACHABLE}


def test_dashboards_and_alerts_ask_for_what_there_is():
    asked = set(re.findall(r"\b(?:ray_|touchstone_)\w+", " ".join(QUERIES)))
    assert asked <= exported()
    counted = COUNTERS | HISTOGRAMS | GAUGES | run_metrics.COUNTERS | run_metrics.GAUGES
    own = {
        name for name in counted if any(re.search(rf"\bray_touchstone_{name}(_total|_bucket|_sum|_count|\b)", query) for query in QUERIES)
    }
    assert own == set(counted), "counted, and shown nowhere"


def test_labels_in_queries_are_labels_of_the_series():
    named = {label for query in QUERIES for label in re.findall(r'(\w+)\s*(?:=~|!~|!=|=)"', query)}
    grouped = {label.strip() for query in QUERIES for group in re.findall(r"\b(?:by|on) \(([^)]*)\)", query) for label in group.split(",")}
    of_runs = {label for _, labels in (run_metrics.COUNTERS | run_metrics.GAUGES).values() for label in labels}
    assert (named | grouped) - {"job"} <= LABELS | of_runs
    assert of_runs - LABELS == {"run"}
    assert all("run_" in query for query in QUERIES if re.search(r"\brun\b", query)), "the endpoint's page has no run"


def test_prometheus_scrapes_one_address_with_a_token_from_a_file():
    job, runs = yaml.safe_load((ROOT / "configs/prometheus/scrape.yaml").read_text())["scrape_configs"]
    assert job["authorization"] == {"type": "Bearer", "credentials_file": "/etc/prometheus/touchstone-token"}
    assert len(job["static_configs"][0]["targets"]) == 1
    assert f'up{{job="{job["job_name"]}"}}' in " ".join(QUERIES)
    (kept,) = runs["metric_relabel_configs"]
    assert all(re.fullmatch(kept["regex"], f"ray_touchstone_{name}") for name in run_metrics.COUNTERS | run_metrics.GAUGES)
