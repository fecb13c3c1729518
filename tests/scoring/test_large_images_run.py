"""A run over images of 100 megapixels: two workers, one budget, and what the kernel counts stays under what was printed."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from PIL import Image

from ray_app.runs import RunDirectory
from tests.images import factory
from tests.ray_head import rss_of, title_of
from tests.scoring.conftest import ROOT, family_of

BUDGET = 1_300_000_000  # one progressive image of 100 megapixels at a time, or three plain ones
WIDTH, HEIGHT = 11_600, 8_700
COPIES = {"plain.jpg": 6, "progressive.jpg": 6, "page.tif": 2, "small.jpg": 4}


def write_archive(folder: Path) -> None:
    """As cameras make them, 100 megapixels in several formats, among ordinary ones."""
    folder.mkdir()
    large = factory.photo(WIDTH // 20, HEIGHT // 20).resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR)
    made = {
        "plain.jpg": factory.encoded(large, "JPEG", quality=85),
        "progressive.jpg": factory.encoded(large, "JPEG", quality=85, progressive=True, subsampling=0),
        "page.tif": factory.encoded(large.convert("1"), "TIFF", compression="group4"),
        "small.jpg": factory.encoded(factory.photo(1600, 1200), "JPEG"),
    }
    for name, data in made.items():
        for number in range(COPIES[name]):
            (folder / f"{number:02}-{name}").write_bytes(data)


def worker_bytes(root: int) -> list[int]:
    """Resident memory of each process that Ray runs for a command to score with."""
    found = []
    for pid in family_of(root)[1:]:
        try:
            if title_of(pid).startswith("ray::FusedPipeline"):
                found.append(rss_of(pid))
        except OSError:
            continue
    return found


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel for its count")
def test_workers_stay_under_the_budget_that_is_printed(tmp_path):
    write_archive(tmp_path / "archive")
    settings = {"cluster.cpus": 2, "cluster.workers": 2, "cluster.decode_bytes": BUDGET, "block_members": 4, "thumbnails": "false"}
    command = [sys.executable, "-c", "from ray_app.cli.main import script; script()", "score", str(tmp_path / "archive")]
    command += [
        "--ensemble",
        "tiny",
        "--out",
        str(tmp_path / "run"),
        "--json",
        *(f"--set={key}={value}" for key, value in settings.items()),
    ]
    seen, ended = [[]], threading.Event()
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}) as process:

        def watch() -> None:
            while not ended.wait(0.05):
                seen.append(worker_bytes(process.pid))

        watching = threading.Thread(target=watch)
        watching.start()
        told, _ = process.communicate()
        ended.set()
        watching.join()
    assert process.returncode == 0
    summary = json.loads(told)
    assert summary["statuses"] == {"ok": sum(COPIES.values())}
    memory = summary["session"]["memory"]
    assert (memory["processes"], memory["decode_bytes"]) == (2, BUDGET)
    assert summary["session"]["seconds"]["wait"] > 0, "two progressive ones at a time do not fit"
    assert max(map(len, seen)) == 2
    assert max(map(sum, seen)) <= memory["processes"] * memory["process_bytes"] + memory["decode_bytes"]
    rows = [row for table in RunDirectory.open(str(tmp_path / "run")).tables(0) for row in table.to_pylist()]
    for name in COPIES:
        assert len({row["score"] for row in rows if row["uri"].endswith(name)}) == 1, name
