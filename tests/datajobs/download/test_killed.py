"""Two thousand urls of a web that misbehaves, collected by a process that is killed twice: every
good file once, every bad one with why.
"""

import json
import random
import subprocess
import sys

import pytest
import yaml

from tests.datajobs.download.lists import ROOT, check, config, rows_for, write_list
from tests.make.waiting import kill_family, wait_until

PER_HOST = 4
MIX = {
    "good": 1160, "slow": 100, "moved": 150, "resetonce": 60, "tornonce": 60, "flaky": 40, "busy": 30, "busydate": 20, "misnamed": 40,
    "reset": 40, "gone": 80, "denied": 40, "html": 60, "inside": 20, "torn": 20, "cut": 20, "huge": 10, "endless": 10, "loop": 10,
    "zipped": 10, "empty": 20,
}  # fmt: skip


def rows_of_the_mix(web):
    kinds = [kind for kind, count in MIX.items() for _ in range(count)]
    random.Random(9).shuffle(kinds)
    return rows_for(web, kinds)


def start(meta, out, folder):
    """The command as a user types it, in a process group of its own."""
    settings = config(meta, out, politeness={"per_host": PER_HOST, "contact": "me@example.org"})
    file = folder / "collect.yaml"
    file.write_text(yaml.safe_dump(json.loads(settings.model_dump_json(exclude_defaults=True))))
    pipe = subprocess.PIPE
    command = [sys.executable, "-m", "ray_app.cli", "data", "collect", "--json", "--config", file]
    return subprocess.Popen(
        command, stdout=pipe, stderr=pipe, text=True, cwd=ROOT, start_new_session=True
    )


def files(out):
    folder = out / "images"
    return (
        {path.name for path in folder.iterdir() if not path.name.startswith(".touchstone-")}
        if folder.exists()
        else set()
    )


def killed_at(process, out, count):
    wait_until(lambda: len(files(out)) >= count or process.poll() is not None, 240)
    assert process.poll() is None, process.stderr.read()
    kill_family(process)
    process.communicate()
    return files(out)


def finished(process):
    output, errors = process.communicate(timeout=500)
    assert process.returncode == 0, errors
    return json.loads(output)


def asked_again(web, there):
    """Whether something that lay there was asked for since the last question, or a host more often
    at once than it likes.
    """
    seen = web.told()
    web.forget()
    assert max(seen["most"].values()) <= PER_HOST
    numbers = {int(path.rpartition("/")[2].partition(".")[0]) for path in seen["asked"]}
    return {name for name in there if int(name[:5]) in numbers}


def killed_twice(web, folder):
    rows, out, there = rows_of_the_mix(web), folder / "out", set()
    meta = write_list(folder, rows)
    for part in (0.25, 0.6):
        now = killed_at(start(meta, out, folder), out, int(len(rows) * part))
        assert not asked_again(web, there)
        there = now
    summary = finished(start(meta, out, folder))
    assert not asked_again(web, there)
    check(rows, out)
    assert finished(start(meta, out, folder))["session"]["urls"] == 0
    assert web.told()["asked"] == {}
    print(f"\n{len(rows):,} urls: {summary['ok']:,} images, statuses {summary['statuses']}")
    return summary


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_two_thousand_urls_killed_twice(web, tmp_path):
    assert killed_twice(web, tmp_path)["ok"] == 1660
