"""What a run tells while it goes: counters on its cluster's metrics page, and what bounds it, in
the progress line.
"""

import json
import os
import subprocess
import sys

import pytest
from prometheus_client.parser import text_string_to_metric_families

from ray_app.archives import BlockRef
from ray_app.inference import STAGES
from ray_app.scoring.layout import ScoringLayout
from ray_app.scoring.run_metrics import _STAGE_WORDS, RunMeter, name_of
from ray_app.scoring.session import Tally
from ray_app.scoring.stages import BlockReport, BlockWork
from tests.simulation.archive import build_sample_archive

FUSED = ScoringLayout("fused", (2,), 0, 64)
SPLIT = ScoringLayout("split", (4,), 16, 512, scorer_gpus=1.0)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def report_on(members=64, bad=0, **seconds):
    ref = BlockRef(0, 0, members, 1000 * members, "", 0)
    return BlockReport(ref, bad, BlockWork(seconds, {"bytes_read": 1000 * members}))


def bound_after(layout, *, driver=0.0, listing=False, **seconds):
    """What is said when blocks that took so many seconds, by stage, were committed in a minute
    after the first.
    """
    clock, cpu = Clock(), Clock()
    tally = Tally()
    meter = RunMeter("run", tally, 100, layout, exported=False, clock=clock, cpu=cpu)
    meter.grow(0, goes_on=listing)
    clock.now = 100.0  # start-up
    tally.add(report_on(decode=50.0, score=50.0), 64)
    meter.export()
    for _ in range(10):
        clock.now += 6.0
        cpu.now += driver * 6.0
        tally.add(report_on(**{stage: spent / 10 for stage, spent in seconds.items()}), 64)
    return meter.bound()


BOUND = [
    (
        SPLIT,
        {"decode": 864, "fetch": 96, "score": 120},
        "bound by decoding: 16 decoders 100% busy, 90% of that decoding",
    ),
    (
        FUSED,
        {"fetch": 10, "decode": 24, "score": 72, "write": 6},
        "bound by scoring: 2 workers 93% busy, 64% of that scoring",
    ),
    (SPLIT, {"decode": 96, "score": 12}, "no bottleneck seen"),
    (SPLIT, {"driver": 0.93, "decode": 96, "score": 12}, "bound by the driver: 93% of one core"),
    (SPLIT, {"listing": True, "decode": 96}, "bound by listing: 16 decoders 10% busy"),
    (SPLIT, {"driver": 0.93, "decode": 960}, "bound by decoding"),
]


def test_busiest_processes_are_the_bottleneck():
    for layout, facts, expected in BOUND:
        assert bound_after(layout, **facts).startswith(expected)


def test_label_has_only_the_last_name_of_a_run():
    assert name_of("s3://secret-bucket/team/night") == "night"
    assert name_of("https://store/x/run?signature=abc/def") == "run"
    assert name_of("s3://") == "run"
    assert len(name_of("/" + 300 * "a")) == 100
    assert set(_STAGE_WORDS) == set(STAGES)


# Two runs on a cluster that is named, as a job's is; the process that asks for the page is their
# driver.
RUNS = """
import json, os, sys, time, urllib.request, ray
from pathlib import Path
ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=100 * 2**20, log_to_driver=False, logging_level="ERROR")
os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
from ray_app.scoring import ScoreConfig
from ray_app.scoring.run import score_archive
folder, sessions = Path(sys.argv[1]), {}
for name, limit in (("evening", 5), ("night", None)):
    small = {"ensemble": "tiny", "block_members": 4, "batch_slots": 4, "limit": limit}
    sessions[name] = score_archive(ScoreConfig(source=(str(folder / "archive"),), out=str(folder / name), **small)).summary["session"]
[node] = ray.nodes()
wanted = [f'run="{name}"}} {float(session["rows"])}' for name, session in sessions.items()]
page, told, until = "", {}, time.monotonic() + 60
while not all(one in page for one in wanted) and time.monotonic() < until:
    time.sleep(0.5)
    page = urllib.request.urlopen(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics").read().decode()
    # The last value of each: a gauge that nobody sets any more is on one page, and on no later one.
    told |= {line.rpartition(" ")[0]: line for line in page.splitlines() if line.startswith("ray_touchstone_run_")}
print(json.dumps([sessions, list(told.values())]))
"""


@pytest.mark.slow
@pytest.mark.ray
def test_metrics_page_of_the_cluster_equals_the_summary(tmp_path):
    build_sample_archive(tmp_path / "archive", files=9)
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, "-c", RUNS, str(tmp_path)]
    options = {"capture_output": True, "text": True, "timeout": 200, "env": environment}
    done = subprocess.run(command, **options)
    assert done.returncode == 0, done.stderr
    sessions, lines = json.loads(done.stdout.splitlines()[-1])
    found = {}
    for family in text_string_to_metric_families("\n".join(lines)):
        for sample in family.samples:
            name = sample.name.removeprefix("ray_touchstone_run_")
            found[sample.labels["run"], name, sample.labels.get("stage")] = sample.value
    assert {run for run, _, _ in found} == set(sessions)
    for run, session in sessions.items():
        assert found[run, "images_total", None] == session["rows"] >= 5
        assert found[run, "bytes_total", None] == session["bytes_read"]
        assert found[run, "blocks_behind", None] == 0
        stages = {key[2] for key in found if key[:2] == (run, "stage_seconds_total")}
        assert {"decode", "score", "write"} <= stages
        for stage in stages:
            seconds = found[run, "stage_seconds_total", stage]
            assert seconds == pytest.approx(session["seconds"][stage], abs=1e-3)
