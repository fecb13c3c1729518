"""Does a run hold many members? Tiny images in Parquet shards, a null detector, and what the driver
itself takes of time and memory.

    python -m benchmarks.scale --members 100000 1000000 [--kill] --json scale.json

Every size is scored by `touchstone score` as a process of its own, and once more when it is
finished. With `--kill`, another run of it gets SIGKILL when half of its rows are there, and the
same command goes on: no row is lost or doubled. The images are distinct BMP files of 8 × 8 pixels;
the detector takes the mean of their pixels, so that what is left is listing, fetching, decoding,
rows, commits, compaction, the check that nothing is lost, and the summary. The driver's memory is
its own peak (VmHWM), without its children.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml

from benchmarks.machine import machine
from benchmarks.seeded import write_weights

ROOT = Path(__file__).resolve().parents[1]
SHARD_MEMBERS, ROW_GROUP = 20_000, 1_000
SIDE = 8
# of the driver, from the smallest size to the largest, and in all
MOST_GROWTH, MOST_BYTES = 1.2, 2**30

FAMILY = """
import torch

class Null(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.offset = torch.nn.Parameter(torch.zeros(1))

    def forward(self, pixels):
        return pixels.float().mean(dim=(1, 2, 3)).reshape(-1, 1) + self.offset

def build(card):
    return Null()
"""
CARD = {
    "name": "null",
    "title": "The mean of the pixels: a detector that takes no time",
    "family": "touchstone-benchmark-null",
    "preprocessing": {"resize": {"mode": "squash", "size": SIDE}},
    "weights": {"uri": "null.safetensors", "unverified": "written by this benchmark"},
    "output": {"sign": 1},
    "licence": "MIT",
    "citation": "none",
    "source": "this benchmark",
    "training_data": {"name": "none", "licence": "none"},
}


def write_shards(folder: Path, members: int) -> None:
    """Parquet files with the column `image` as the Hugging Face hub has it, and a label; all images
    differ.
    """
    folder.mkdir()
    for number, start in enumerate(range(0, members, SHARD_MEMBERS)):
        count = min(SHARD_MEMBERS, members - start)
        ids = np.arange(start, start + count, dtype=np.int64)
        images = pa.StructArray.from_arrays(
            [_bitmaps(ids), pa.array([f"{one:09}.bmp" for one in ids.tolist()])], ["bytes", "path"]
        )
        pq.write_table(
            pa.table({"image": images, "label": ids % 2}),
            folder / f"{number:05}.parquet",
            row_group_size=ROW_GROUP,
        )


def _bitmaps(ids: np.ndarray) -> pa.Array:
    """A BMP file for each number, which its first pixels spell."""
    size = 54 + 3 * SIDE * SIDE
    header = b"BM" + b"".join(
        value.to_bytes(width, "little")
        for value, width in [
            (size, 4),
            (0, 4),
            (54, 4),
            (40, 4),
            (SIDE, 4),
            (SIDE, 4),
            (1, 2),
            (24, 2),
            (0, 4),
            (size - 54, 4),
            *[(0, 4)] * 4,
        ]
    )
    files = np.zeros((len(ids), size), np.uint8)
    files[:, :54] = np.frombuffer(header, np.uint8)
    files[:, 54:62] = ids.astype("<i8").view(np.uint8).reshape(-1, 8)
    files[:, 62:] = (ids % 251)[:, None]
    offsets = np.arange(len(ids) + 1, dtype=np.int32) * size
    return pa.Array.from_buffers(
        pa.binary(), len(ids), [None, pa.py_buffer(offsets), pa.py_buffer(files)]
    )


def write_detector(folder: Path) -> Path:
    """A card, its weights, and its family as an installed distribution would bring it; returns the
    card.
    """
    info = folder / "touchstone_benchmark_null-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: touchstone-benchmark-null\nVersion: 1.0\n"
    )
    (info / "entry_points.txt").write_text(
        "[touchstone.families]\ntouchstone-benchmark-null = touchstone_benchmark_null\n"
    )
    (folder / "touchstone_benchmark_null.py").write_text(FAMILY)
    write_weights(folder / "null.safetensors", {"offset": torch.zeros(1)})
    card = folder / "null.yaml"
    card.write_text(yaml.safe_dump(CARD))
    return card


def measured(
    command: list[str],
    environment: dict[str, str],
    run: Path,
    log: Path,
    *,
    enough: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Run one command; when each step of the run ended, and the most memory that its own process
    had. Once there is `enough`, kill it.
    """
    steps: dict[str, Callable[[], bool]] = {
        "listed": lambda: (run / "manifest/0/_complete").exists(),
        "first_block": lambda: (run / "parts/00000").exists() or (run / "scores").exists(),
        "scored": lambda: (run / "scores").exists(),
        "compacted": lambda: (run / "scores").exists() and not any((run / "parts").glob("*/*")),
        "summarised": lambda: (run / "report.html").exists(),
    }
    begun = time.monotonic()
    ended: dict[str, float] = {}
    peak = 0
    with open(log, "w") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)
        over = threading.Event()
        threading.Thread(target=lambda: (process.wait(), over.set()), daemon=True).start()
        while not over.wait(0.1):
            peak = max(peak, _peak_bytes(process.pid))
            if enough():
                process.kill()
                return {"killed_s": round(time.monotonic() - begun, 2), "ended_s": ended}
            for name, has_ended in steps.items():
                if name not in ended and has_ended():
                    ended[name] = round(time.monotonic() - begun, 2)
    wall_s = time.monotonic() - begun
    if process.returncode:
        raise SystemExit(f"exit code {process.returncode}:\n{log.read_text()[-3000:]}")
    return {"wall_s": round(wall_s, 2), "ended_s": ended, "driver_peak_bytes": peak}


