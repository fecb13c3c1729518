"""/metrics: one page for all replicas, with nothing of the cluster in it."""

import asyncio
import importlib.util
import json
import re
import shutil
import socket
import subprocess
from pathlib import Path

import aiohttp
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from ray_app.scoring import run_metrics
from ray_app.serving.metrics import COUNTERS, GAUGES, HISTOGRAMS
from ray_app.serving.ray_metrics import LABELS, UNREACHABLE, _agent_address, _agent_page, merged

ROOT = Path(__file__).resolve().parents[2]
ALERTS = ROOT / "configs/prometheus/alerts.yaml"
RULES = [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]
BOARDS = {path.name: json.loads(path.read_text()) for path in sorted((ROOT / "configs/grafana").glob("*.json"))}
QUERIES = [target["expr"] for board in BOARDS.values() for panel in board["panels"] for target in panel["targets"]]
QUERIES += [rule["expr"] for rule in RULES]
PROMTOOL = shutil.which("promtool")

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


def test_an_agent_may_have_an_ipv6_address():
    assert _agent_address("fd00::7", 8080) == "http://[fd00::7]:8080/metrics"


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


# Series of a quiet day (`0+6x1500` = from 0, 6 more each minute), and what each alert needs to fire.
QUIET = {
    'ray_touchstone_requests_total{route="/v1/score",status="200"}': "0+600x1500",
    'ray_touchstone_request_seconds_bucket{route="/v1/score",le="0.1"}': "0+600x1500",
    'ray_touchstone_request_seconds_bucket{route="/v1/score",le="+Inf"}': "0+600x1500",
    'ray_touchstone_verdicts_total{ensemble="default",verdict="fake"}': "0+100x1500",
    'ray_touchstone_verdicts_total{ensemble="default",verdict="real"}': "0+500x1500",
    'ray_serve_deployment_queued_queries{deployment="detectors"}': "2x1500",
    "touchstone_metrics_nodes_unreachable": "0x1500",
    'up{job="touchstone"}': "1x1500",
    'ray_touchstone_run_blocks_behind{job="touchstone-runs",run="night"}': "3000-2x1500",
    'ray_touchstone_run_images_total{job="touchstone-runs",run="night"}': "0+1024x1500",
    'ray_touchstone_run_bad_total{job="touchstone-runs",run="night"}': "0+1x1500",
    'ray_touchstone_run_blocks_behind{job="touchstone-runs",run="over"}': "0x1500",
}
TROUBLE = {
    "TouchstoneFaults": {'ray_touchstone_requests_total{route="/v1/score",status="500"}': "0+60x1500"},
    "TouchstoneNearDeadline": {
        'ray_touchstone_request_seconds_bucket{route="/v1/score",le="20"}': "0+600x1500",
        'ray_touchstone_request_seconds_bucket{route="/v1/score",le="30"}': "0+660x1500",
        'ray_touchstone_request_seconds_bucket{route="/v1/score",le="+Inf"}': "0+660x1500",
    },
    "TouchstoneOverloaded": {'ray_touchstone_requests_total{route="/v1/score",status="503"}': "0+60x1500"},
    "TouchstoneNotReady": {'up{job="touchstone"}': "1x1480 0x20"},
    "TouchstoneVerdictsShift": {'ray_touchstone_verdicts_total{ensemble="default",verdict="fake"}': "0+100x1380 138000+900x120"},
    "TouchstoneQueueGrows": {'ray_serve_deployment_queued_queries{deployment="detectors"}': "0+2x1500"},
    "TouchstoneMetricsIncomplete": {"touchstone_metrics_nodes_unreachable": "1x1500"},
    "TouchstoneRunStandsStill": {'ray_touchstone_run_blocks_behind{job="touchstone-runs",run="begun"}': "12x1500"},
    "TouchstoneRunReadsBadly": {'ray_touchstone_run_bad_total{job="touchstone-runs",run="night"}': "0+512x1500"},
}


@pytest.mark.slow
@pytest.mark.skipif(PROMTOOL is None, reason="no promtool: apt-get install prometheus")
def test_alerts_fire_for_their_trouble_and_on_no_quiet_day(tmp_path):
    assert set(TROUBLE) == {rule["alert"] for rule in RULES}
    tests = []
    for trouble in ("", *TROUBLE):
        series = [{"series": name, "values": values} for name, values in {**QUIET, **TROUBLE.get(trouble, {})}.items()]
        firing = [{"labels": f'{{alertname="{trouble}"}}', "value": 1}] if trouble else []
        asked = {"expr": 'count by (alertname) (ALERTS{alertstate="firing"})', "eval_time": "1495m", "exp_samples": firing}
        tests.append({"interval": "1m", "input_series": series, "promql_expr_test": [asked]})
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump({"rule_files": [str(ALERTS)], "evaluation_interval": "1m", "tests": tests}))
    done = subprocess.run([PROMTOOL, "test", "rules", str(tmp_path / "tests.yaml")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
