"""Serve's HAProxy: statistics on loopback, files in the run's own folder, an end with the process that started it."""

import os
import subprocess
import sys

import pytest
from ray.serve._private.haproxy_templates import HAPROXY_CONFIG_TEMPLATE

from ray_app.serving.haproxy import haproxy_variables, with_closed_statistics
from tests.ray_head import title_of
from tests.scoring.conftest import wait_until

WRITTEN = HAPROXY_CONFIG_TEMPLATE.replace("{{ config.metrics_port }}", "9101").replace("{{ config.stats_port }}", "8404")
STARTING = "import subprocess, sys; started = subprocess.Popen(sys.argv[1:]); print(started.pid, flush=True); started.wait()"


def test_what_serve_has_open_is_closed():
    lines = set(with_closed_statistics(WRITTEN).splitlines()) - set(WRITTEN.splitlines())
    assert lines == {"    bind 127.0.0.1:9101", "  bind 127.0.0.1:8404"}
    assert with_closed_statistics(with_closed_statistics(WRITTEN)) == with_closed_statistics(WRITTEN)


def test_a_configuration_of_another_form_is_not_taken():
    with pytest.raises(ValueError, match="open to everybody"):
        with_closed_statistics(WRITTEN.replace("listen stats", "listen statistics"))


def test_it_ends_with_the_process_that_started_it(monkeypatch, tmp_path):
    binary, configuration = tmp_path / "binary", tmp_path / "haproxy.cfg"
    binary.write_text("#!/bin/sh\nexec sleep 120\n")
    binary.chmod(0o700)
    configuration.write_text(WRITTEN)
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "1")
    monkeypatch.setenv("RAY_SERVE_HAPROXY_BINARY_PATH", str(binary))
    variables = haproxy_variables(tmp_path, on_loopback=False)
    command = [sys.executable, "-c", STARTING, variables["RAY_SERVE_HAPROXY_BINARY_PATH"], "-db", "-f", str(configuration)]
    starting = subprocess.Popen(command, env=os.environ | variables, stdout=subprocess.PIPE, text=True)
    pid = int(starting.stdout.readline())
    try:
        wait_until(lambda: title_of(pid) == "sleep 120", 30)
        assert configuration.read_text() == with_closed_statistics(WRITTEN)
    finally:
        starting.kill()
        starting.wait()
    wait_until(lambda: title_of(pid) == "", 30)
    starting.stdout.close()
