import os
import subprocess
import sys
import time

import pytest

from benchmarks.processor import OWN, ProcessorTimes, kind_of, seconds_per_image

RAY = "/venv/lib/python3.11/site-packages/ray"
BUSY = "import sys\nwhile __import__('time').process_time() < 0.3: pass\nprint('busy', flush=True)\nsys.stdin.read()"


@pytest.mark.parametrize(
    ("command_line", "kind"),
    [
        (f"{RAY}/core/src/ray/gcs/gcs_server --log_dir=/tmp", "gcs"),
        (f"{RAY}/core/src/ray/raylet/raylet --dashboard_agent_command=python {RAY}/dashboard/agent.py --gcs", "raylet"),
        (f"python -u {RAY}/dashboard/agent.py --node-ip-address=127.0.0.1", "agents"),
        ("ray::RuntimeEnvAgent", "agents"),
        (f"python -u {RAY}/_private/log_monitor.py --session-dir=/tmp", "log monitor"),
        (f"python -u {RAY}/autoscaler/_private/monitor.py", "autoscaler"),
        ("ray::IDLE", "idle workers"),
        ("ray::FusedPipeline", OWN),
        ("/venv/bin/python /venv/bin/touchstone score /archive --out /runs/1", OWN),
        ("", OWN),
    ],
)
def test_a_process_is_named_by_its_command_line(command_line, kind):
    assert kind_of(command_line) == kind


def test_only_the_window_counts():
    """Two seconds a second while it starts and ends, 1.5 between: 10 images a second."""
    finished = [(100.0 + second, 10 * second) for second in range(101)]
    samples, taken = [], 0.0
    for half in range(400):
        samples.append((50.0 + half / 2, {OWN: taken, "gcs": half * 0.01}))
        taken += 0.75 if 110 <= 50.0 + half / 2 < 195 else 1.0
    found = seconds_per_image(samples, finished, 1000, (0.15, 0.9))
    assert found == {OWN: pytest.approx(0.15), "gcs": pytest.approx(0.002)}


def test_what_a_process_took_stays_counted_once_it_has_ended():
    times = ProcessorTimes()
    with subprocess.Popen([sys.executable, "-c", BUSY], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        times.note(time.time(), [process.pid])
        process.communicate()
    times.note(time.time(), [process.pid, os.getpid()])
    (_, alive), (_, after) = times.samples
    assert alive[OWN] >= 0.25
    assert after[OWN] >= alive[OWN]