def _peak_bytes(pid: int) -> int:
    try:
        found = re.search(r"VmHWM:\s*(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


def _killed_and_resumed(
    command: list[str], environment: dict[str, str], folder: Path, members: int
) -> dict[str, Any]:
    """Kill a run at half of its rows, and go on with the same command."""
    run = folder / "killed"
    command = [str(run) if word == str(folder / "run") else word for word in command]

    def rows() -> int:
        """Rows in parts; those that are merged already count as well."""
        found = 0
        for path in (*run.glob("parts/*/*.parquet"), *run.glob("scores/*.parquet")):
            with suppress(OSError, pa.ArrowException):  # being written, or merged
                found += pq.read_metadata(path).num_rows
        return found

    killed = measured(
        command, environment, run, folder / "killed.log", enough=lambda: rows() >= members / 2
    )
    there = rows()
    resumed = measured(command, environment, run, folder / "resumed.log")
    ids = pa.concat_tables(
        pq.read_table(path, columns=["image_id"]) for path in (run / "scores").iterdir()
    )["image_id"]
    assert len(ids) == members == len(ids.unique()), (
        f"{len(ids)} rows of {len(ids.unique())} images"
    )
    session = json.loads((run / "summary.json").read_text())["session"]
    assert session["rows"] <= members - there, "what was committed is scored again"
    return {
        **killed,
        "rows_at_kill": there,
        "rows_of_second": session["rows"],
        "wall_s": resumed["wall_s"],
        "ended_s": resumed["ended_s"],
    }


def measure(
    members: int, work: Path, arguments: list[str], *, kill: bool = False
) -> dict[str, Any]:
    """Make an archive, score it, and run the same command on the finished run."""
    folder = work / str(members)
    folder.mkdir()
    begun = time.monotonic()
    write_shards(folder / "archive", members)
    print(
        f"{members:,} members made in {time.monotonic() - begun:.1f} s", file=sys.stderr, flush=True
    )
    card = write_detector(folder / "detector")
    command = [
        sys.executable, "-m", "ray_app.cli", "score", str(folder / "archive"), "--out", str(folder / "run"), "--detector", str(card),
        "--set", "batch_slots=64", "--set", "block_members=2048", *arguments,
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": f"{folder / 'detector'}:{ROOT}"}
    first = measured(command, environment, folder / "run", folder / "first.log")
    summary = json.loads((folder / "run/summary.json").read_text())
    assert summary["members"] == members == sum(summary["statuses"].values()), summary["statuses"]
    again = measured(command, environment, folder / "run", folder / "again.log")
    session = summary["session"]
    scores = sorted(path.stat().st_size for path in (folder / "run/scores").iterdir())
    killed = {"killed": _killed_and_resumed(command, environment, folder, members)} if kill else {}
    shutil.rmtree(folder / "archive")
    return {
        "members": members,
        "statuses": summary["statuses"],
        "rows_per_s": round(members / first["wall_s"], 1),
        "steady_rows_per_s": session["images_per_s"],
        "list_s": session["seconds"]["list"],
        "workers": session["workers"],
        "worker_peak_bytes": session["peak_worker_bytes"],
        "score_files_bytes": scores,
        **first,
        "resume": {"wall_s": again["wall_s"], "driver_peak_bytes": again["driver_peak_bytes"]},
        **killed,
    }


def main() -> int:
    """Measure each size; exit code 1 when the driver's memory is over its bounds."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--members", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="passed on to touchstone score",
    )
    parser.add_argument(
        "--kill", action="store_true", help="kill another run of each size at half, and go on"
    )
    options = parser.parse_args()
    arguments = [word for setting in options.set for word in ("--set", setting)]
    figures: dict[str, Any] = {"machine": machine(), "sizes": []}
    with tempfile.TemporaryDirectory(prefix="touchstone-scale-") as work:
        for members in sorted(options.members):
            figures["sizes"].append(measure(members, Path(work), arguments, kill=options.kill))
            print(json.dumps(figures["sizes"][-1], indent=1), flush=True)
            if options.json:
                options.json.write_text(json.dumps(figures, indent=1) + "\n")
    peaks = [size["driver_peak_bytes"] for size in figures["sizes"]]
    is_flat = max(peaks) <= MOST_GROWTH * peaks[0] and max(peaks) < MOST_BYTES
    print(
        f"driver: {', '.join(f'{peak / 2**20:.0f} MiB' for peak in peaks)}: {'within' if is_flat else 'OVER'} its bounds",
        file=sys.stderr,
    )
    return 0 if is_flat else 1


if __name__ == "__main__":
    sys.exit(main())
