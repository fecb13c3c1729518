"""How long does evaluating many rows take, and how much memory? A synthetic published run and its
labels, in a process of their own.

    python -m benchmarks.evaluation --rows 10000000 --json evaluation.json

The run has an ensemble of three detectors; labels are a Parquet file of image_id, label and
generator. No image exists, so thumbnails are left out. Memory is the peak resident set of the
evaluating process.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ray_app.archives.manifest import BLOCK_COLUMNS, ManifestInfo, write_listed
from ray_app.ensembles import build_ensemble, sigmoid
from ray_app.runs import RunDirectory, row_schema
from ray_app.runs.rows import as_array

DETECTORS = ("first", "second", "third")
GENERATORS = 24
ROWS_PER_FILE, ROW_GROUP = 1 << 20, 1 << 15
MOST_BYTES = 2 * 2**30


def write_run(folder: Path, tables: Iterable[dict[str, Any]], detectors: Sequence[str] = DETECTORS, ensemble: dict[str, Any] | None = None,
              **fields: pa.DataType) -> RunDirectory:  # fmt: skip
    """A finished run of these rows, a published file per table; columns that are not given are
    null. `fields`: columns beside the usual.
    """
    run = RunDirectory.open(str(folder))
    card = build_ensemble(list(detectors)).model_dump(mode="json") if ensemble is None else ensemble
    run.claim(
        {"detectors": {name: {} for name in detectors}, "source": [str(folder)]},
        list(detectors),
        card,
    )
    schema = row_schema(list(detectors))
    for name, kind in fields.items():
        schema = schema.append(pa.field(name, kind))
    members = 0
    for number, columns in enumerate(tables):
        count = len(columns["image_id"])
        rows = pa.Table.from_arrays(
            [as_array(columns.get(one.name), one, count) for one in schema], schema=schema
        )
        path = folder / "scores" / f"00000-{number:08d}-{number:08d}.parquet"
        path.parent.mkdir(exist_ok=True)
        pq.write_table(rows, path, compression="zstd", row_group_size=ROW_GROUP)
        members += count
    info = ManifestInfo(0, members, 0, 0, 4, members, 0, 0.0)
    write_listed(run.store, info, BLOCK_COLUMNS.empty_table(), np.empty(0, np.int64))
    for path in ("summaries/00000.json", "summary.json"):
        run.write_json(path, {"listing": 0})
    return run


def struct_of(columns: dict[str, Any]) -> pa.StructArray:
    """A struct column of float32 scores; NaN is null."""
    return pa.StructArray.from_arrays(
        [pa.array(one, pa.float32(), mask=~np.isfinite(one)) for one in columns.values()],
        list(columns),
    )


def synthetic(rows: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Rows with scores that tell most fakes, generator by generator less well; every fiftieth image
    could not be read.
    """
    rng = np.random.default_rng(seed)
    sides = np.array([[256, 256], [640, 480], [1024, 768], [2048, 1536], [4000, 3000]])
    for start in range(0, rows, ROWS_PER_FILE):
        count = min(ROWS_PER_FILE, rows - start)
        ids = np.arange(start, start + count, dtype=np.int64)
        makers = _makers(ids)
        means = np.where(makers < GENERATORS, 2.5 - makers / 10, -2.0)
        ok = ids % 50 != 7
        columns = {
            name: (means + rng.normal(0, 1.5, count)).astype(np.float32) for name in DETECTORS
        }
        columns = {
            name: np.where(ok, column, np.nan).astype(np.float32)
            for name, column in columns.items()
        }
        score = np.mean([column.astype(np.float64) for column in columns.values()], axis=0)
        size = sides[rng.integers(0, len(sides), count)]
        yield {
            "image_id": _scattered(ids),
            "uri": pa.array(np.char.add("s3://bucket/archive/photographs/", ids.astype("U10"))),
            "occurrence": np.zeros(count, np.int32),
            "status": pa.array(np.where(ok, "ok", "corrupt_image")),
            "format": pa.array(
                np.where(ok, np.where(rng.random(count) < 0.7, "JPEG", "PNG"), None), pa.string()
            ),
            "width": pa.array(size[:, 0].astype(np.int32), mask=~ok),
            "height": pa.array(size[:, 1].astype(np.int32), mask=~ok),
            "scores": struct_of(columns),
            "score": pa.array(score, mask=~ok),
            "probability": pa.array(sigmoid(score), mask=~ok),
            "verdict": pa.array(
                np.where(ok, np.where(score >= 0, "fake", "real"), None), pa.string()
            ),
        }


def write_labels(path: Path, rows: int) -> None:
    """The truth of the synthetic rows, in another order than theirs."""
    schema = pa.schema(
        [("image_id", pa.int64()), ("label", pa.string()), ("generator", pa.string())]
    )
    names = np.array([f"generator-{number:02d}" for number in range(GENERATORS)] + ["real"])
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for start in reversed(range(0, rows, ROWS_PER_FILE)):
            ids = np.arange(start, min(rows, start + ROWS_PER_FILE), dtype=np.int64)[::-1]
            makers = np.minimum(_makers(ids), GENERATORS)
            labels = np.where(makers < GENERATORS, "fake", "real")
            writer.write_table(pa.table([_scattered(ids), labels, names[makers]], schema=schema))


def _makers(ids: np.ndarray) -> np.ndarray:
    """Who made each image: a generator's number, or more for half of all, which are real."""
    return ids % (2 * GENERATORS)


def _scattered(ids: np.ndarray) -> np.ndarray:
    """Ids as runs have them: spread over all numbers, no two alike."""
    return (ids.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)).view(np.int64)


def measure(folder: Path) -> dict[str, float]:
    """Evaluate what lies in the folder, in this process; its seconds and its peak of memory."""
    from ray_app.evaluation.config import EvaluateConfig
    from ray_app.evaluation.run import evaluate

    start = time.monotonic()
    done = evaluate(
        EvaluateConfig(
            at=(str(folder / "run"),),
            labels=str(folder / "labels.parquet"),
            out=str(folder / "out"),
            thumbnails=False,
        )
    )
    seconds = time.monotonic() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"rows": done.result.meta.data.n, "seconds": seconds, "peak_bytes": peak}


def main() -> None:
    """Write, evaluate, tell."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(given.measure)))
        return
    with tempfile.TemporaryDirectory(prefix="touchstone-evaluation-") as name:
        folder = Path(name)
        write_run(folder / "run", synthetic(given.rows))
        write_labels(folder / "labels.parquet", given.rows)
        command = [sys.executable, "-m", "benchmarks.evaluation", "--measure", str(folder)]
        said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    found = json.loads(said.splitlines()[-1])
    print(f"{found['rows']:,} rows in {found['seconds']:.1f} s, {found['rows'] / found['seconds']:,.0f} rows/s, "
          f"peak memory {found['peak_bytes'] / 2**20:,.0f} MiB (limit {MOST_BYTES / 2**20:,.0f})")  # fmt: skip
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))
    if found["peak_bytes"] > MOST_BYTES:
        sys.exit(1)


if __name__ == "__main__":
    main()
