"""A run over many images of 100 megapixels: two workers, one budget, and what the kernel counts stays under what was printed."""

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
from tests.scoring.conftest import ROOT, family_of

GB = 10**9
BUDGET = 1_300_000_000  # one progressive image of 100 megapixels at a time, or three plain ones
WIDTH, HEIGHT = 11_600, 8_700


def write_archive(folder: Path) -> int:
    """As cameras make them, 100 megapixels in several formats, among ordinary ones; how many there are."""
    folder.mkdir()
    large = factory.photo(WIDTH // 20, HEIGHT // 20).resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR)
    made = {
        "plain.jpg": factory.encoded(large, "JPEG", quality=85),
        "progressive.jpg": factory.encoded(large, "JPEG", quality=85, progressive=True, subsampling=0),
        "page.tif": factory.encoded(large.convert("1"), "TIFF", compression="group4"),
        "small.jpg": factory.encoded(factory.photo(1600, 1200), "JPEG"),
    }
    copies = {"plain.jpg": 12, "progressive.jpg": 12, "page.tif": 4, "small.jpg": 12}
    for name, data in made.items():
        for number in range(copies[name]):
            (folder / f"{number:02}-{name}").write_bytes(data)
    return sum(copies.values())


def workers_bytes(root: int) -> int:
    """Resident memory of the workers that Ray runs for a command."""
    total = 0
    for pid in family_of(root)[1:]:
        try:
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::MapWorker"):
                total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except OSError:
            continue
    return total


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(1800)
@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel for its count")
def test_workers_stay_under_the_budget_that_is_printed(tmp_path):
    count = write_archive(tmp_path / "archive")
    settings = {"cluster.cpus": 2, "cluster.workers": 2, "cluster.decode_bytes": BUDGET, "block_members": 4}
    command = [sys.executable, "-c", "from ray_app.cli.main import script; script()", "score", str(tmp_path / "archive")]
    command += [
        "--ensemble",
        "tiny",
        "--out",
        str(tmp_path / "run"),
        "--json",
        *(f"--set={key}={value}" for key, value in settings.items()),
    ]
    peak, ended = 0, threading.Event()
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}) as process:

        def watch() -> None:
            nonlocal peak
            while not ended.wait(0.05):
                peak = max(peak, workers_bytes(process.pid))

        watching = threading.Thread(target=watch)
        watching.start()
        told, _ = process.communicate()
        ended.set()
        watching.join()
    assert process.returncode == 0
    summary = json.loads(told)
    assert summary["statuses"] == {"ok": count}
    memory = summary["session"]["memory"]
    assert (memory["processes"], memory["decode_bytes"]) == (2, BUDGET)
    assert summary["session"]["seconds"]["wait"] > 0, "two progressive ones at a time do not fit"
    print(
        f"workers took {peak / GB:.2f} GB together at most, of {memory['total_bytes'] / GB:.2f} GB printed; {summary['session']['seconds']}"
    )
    assert BUDGET < peak <= memory["processes"] * memory["process_bytes"] + memory["decode_bytes"]
    rows = [row for table in RunDirectory.open(str(tmp_path / "run")).tables(0) for row in table.to_pylist()]
    for kind in ("plain", "progressive", "page", "small"):
        assert len({row["score"] for row in rows if kind in row["uri"]}) == 1, kind
