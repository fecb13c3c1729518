"""What a worker of the fused layout takes, without Ray, while it scores and commits a folder of good files and then one of hostile ones.

python -m tests.scoring.hostile_worker FOLDER OUT     → JSON: MiB after the good files, after the hostile ones, at the peak; and the budget
that `touchstone plan` prints for a node with one such worker
"""

import ctypes
import gc
import json
import re
import sys
from pathlib import Path

from ray_app.archives import BlockPlan, fetcher_of, list_members, open_source, read_block, read_blocks
from ray_app.cluster.config import ClusterConfig
from ray_app.inference import ResourceEstimate
from ray_app.inference.block_reader import file_bytes
from ray_app.runs import RunDirectory
from ray_app.scoring import ScoreConfig
from ray_app.scoring.identity import resolve
from ray_app.scoring.layout import NodeMemory
from ray_app.scoring.workers import BlockScorer, ScoringJob

GOOD = "0-good"  # the first folder that is listed
DECODE_BYTES = 512 * 2**20


def resident_mib(what: str = "VmRSS") -> float:
    """After a collection, and without what the C library keeps of freed memory for the next batch (`ray_app.detectors.precision`)."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return round(int(re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024, 1)


def main(folder: str, out: str) -> None:
    config = ScoreConfig(source=(folder,), out=out, ensemble="tiny", precision="fp32", cluster=ClusterConfig(decode_bytes=DECODE_BYTES))
    spec, run = resolve(config).spec(gpus=0), RunDirectory.open(out)
    list_members(run.store, open_source([folder]), BlockPlan(batch_slots=spec.slots, max_block_members=8 * spec.slots))
    worker = BlockScorer(
        ScoringJob(run, spec, fetcher_of(config.source, config.retry), 1, Path(f"{out}-crumbs"), None, decode_bytes=DECODE_BYTES)
    )
    before, members, failures = 0.0, 0, 0
    for ref in read_blocks(run.store, 0):
        report = worker.commit(worker.take(ref))
        members, failures = members + ref.members, failures + len(report.failures)
        if f"/{GOOD}/" in read_block(run.store, ref)["uri"][0].as_py():
            before = resident_mib()
    memory = NodeMemory(1, ResourceEstimate.of(spec).process_bytes, DECODE_BYTES, file_bytes(DECODE_BYTES, spec.limits))
    told = {"before": before, "after": resident_mib(), "peak": resident_mib("VmHWM"), "budget": round((memory.total_bytes or 0) / 2**20, 1)}
    print(json.dumps(told | {"members": members, "failures": failures}))


if __name__ == "__main__":
    main(*sys.argv[1:])
