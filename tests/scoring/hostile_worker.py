"""What a process takes that scores a folder of good files, and then one of hostile ones, in the
fused layout without Ray.

python -m tests.scoring.hostile_worker GOOD HOSTILE OUT     → JSON: MiB after the good files, after
the hostile ones, at the peak; and the budget that `touchstone plan` prints for a node with one such
worker
"""

import ctypes
import gc
import json
import re
import sys
from pathlib import Path

from tests.make.runs import score_here

SETTINGS = {
    "precision": "fp32",
    "block_members": 32,
    "cluster": {"workers": 1, "decode_bytes": 512 * 2**20},
}


def resident_mib(what: str = "VmRSS") -> float:
    """After a collection, and without what the C library keeps of freed memory for the next batch
    (`ray_app.detectors.precision`).
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return round(
        int(re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024, 1
    )


def main(good: str, hostile: str, out: str) -> None:
    score_here(Path(out, "good"), good, **SETTINGS)
    before = resident_mib()
    summary = score_here(Path(out, "hostile"), hostile, **SETTINGS)[0].summary
    told = {
        "before": before,
        "after": resident_mib(),
        "peak": resident_mib("VmHWM"),
        "members": summary["members"],
    }
    told |= {
        "failures": summary["own_failures"],
        "budget": round(summary["session"]["memory"]["total_bytes"] / 2**20, 1),
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
