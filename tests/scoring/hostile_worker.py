"""What a worker of the fused layout takes, without Ray, while it scores and commits a folder of good files and then one of hostile ones.

python -m tests.scoring.hostile_worker FOLDER OUT     → JSON: MiB after the good files, after the hostile ones, at the peak; and the budget
"""

import gc
import json
import re
import sys
from pathlib import Path

from ray_app.archives import BlockPlan, fetcher_of, list_members, open_source, read_block, read_blocks
from ray_app.runs import RunDirectory
from ray_app.scoring import ScoreConfig
from ray_app.scoring.messages import block_table, report_of
from ray_app.scoring.run import spec_for
from ray_app.scoring.workers import BlockScorer, Job

GOOD = "0-good"  # the first folder that is listed


def resident_mib(what: str = "VmRSS") -> float:
    gc.collect()
    return round(int(re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024, 1)


def main(folder: str, out: str) -> None:
    config = ScoreConfig(source=(folder,), out=out, precision="fp32")
    spec, run = spec_for(config, gpus=0), RunDirectory.open(out)
    list_members(run.store, open_source([folder]), BlockPlan(batch_slots=spec.slots, max_block_members=8 * spec.slots))
    worker = BlockScorer(Job(run, spec, fetcher_of(config.source, config.retry), 1, Path(f"{out}-crumbs"), None))
    before, members, failures = 0.0, 0, 0
    for ref in read_blocks(run.store, 0):
        report = report_of(worker(block_table(ref)))
        members, failures = members + report["members"], failures + len(report["failures"])
        if f"/{GOOD}/" in read_block(run.store, ref)["uri"][0].as_py():
            before = resident_mib()
    told = {"before": before, "after": resident_mib(), "peak": resident_mib("VmHWM"), "budget": spec.process_bytes / 2**20}
    print(json.dumps(told | {"members": members, "failures": failures}))


if __name__ == "__main__":
    main(*sys.argv[1:])
