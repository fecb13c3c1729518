"""The tools that operators use accept the files that Touchstone ships for them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RULES = ROOT / "configs/prometheus/alerts.yaml"
pytestmark = pytest.mark.slow


def run_tool(name, *arguments):
    folders = [str(Path(sys.executable).parent), os.environ["PATH"]]
    program = shutil.which(name, path=os.pathsep.join(folders))
    if program is None:
        pytest.skip(f"{name} is not installed")
    command = [program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_accepts_the_rules():
    run_tool("promtool", "check", "rules", RULES)


def test_alerts_fire_for_the_series_they_are_for(tmp_path):
    rules = yaml.safe_load(RULES.read_text())
    for group in rules["groups"]:
        for rule in group["rules"]:
            del rule["annotations"]  # promtool would compare their text
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules))
    cases = (HERE / "alerts.yaml").read_text().replace("RULES", "rules.yaml")
    (tmp_path / "cases.yaml").write_text(cases)
    run_tool("promtool", "test", "rules", tmp_path / "cases.yaml")


def test_promtool_accepts_the_scrape_jobs(tmp_path):
    jobs = yaml.safe_load((ROOT / "configs/prometheus/scrape.yaml").read_text())
    jobs["rule_files"] = [str(RULES)]
    for job in jobs["scrape_configs"]:
        job.pop("kubernetes_sd_configs", None)  # Debian builds promtool without it.
        if "authorization" in job:
            job["authorization"]["credentials_file"] = str(
                RULES
            )  # promtool requires that it exists.
    (tmp_path / "scrape.yaml").write_text(yaml.safe_dump(jobs))
    run_tool("promtool", "check", "config", tmp_path / "scrape.yaml")


def test_nginx_accepts_the_proxy_configuration(tmp_path):
    run_tool("nginx", "-t", "-p", f"{tmp_path}/", "-c", ROOT / "configs/proxy/nginx.conf")


def test_hadolint_finds_no_fault_in_the_dockerfile():
    # DL3003: `cd` in a step that deletes files. DL3008: Debian deletes old versions, so no pin lasts.
    ignored = ["--ignore", "DL3003", "--ignore", "DL3008"]
    run_tool("hadolint", *ignored, "--failure-threshold", "warning", ROOT / "Dockerfile")
